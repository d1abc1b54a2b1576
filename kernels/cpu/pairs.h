// Pairs of vectors, whose order of elements depends on the type: bf16 splits into even and odd elements, which takes
// one instruction each. And quads: vectors that hold four lanes from each of several rows.
#pragma once

#include <type_traits>

#include "vector.h"

struct pair {
    vf a, b;
};

template <class T> INLINE pair load_pair(const T *p) { return {load(p), load(p + W)}; }
template <> INLINE_MEMBER pair load_pair(const bf16 *p) {
    vu both = read<vu>(p);
    return {(vf)(both << 16), (vf)(both & 0xffff0000)};
}
INLINE vf load(const int8 *p) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#elif defined(__AVX2__)
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#else
    return __builtin_convertvector(__builtin_convertvector(read<vb>(p), vi), vf);
#endif
}
template <> INLINE_MEMBER pair load_pair(const int8 *p) { return {load(p), load(p + W)}; }

template <> INLINE_MEMBER pair load_pair(const int4 *p) {
#if defined(__AVX512F__)
    const __m512i both = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p));
    const __m512 values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7); // indexed by 4 bits
    return {(vf)_mm512_permutexvar_ps(both, values), (vf)_mm512_permutexvar_ps(_mm512_srli_epi32(both, 4), values)};
#elif defined(__AVX2__)
    const vi both = (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p));
#else
    const vi both = __builtin_convertvector(read<vub>(p), vi);
#endif
#if !defined(__AVX512F__)
    return {__builtin_convertvector((both & 15) - 8, vf), __builtin_convertvector((both >> 4) - 8, vf)};
#endif
}

// Returns `p`, but hides that from the compiler, which then loads again instead of keeping what it has loaded. With
// sixteen registers, hardly more than the sums take, another load is cheaper than spilling a sum.
template <class T> INLINE const T *read_again(const T *p) {
#if !defined(__AVX512F__)
    asm("" : "+r"(p));
#endif
    return p;
}
// One vector of a pair.
template <int HALF, class T> INLINE vf load_half(const T *p) {
    const pair both = load_pair(p);
    return HALF ? both.b : both.a;
}

template <class T> INLINE void store_pair(T *p, pair v) {
    store(p, v.a);
    store(p + W, v.b);
}
template <> INLINE_MEMBER void store_pair(bf16 *p, pair v) {
    write(p, (round_bf16(v.a) >> 16) | (round_bf16(v.b) & 0xffff0000));
}

// Stores one vector after the other, whatever the type.
template <class T> INLINE void store_all(T *p, pair v) {
    store(p, v.a);
    store(p + W, v.b);
}
#if defined(__AVX512BF16__)
template <> INLINE_MEMBER void store_all(bf16 *p, pair v) { write(p, _mm512_cvtne2ps_pbh((__m512)v.b, (__m512)v.a)); }
#endif

template <class T> INLINE pair load_pair(const T *p, int n) {
    T lanes[2 * W] = {};
    memcpy(lanes, p, n * sizeof(T));
    return load_pair(lanes);
}
template <class T> INLINE void store_pair(T *p, pair v, int n) {
    T lanes[2 * W];
    store_pair(lanes, v);
    memcpy(p, lanes, n * sizeof(T));
}

// IN_PAIRS: whether elements of T are multiplied two at a time, in bf16. AMX tiles are faster where there are any.
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
template <class T> constexpr bool IN_PAIRS = std::is_same_v<T, bf16>;
// Adds the products of 2W bf16 to `sums`: lane i gets those of elements 2i and 2i + 1. Subnormal numbers count as 0.
INLINE vf add_products(vf sums, vf a, vf b) {
    return (vf)_mm512_dpbf16_ps((__m512)sums, (__m512bh)a, (__m512bh)b);
}
#else
template <class T> constexpr bool IN_PAIRS = false;
vf add_products(vf sums, vf a, vf b); // never called
#endif
// The same two bf16 in all lanes.
INLINE vf repeat_two(const float *p) { return (vf)(read<uint32_t>(p) + vu{}); }

constexpr int QUADS = W / 4;

// Loads 128 bits each from addresses at(0), at(1), ... at(QUADS - 1).
template <class At> INLINE vu gather_quads(At at) {
#if defined(__AVX512F__)
    auto quad = [&](int i) { return _mm_loadu_si128((const __m128i *)at(i)); };
    __m512i v = _mm512_castsi128_si512(quad(0)); // a masked load costs no shuffle
    v = _mm512_mask_broadcast_i32x4(v, 0x00f0, quad(1));
    v = _mm512_mask_broadcast_i32x4(v, 0x0f00, quad(2));
    return (vu)_mm512_mask_broadcast_i32x4(v, 0xf000, quad(3));
#elif defined(__AVX2__)
    return (vu)_mm256_loadu2_m128i((const __m128i *)at(1), (const __m128i *)at(0));
#else
    return read<vu>(at(0));
#endif
}

// Loads elements [d, d + 8) of rows[0], rows[4], rows[8], ...: each vector of the pair has a quad of every row. Element
// i is lane i % 4 of the first or second vector; but bf16 splits into even and odd elements.
INLINE pair load_quads(const float *const *rows, int d) {
    return {(vf)gather_quads([=](int i) { return rows[4 * i] + d; }),
            (vf)gather_quads([=](int i) { return rows[4 * i] + d + 4; })};
}
INLINE pair load_quads(const bf16 *const *rows, int d) {
    const vu both = gather_quads([=](int i) { return rows[4 * i] + d; });
    return {(vf)(both << 16), (vf)(both & 0xffff0000)};
}
INLINE pair load_quads(const fp16 *const *rows, int d) {
    fp16 first[W], second[W];
    for (int i = 0; i < QUADS; i++) {
        memcpy(first + 4 * i, rows[4 * i] + d, 4 * sizeof(fp16));
        memcpy(second + 4 * i, rows[4 * i] + d + 4, 4 * sizeof(fp16));
    }
    return {load(first), load(second)};
}
// One vector of what load_quads() gives.
template <int HALF, class T> INLINE vf load_half(const T *const *rows, int d) {
    const pair both = load_quads(read_again(rows), d);
    return HALF ? both.b : both.a;
}
// Where element i < 8 of a row must be for repeat_quad() to line up with load_quads().
INLINE int place_in_quads(int i, const void *) { return i; }
INLINE int place_in_quads(int i, const bf16 *) { return i % 2 * 4 + i / 2; }

INLINE vf repeat_quad(const float *p) { // the same four floats in all quads
#if defined(__AVX512F__)
    return (vf)_mm512_broadcast_f32x4(_mm_loadu_ps(p));
#elif defined(__AVX2__)
    return (vf)_mm256_broadcast_ps((const __m128 *)p);
#else
    return load(p);
#endif
}

// Lane 4 * i + j of the result is the sum of quad i of v[j].
INLINE vf sum_quads(const vf *v) {
    vi low, high, first, second; // of two vectors: lanes 0 and 1 of each quad, alternating; lanes 2 and 3; halves
    for (int i = 0; i < W; i++) {
        const int quad = i / 4 * 4, lane = i % 4;
        low[i] = quad + lane / 2 + lane % 2 * W, high[i] = low[i] + 2;
        first[i] = quad + lane % 2 + lane / 2 * W, second[i] = first[i] + 2;
    }
    const vf a = __builtin_shuffle(v[0], v[1], low) + __builtin_shuffle(v[0], v[1], high);
    const vf b = __builtin_shuffle(v[2], v[3], low) + __builtin_shuffle(v[2], v[3], high);
    return __builtin_shuffle(a, b, first) + __builtin_shuffle(a, b, second);
}
