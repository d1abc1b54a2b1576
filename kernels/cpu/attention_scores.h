// Scores of query rows against a chunk of keys, with fused multiply-adds or products of pairs, and their softmax.
#pragma once

#include <type_traits>

#include "pairs.h"

namespace attention {

constexpr int CHUNK = 256;            // keys
constexpr int COLUMNS = 2 * W;        // query rows that are the columns of two AMX tiles
constexpr int SCORED = W > 8 ? 4 : 3; // query rows that are scored at once, against W keys

// How far ahead keys and values are prefetched, and whether into L1 (3) or L2 (2).
constexpr int AHEAD_BYTES = W > 8 ? 16384 : 8192, NEARNESS = W > 8 ? 2 : 3;
template <class T> INLINE void prefetch_line(const T *p) { __builtin_prefetch(p, 0, NEARNESS); }
template <class T> INLINE void prefetch(const T *row, int num_dims) {
    for (int d = 0; d < num_dims; d += 64 / sizeof(T)) prefetch_line(row + d);
}

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

// W keys: `Keys` loads them where they are, and prefetches as many bytes meanwhile, from the keys `ahead` of them;
// `WidenedKeys` reads what widen() has prepared.
template <class T> struct Keys {
    using Type = T;
    static constexpr int SUMS = W > 8 ? 16 : 8; // vectors that fit in registers beside what widening takes
    static constexpr int OF_LINE = 64 / sizeof(T), OCTETS = OF_LINE / 8;
    const T *const *rows;
    int ahead;
    template <int HALF> INLINE_MEMBER vf at(int octet, int j) const {
        for (int i = octet % OCTETS; i < QUADS && HALF == 0; i += OCTETS)
            prefetch_line(rows[ahead + 4 * i + j] + octet / OCTETS * OF_LINE);
        return load_keys<T, HALF>(rows + j, 8 * octet);
    }
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

} // namespace attention
