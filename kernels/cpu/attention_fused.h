// Attention over a chunk of keys with fused multiply-adds: scores, softmax, and weighted sums of values.
#pragma once

#include <type_traits>

#include "pairs.h"

namespace attention {

constexpr int CHUNK = 256;                // keys
constexpr int COLUMNS = 2 * W;            // query rows that are the columns of two AMX tiles
constexpr int SCORED = W > 8 ? 4 : 3;     // query rows that are scored at once, against W keys
constexpr int WEIGHED = ACCUMULATORS / 2; // query rows whose values are summed up at once

// W keys: `Keys` widens them as they are read, `WidenedKeys` reads what widen() has prepared. at() gives half of the
// pair that load_quads() gives for elements [8 * octet, 8 * octet + 8) of keys j, j + 4, j + 8, ...
template <class T> struct Keys {
    static constexpr int SUMS = W > 8 ? 16 : 8; // vectors that fit in registers beside what widening takes
    const T *const *rows;
    template <int HALF> INLINE_MEMBER vf at(int octet, int j) const { return load_half<HALF>(rows + j, 8 * octet); }
};
struct WidenedKeys {
    static constexpr int SUMS = ACCUMULATORS;
    const float *pairs;
    template <int HALF> INLINE_MEMBER vf at(int octet, int j) const {
        return load(pairs + (octet * 8 + j * 2 + HALF) * W);
    }
};

template <class T> INLINE void widen(const T *const *rows, int head_dim, float *out) {
    for (int d = 0; d < head_dim; d += 8)
        for (int j = 0; j < 4; j++, out += 2 * W) {
            T last[QUADS][8] = {};
            const T *padded[W];
            const bool whole = d + 8 <= head_dim;
            for (int i = 0; i < QUADS && !whole; i++) {
                memcpy(last[i], rows[4 * i + j] + d, (head_dim - d) * sizeof(T));
                padded[4 * i] = last[i];
            }
            store_pair(out, whole ? load_quads(rows + j, d) : load_quads(padded, 0));
        }
}

// Adds four of the eight products of `octet` for N rows and J of the four vectors of keys, from `first` on.
template <int HALF, int N, int J, class K>
INLINE void score_half(const float *q, int stride, K keys, int octet, int first, vf (&sums)[N][J]) {
    vf a[N];
#pragma GCC unroll 4
    for (int r = 0; r < N; r++) a[r] = repeat_quad(q + r * stride + octet * 8 + HALF * 4);
#pragma GCC unroll 4
    for (int j = 0; j < J; j++) {
        const vf k = keys.template at<HALF>(octet, first + j);
#pragma GCC unroll 4
        for (int r = 0; r < N; r++) sums[r][j] = fma(a[r], k, sums[r][j]);
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
            score_half<1>(q, stride, keys, octet, first, sums);
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
constexpr int AHEAD_BYTES = 8192, NEARNESS = 3;
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
    for (int j = low; j < high; j++) {
        if (d * sizeof(T) % 64 == 0 && ahead) prefetch(values[j + ahead] + d, P * 2 * W);
        weigh_row<N, P>(weights + j, values[j] + d, sums);
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
        for (int j = low; j < high; j++) {
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
