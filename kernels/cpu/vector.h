// SIMD vectors for the instruction set that the compiler's flags choose: AVX-512, AVX2 with FMA and F16C, or whatever
// the compiler makes of four lanes. Arithmetic is in fp32, except for products of bf16 on AMX and in pairs (pairs.h).
//
// Built with -ffp-contract=off: a product and a sum are fused only where the code calls fma(). A row therefore gets the
// same bits whichever loop computes it.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define INLINE_MEMBER inline __attribute__((always_inline))
#define INLINE static INLINE_MEMBER

#if defined(__AVX512F__)
constexpr int W = 16;            // lanes
constexpr int ACCUMULATORS = 24; // vectors that fit in registers beside the operands
#elif defined(__AVX2__)
constexpr int W = 8;
constexpr int ACCUMULATORS = 12;
#else
constexpr int W = 4;
constexpr int ACCUMULATORS = 12;
#endif

constexpr float NEG_INF = -std::numeric_limits<float>::infinity();

typedef float vf __attribute__((vector_size(W * 4)));
typedef uint32_t vu __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef uint16_t vh __attribute__((vector_size(W * 2)));
typedef int8_t vb __attribute__((vector_size(W)));
typedef uint8_t vub __attribute__((vector_size(W)));

struct bf16 {
    uint16_t bits;
};
struct fp16 {
    uint16_t bits;
};
struct int8 {
    int8_t bits;
};
struct int4 { // two values, each plus 8: the low half is of a pair's first vector, the high half of its second
    uint8_t bits;
};

template <class V, class P> INLINE V read(const P *p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
}
template <class V, class P> INLINE void write(P *p, V v) { memcpy(p, &v, sizeof v); }

INLINE vf splat(float x) { return x - vf{}; }

INLINE vf fma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

INLINE vf max(vf a, vf b) { return a > b ? a : b; }

// Lane i of the result is lane i + STEP of v.
template <int STEP> INLINE vf rotated(vf v) {
    vi from;
    for (int i = 0; i < W; i++) from[i] = (i + STEP) % W;
    return __builtin_shuffle(v, from);
}
template <int STEP = W / 2> INLINE float sum_lanes(vf v) { // always in the same order
    v += rotated<STEP>(v);
    if constexpr (STEP > 1) return sum_lanes<STEP / 2>(v);
    return v[0];
}
template <int STEP = W / 2> INLINE float max_lanes(vf v) {
    v = max(v, rotated<STEP>(v));
    if constexpr (STEP > 1) return max_lanes<STEP / 2>(v);
    return v[0];
}

INLINE bool any(vi mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask);
#elif defined(__AVX2__)
    return _mm256_movemask_ps((__m256)mask);
#else
    return mask[0] | mask[1] | mask[2] | mask[3];
#endif
}

// 2^f for f within [-1/2, 1/2]. Degree 7 is the Taylor series. Degree 4, for results that will be rounded to bf16, is
// the polynomial with value 1 at 0 whose largest relative error is smallest there: 2.9e-6.
template <int DEGREE> INLINE vf exp2_series(vf f) {
    vf y;
    if constexpr (DEGREE == 4) {
        y = splat(9.5828532258e-3f);
        y = fma(y, f, splat(5.5906425289e-2f));
        y = fma(y, f, splat(2.4024098612e-1f));
        y = fma(y, f, splat(6.9312419334e-1f));
    } else {
        static_assert(DEGREE == 7);
        y = splat(1.5252733804e-5f);
        y = fma(y, f, splat(1.5403530393e-4f));
        y = fma(y, f, splat(1.3333558146e-3f));
        y = fma(y, f, splat(9.6181291076e-3f));
        y = fma(y, f, splat(5.5504108665e-2f));
        y = fma(y, f, splat(2.4022650696e-1f));
        y = fma(y, f, splat(6.9314718056e-1f));
    }
    return fma(y, f, splat(1.0f));
}
// 2^x; results below 2^-126 are 0 (with AVX-512 only those too small for a subnormal number), so exp2(-inf) is 0.
template <int DEGREE = 7> INLINE vf exp2(vf x) {
#if defined(__AVX512F__)
    const vf f = (vf)_mm512_reduce_ps((__m512)x, 0); // x minus the nearest integer
    return (vf)_mm512_scalef_ps((__m512)exp2_series<DEGREE>(f), (__m512)(x - f));
#else
    const vf top = splat(127.0f), magic = splat(12582912.0f); // adding 1.5 * 2^23 rounds to an integer
    vf in_range = x < top ? x : top;
    vf whole = (in_range + magic) - magic;
    vi scaled = (vi)exp2_series<DEGREE>(in_range - whole) + (__builtin_convertvector(whole, vi) << 23);
    vi is_normal = x > splat(-126.0f);
    vi is_nan = x != x;
    return (vf)((scaled & is_normal) | ((vi)x & is_nan));
#endif
}

constexpr float LOG2_E = 1.4426950408889634f;

// Natural logarithm of positive normal numbers: of m * 2^k, with m between sqrt(1/2) and sqrt(2), by the Taylor series of
// log(m) = 2 artanh(s), s = (m - 1) / (m + 1), up to s^9.
INLINE vf log(vf x) {
    const vi exponent = ((vi)x - 0x3f3504f3) >> 23; // subtracted are the bits of sqrt(1/2)
    const vf above = (vf)((vi)x - (exponent << 23)) - splat(1), s = above / (above + splat(2)), square = s * s;
    vf y = splat(1.0f / 9);
    y = fma(y, square, splat(1.0f / 7));
    y = fma(y, square, splat(1.0f / 5));
    y = fma(y, square, splat(1.0f / 3));
    y = fma(y * square, s, s);
    return fma(__builtin_convertvector(exponent, vf), splat(0.6931471806f), y + y);
}

INLINE vf sigmoid(vf x) { return splat(1.0f) / (splat(1.0f) + exp2(x * splat(-LOG2_E))); }
INLINE vf clamp(vf x, float low, float high) { // NaN stays NaN
    x = x < splat(low) ? splat(low) : x;
    return x > splat(high) ? splat(high) : x;
}

// Loads and stores of one vector, in memory order.

INLINE vf load(const float *p) { return read<vf>(p); }
INLINE vf load(const bf16 *p) { return (vf)(__builtin_convertvector(read<vh>(p), vu) << 16); }

INLINE float widen(uint16_t half) { // fp16 -> fp32, for processors without an instruction for it
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
    uint32_t bits = rest >= 0x7c00 ? (rest << 13) | 0x7f800000 : (rest << 13) + 0x38000000;
    float normal, subnormal = (float)rest * 0x1p-24f;
    memcpy(&normal, &bits, 4);
    float magnitude = rest < 0x0400 ? subnormal : normal;
    return sign ? -magnitude : magnitude;
}

INLINE uint16_t narrow(float x) { // fp32 -> fp16, round to nearest even
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t sign = (bits >> 16) & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return sign | 0x7e00;
    if (rest >= 0x477ff000) return sign | 0x7c00;
    if (rest < 0x38800000) { // subnormal: let an addition do the rounding
        float magnitude, shifted;
        memcpy(&magnitude, &rest, 4);
        shifted = magnitude + 0.5f;
        memcpy(&rest, &shifted, 4);
        return sign | (rest - 0x3f000000);
    }
    return sign | ((rest - 0x38000000 + 0xfff + ((rest >> 13) & 1)) >> 13);
}

INLINE vf load(const fp16 *p) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__AVX2__)
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
    vf v;
    for (int i = 0; i < W; i++) v[i] = widen(p[i].bits);
    return v;
#endif
}

// The upper half of each result is the nearest bf16, ties to even; NaN stays NaN.
INLINE vu round_bf16(vf v) {
    vu bits = (vu)v, rounded = bits + 0x7fff + ((bits >> 16) & 1);
    return v != v ? (bits | 0x400000) : rounded;
}

INLINE vf to_bf16(vf v) { return (vf)(round_bf16(v) & 0xffff0000); }

INLINE void store(float *p, vf v) { write(p, v); }
INLINE void store(bf16 *p, vf v) {
#if defined(__AVX512BF16__)
    write(p, _mm512_cvtneps_pbh((__m512)v)); // a subnormal number becomes 0
#else
    write(p, __builtin_convertvector(round_bf16(v) >> 16, vh));
#endif
}
INLINE void store(fp16 *p, vf v) {
#if defined(__AVX512F__)
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int i = 0; i < W; i++) p[i].bits = narrow(v[i]);
#endif
}

// Only the first n < W lanes: the others are 0 when loaded, and not written when stored.
template <class T> INLINE vf load(const T *p, int n) {
    T lanes[W] = {};
    memcpy(lanes, p, n * sizeof(T));
    return load(lanes);
}
template <class T> INLINE void store(T *p, vf v, int n) {
    T lanes[W];
    store(lanes, v);
    memcpy(p, lanes, n * sizeof(T));
}

// Prefetches a line that will be stored to, into L2: there is no room for it in L1.
INLINE void fetch_line(const void *p) { __builtin_prefetch(p, 1, 2); }

// The first n <= W lanes, usually all of them.
template <class T> INLINE vf load_some(const T *p, int n) { return n == W ? load(p) : load(p, n); }
template <class T> INLINE void store_some(T *p, vf v, int n) { n == W ? store(p, v) : store(p, v, n); }
