// A mixture of experts: (token, expert) pairs are grouped by expert, and each expert multiplies its tokens' rows.
//
// Values stay in fp32 between the two products, except that products in bf16 round their input. An expert's result for a
// token does not depend on the expert's other tokens, and a token's sum runs in the order of its experts, so no row
// depends on the other rows.
#pragma once

#include "elementwise.h"
#include "gemm.h"

namespace experts {

constexpr int64_t MOST_FLOATS = 1 << 24; // of intermediate results; tokens beyond that are processed afterwards

template <class T> struct Call {
    const T *x;           // [tokens, hidden]
    const int64_t *ids;   // [tokens, per_token]
    const float *weights; // [tokens, per_token]
    T *out;               // as x
    gemm::Weights gate_up, down;
    int64_t tokens, per_token, num_experts;
    int activation;
};

// Sorts the pairs (token * per_token + place) of tokens [begin, end) by expert, then by number, and cuts tiles.
template <class T, class P>
void group(const Call<T> &c, int64_t begin, int64_t end, std::vector<int64_t> &pairs, std::vector<gemm::Tile> &tiles) {
    const int64_t first = begin * c.per_token, last = end * c.per_token;
    static thread_local std::vector<int64_t> next;
    next.assign(c.num_experts + 1, 0);
    for (int64_t i = first; i < last; i++) next[c.ids[i] + 1]++;
    tiles.clear();
    for (int64_t e = 0; e < c.num_experts; e++) {
        gemm::cut<P>(next[e], next[e + 1], int(e), tiles);
        next[e + 1] += next[e];
    }
    pairs.resize(last - first);
    for (int64_t i = first; i < last; i++) pairs[next[c.ids[i]]++] = i;
}

template <class T, class S> void run_tokens(const Call<T> &c, int64_t begin, int64_t end, int threads) {
    static thread_local std::vector<int64_t> pairs_of_thread;
    static thread_local std::vector<gemm::Tile> tiles;
    using P = gemm::Product<T, S>;
    group<T, P>(c, begin, end, pairs_of_thread, tiles);
    const int64_t *pairs = pairs_of_thread.data(), first = begin * c.per_token;
    const int64_t hidden = c.gate_up.inputs, ffn = c.down.inputs, num_pairs = (end - begin) * c.per_token;
    float *between = scratch<4>(num_pairs * (2 * ffn + hidden)), *parts = between + num_pairs * 2 * ffn;

    gemm::run<P>(
        c.gate_up, tiles,
        [=](int64_t row, int64_t k, int n) { return load_some(c.x + pairs[row] / c.per_token * hidden + k, n); },
        gemm::Stored{[=](int64_t row) { return between + row * 2 * ffn; }, 2 * ffn},
        threads);
    gemm::run<P>(
        c.down, tiles,
        [=](int64_t row, int64_t k, int n) {
            const float *gate = between + row * 2 * ffn + k;
            return activated(c.activation, load_some(gate, n), load_some(gate + ffn, n));
        },
        gemm::Stored{[=](int64_t row) { return parts + (pairs[row] - first) * hidden; }, hidden},
        threads);
    parallel(end - begin, num_pairs * hidden, threads, [&](int64_t t) {
        const float *part = parts + t * c.per_token * hidden, *weight = c.weights + (begin + t) * c.per_token;
        for_each_vector(hidden, [&](int64_t i, int n) {
            vf sum = {};
            for (int64_t e = 0; e < c.per_token; e++)
                sum = fma(splat(weight[e]), load_some(part + e * hidden + i, n), sum);
            store_some(c.out + (begin + t) * hidden + i, sum, n);
        });
    });
}

template <class T, class S> void run(const Call<T> &c, int threads) {
    const int64_t floats = c.per_token * (2 * c.down.inputs + c.gate_up.inputs);
    const int64_t most = std::max<int64_t>(1, MOST_FLOATS / floats);
    for (int64_t t = 0; t < c.tokens; t += most) run_tokens<T, S>(c, t, std::min(c.tokens, t + most), threads);
}

} // namespace experts
