// Weighted sums of values over a chunk of keys, with fused multiply-adds or products of pairs.
#pragma once

#include <type_traits>

#include "attention_scores.h"

namespace attention {

constexpr int WEIGHED = ACCUMULATORS / 2; // query rows whose values are summed up at once

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
