// Attention over a chunk of keys with fused multiply-adds or products of pairs: scores, softmax, and weighted sums of
// values.
#pragma once

#include <type_traits>

#include "pairs.h"

namespace attention {

constexpr int CHUNK = 256;                // keys
constexpr int COLUMNS = 2 * W;            // query rows that are the columns of two AMX tiles
constexpr int SCORED = W > 8 ? 4 : 3;     // query rows that are scored at once, against W keys
constexpr int WEIGHED = ACCUMULATORS / 2; // query rows whose values are summed up at once

// Vectors that hold eight elements of each of QUADS rows: a pair of fp32, or one vector where products are in pairs.
template <class T> constexpr int HALVES = IN_PAIRS<T> ? 1 : 2;

// Eight elements of keys j, j + 4, j + 8, ..., or half of them: as load_quads() gives them, or as they are.
template <class T, int HALF> INLINE vf load_keys(const T *const *rows, int d) {
    if constexpr (IN_PAIRS<T>) return (vf)gather_quads([=](int i) { return rows[4 * i] + d; });
    else return load_half<HALF>(rows, d);
}
template <class T> INLINE vf add_scores(vf sums, vf q, vf keys) {
    if constexpr (IN_PAIRS<T>) return add_products(sums, q, keys);
    else return fma(q, keys, sums);
}

// W keys: `Keys` loads them where they are, `WidenedKeys` reads what widen() has prepared.
template <class T> struct Keys {
    using Type = T;
    static constexpr int SUMS = W > 8 ? 16 : 8; // vectors that fit in registers beside what widening takes
    const T *const *rows;
    template <int HALF> INLINE_MEMBER vf at(int octet, int j) const { return load_keys<T, HALF>(rows + j, 8 * octet); }
};
template <class T> struct WidenedKeys {
    using Type = T;
    static constexpr int SUMS = ACCUMULATORS;
    const float *vectors; // [octet][4][HALVES][W]
    template <int HALF> INLINE_MEMBER vf at(int octet, int j) const {
        return load(vectors + ((octet * 4 + j) * HALVES<T> + HALF) * W);
    }
};

template <class T> INLINE void widen(const T *const *rows, int head_dim, float *out) {
    for (int d = 0; d < head_dim; d += 8)
        for (int j = 0; j < 4; j++, out += HALVES<T> * W) {
            T last[QUADS][8] = {};
            const T *padded[W];
            const bool whole = d + 8 <= head_dim;
            for (int i = 0; i < QUADS && !whole; i++) {
                memcpy(last[i], rows[4 * i + j] + d, (head_dim - d) * sizeof(T));
                padded[4 * i] = last[i];
            }
            const T *const *from = whole ? rows + j : padded;
            const int first = whole ? d : 0;
            store(out, load_keys<T, 0>(from, first));
            if constexpr (HALVES<T> == 2) store(out + W, load_keys<T, 1>(from, first));
        }
}

// Adds the products of `octet`, or half of them, for N rows and J of the four vectors of keys, from `first` on.
template <int HALF, int N, int J, class K>
INLINE void score_half(const float *q, int stride, K keys, int octet, int first, vf (&sums)[N][J]) {
    using T = typename K::Type;
    vf a[N];
#pragma GCC unroll 4
    for (int r = 0; r < N; r++) a[r] = repeat_quad(q + r * stride + (octet * HALVES<T> + HALF) * 4);
#pragma GCC unroll 4
    for (int j = 0; j < J; j++) {
        const vf k = keys.template at<HALF>(octet, first + j);
#pragma GCC unroll 4
        for (int r = 0; r < N; r++) sums[r][j] = add_scores<T>(sums[r][j], a[r], k);
    }
}

// Scores N rows, `stride` apart, against W keys.
template <int N, class K> INLINE void score_rows(const float *q, int stride, K keys, int head_dim, float *scores) {
    constexpr int J = N * 4 <= K::SUMS ? 4 : 2;
    vf of_row[N][4];
    for (int first = 0; first < 4; first += J) {
        vf sums[N][J] = {};
        for (int octet = 0; octet * 8 < head_dim; octet++) {
            score_half<0>(q, stride, keys, octet, first, sums);
            if constexpr (HALVES<typename K::Type> == 2) score_half<1>(q, stride, keys, octet, first, sums);
        }
        for (int r = 0; r < N; r++)
            for (int j = 0; j < J; j++) of_row[r][first + j] = sums[r][j];
    }
    for (int r = 0; r < N; r++) store(scores + r * CHUNK, sum_quads(of_row[r]));
}

template <class K, int N>
INLINE void score(int n, const float *q, int stride, K keys, int head_dim, float *scores) {
    if (n == N) score_rows<N>(q, stride, keys, head_dim, scores);
    else if constexpr (N > 1) score<K, N - 1>(n, q, stride, keys, head_dim, scores);
}

// Replaces scores by log2(e) * cap * tanh(score / cap). A score times `factor` is 2 * log2(e) * score / cap.
INLINE void cap_scores(float *scores, int low, int high, float factor, float cap) {
    const vf top = splat(cap * LOG2_E);
    for (int j = low / W * W; j < high; j += W)
        store(scores + j, top - splat(2) * top / (splat(1) + exp2(load(scores + j) * splat(factor))));
}

// Sets all lanes but [low, high), which a row sees, to -inf. Stores a whole vector: it is loaded again soon, and a load
// that spans two stores would stall.
INLINE void hide(float *scores, int low, int high) {
    vi lane;
    for (int i = 0; i < W; i++) lane[i] = i;
    const vi seen = (lane >= low) & (lane < high);
    store(scores, seen ? load(scores) : splat(NEG_INF));
}

// 2^(scores * factor - top), where `top` is the largest of scores * factor. ROUNDED: the caller rounds them to bf16.
template <bool ROUNDED> INLINE vf weights_of(vf scores, vf factor, vf top) {
    return exp2<ROUNDED ? 4 : 7>(fma(scores, factor, -top));
}

// Softmax of a row, before division by the sum: passes exponentials of scores times `factor` to put(key, vector), 0 for
// keys that the row does not see, and sets row_max and row_sum.
template <bool ROUNDED, class Put>
INLINE void softmax_row(float *scores, int low, int high, float factor, float &row_max, float &row_sum, Put put) {
    const int begin = low / W * W, end = (high + W - 1) / W * W;
    row_max = NEG_INF, row_sum = 0;
    if (low < high) {
        hide(scores + begin, low - begin, W);
        hide(scores + end - W, 0, high - (end - W));
        vf sum = {}, m[4] = {splat(NEG_INF), splat(NEG_INF), splat(NEG_INF), splat(NEG_INF)};
        for (int j = begin; j < end; j += W) m[j / W % 4] = max(m[j / W % 4], load(scores + j));
        row_max = max_lanes(max(max(m[0], m[1]), max(m[2], m[3]))) * factor;
        for (int j = begin; j < end; j += W) {
            const vf e = weights_of<ROUNDED>(load(scores + j), splat(factor), splat(row_max));
            sum += e;
            put(j, e);
        }
        row_sum = sum_lanes(sum);
    }
    for (int j = 0; j < begin; j += W) put(j, vf{});
    for (int j = low < high ? end : begin; j < CHUNK; j += W) put(j, vf{});
}

// How far ahead keys and values are prefetched, and whether into L1 (3) or L2 (2).
#if defined(__AMX_BF16__)
constexpr int AHEAD_BYTES = 16384, NEARNESS = 2;
#else
constexpr int AHEAD_BYTES = 8192, NEARNESS = W > 8 ? 2 : 3;
#endif
template <class T> INLINE void prefetch_line(const T *p) { __builtin_prefetch(p, 0, NEARNESS); }
template <class T> INLINE void prefetch(const T *row, int num_dims) {
    for (int d = 0; d < num_dims; d += 64 / sizeof(T)) prefetch_line(row + d);
}

// Adds 2W * P dimensions of a value to N sums, each times its weight. Registers beside the sums hold either the value
// and one weight at a time, or, where that takes fewer of them, all weights and one vector of the value at a time.
template <int N, int P, class T> INLINE void weigh_row(const float *weights, const T *value, pair (&sums)[N][P]) {
    if constexpr (P == 1 || W > 8) {
        pair v[P];
#pragma GCC unroll 4
        for (int p = 0; p < P; p++) v[p] = load_pair(value + p * 2 * W);
#pragma GCC unroll 16
        for (int r = 0; r < N; r++) {
            const vf w = splat(weights[r * CHUNK]);
#pragma GCC unroll 4
            for (int p = 0; p < P; p++) {
                sums[r][p].a = fma(w, v[p].a, sums[r][p].a);
                sums[r][p].b = fma(w, v[p].b, sums[r][p].b);
            }
        }
    } else {
        vf w[N];
#pragma GCC unroll 16
        for (int r = 0; r < N; r++) w[r] = splat(weights[r * CHUNK]);
#pragma GCC unroll 4
        for (int p = 0; p < P; p++, value += 2 * W) {
            const vf a = load_half<0>(value);
#pragma GCC unroll 16
            for (int r = 0; r < N; r++) sums[r][p].a = fma(w[r], a, sums[r][p].a);
            const vf b = load_half<1>(read_again(value));
#pragma GCC unroll 16
            for (int r = 0; r < N; r++) sums[r][p].b = fma(w[r], b, sums[r][p].b);
        }
    }
}

template <class T> constexpr int KEYS_AT_ONCE = IN_PAIRS<T> ? 2 : 1; // whose values are summed up

// What at(j) and at(j + 1) give, their elements interleaved: first the even ones. 0 for keys outside [low, high).
template <class At> INLINE pair interleaved(At at, int j, int low, int high) {
    const vu a = j >= low ? at(j) : vu{}, b = j + 1 < high ? at(j + 1) : vu{};
    return {(vf)((a & 0xffff) | (b << 16)), (vf)((a >> 16) | (b & 0xffff0000))};
}

// weigh_row() for values j and j + 1 and pairs of weights in bf16.
template <int N, int P>
INLINE void weigh_pair(const float *weights, const bf16 *const *values, int j, int low, int high, int d,
                       pair (&sums)[N][P]) {
    pair v[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; p++)
        v[p] = interleaved([=](int i) { return read<vu>(values[i] + d + p * 2 * W); }, j, low, high);
#pragma GCC unroll 16
    for (int r = 0; r < N; r++) {
        const vf w = repeat_two(weights + r * CHUNK + j / 2);
#pragma GCC unroll 4
        for (int p = 0; p < P; p++) {
            sums[r][p].a = add_products(sums[r][p].a, w, v[p].a);
            sums[r][p].b = add_products(sums[r][p].b, w, v[p].b);
        }
    }
}

// Weighted sum of values over keys [low, high) for N rows and 2W * P dimensions from `d` on, added to `acc` unless
// `first`. Each pass over some dimensions prefetches the same part of the values `ahead` keys later, so that memory is
// as busy in the last pass as in the first.
template <class T, int N, int P>
INLINE void weigh_rows(const float *weights, const T *const *values, int low, int high, int d, int ahead, float *acc,
                       int stride, bool first) {
    pair sums[N][P] = {};
    for (int r = 0; r < N && !first; r++)
        for (int p = 0; p < P; p++) {
            const float *from = acc + r * stride + d + p * 2 * W;
            sums[r][p] = {load(from), load(from + W)};
        }
    constexpr int KEYS = KEYS_AT_ONCE<T>;
    for (int j = low / KEYS * KEYS; j < high; j += KEYS) {
        for (int i = j; i < j + KEYS && d * sizeof(T) % 64 == 0 && ahead; i++)
            prefetch(values[i + ahead] + d, P * 2 * W);
        if constexpr (IN_PAIRS<T>) weigh_pair<N, P>(weights, values, j, low, high, d, sums);
        else weigh_row<N, P>(weights + j, values[j] + d, sums);
    }
    for (int r = 0; r < N; r++)
        for (int p = 0; p < P; p++) {
            store(acc + r * stride + d + p * 2 * W, sums[r][p].a);
            store(acc + r * stride + d + p * 2 * W + W, sums[r][p].b);
        }
}

// The same for the last dimensions of a head, which do not fill 2W.
template <class T>
INLINE void weigh_tail(int n, const float *weights, const T *const *values, int low, int high, int d, int tail,
                       float *acc, int stride, bool first) {
    for (int r = 0; r < n; r++) {
        float *to = acc + r * stride + d;
        pair sum = {};
        if (!first) sum = {load(to), load(to + W)};
        for (int j = low / KEYS_AT_ONCE<T> * KEYS_AT_ONCE<T>; j < high; j += KEYS_AT_ONCE<T>) {
            if constexpr (IN_PAIRS<T>) {
                auto some = [=](int i) {
                    T lanes[2 * W] = {};
                    memcpy(lanes, values[i] + d, tail * sizeof(T));
                    return read<vu>(lanes);
                };
                const vf w = repeat_two(weights + r * CHUNK + j / 2);
                const pair v = interleaved(some, j, low, high);
                sum = {add_products(sum.a, w, v.a), add_products(sum.b, w, v.b)};
                continue;
            }
            vf w = splat(weights[r * CHUNK + j]);
            pair v = load_pair(values[j] + d, tail);
            sum = {fma(w, v.a, sum.a), fma(w, v.b, sum.b)};
        }
        store(to, sum.a);
        store(to + W, sum.b);
    }
}

template <class T, int N = WEIGHED>
INLINE void weigh(int n, const float *weights, const T *const *values, int low, int high, int head_dim, int ahead,
                  float *acc, int stride, bool first) {
    if constexpr (N > 0) {
        if (n != N) return weigh<T, N - 1>(n, weights, values, low, high, head_dim, ahead, acc, stride, first);
        int d = 0;
        auto some = [&](auto panels) {
            constexpr int P = decltype(panels)::value;
            for (; d + P * 2 * W <= head_dim; d += P * 2 * W)
                weigh_rows<T, N, P>(weights, values, low, high, d, ahead, acc, stride, first);
        };
        if constexpr (N * 8 <= ACCUMULATORS) some(std::integral_constant<int, 4>());
        if constexpr (N * 4 <= ACCUMULATORS) some(std::integral_constant<int, 2>());
        some(std::integral_constant<int, 1>());
        if (d < head_dim) weigh_tail(n, weights, values, low, high, d, head_dim - d, acc, stride, first);
    }
}

} // namespace attention
