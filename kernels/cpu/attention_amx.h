// Attention scores and weighted sums of values on AMX tiles, for a chunk of keys and some query rows of bf16.
//
// Query rows are the columns of tiles: 16 of them are the lanes of a vector, so the softmax needs no operation across
// lanes, and its weights come out in the layout that the next product reads. Keys are read in place, 16 to a tile.
// Values are transposed once for all rows. Up to W rows do not repay that: there the weights are transposed instead,
// and up to FEW rows, as in decode, sum up values without tiles, with the same bits (see Scope in tiles.h). Weights are
// rounded to bf16, the type of the values. Padding is 0 and adds nothing. So the bits of a row depend neither on the
// rows and keys that come with it, nor on which of the three ways was taken.
#pragma once

#if defined(__AMX_BF16__)
#include <algorithm>

#include "attention_scores.h"
#include "tiles.h"
#include "transpose.h"

namespace attention {

constexpr int DEPTH = 32; // dimensions (of scores) or keys (of weighted sums) in one product
constexpr int FEW = 4;    // query rows up to which values are summed up without tiles
using amx::SIZE;

// Packs query rows as [rows / COLUMNS][head_dim / DEPTH][2][DEPTH / 2][W rows][2], innermost a pair of dimensions:
// tiles whose columns are query rows. query(row): address of a row.
template <class Query> INLINE void pack_queries(int num_rows, int head_dim, Query query, bf16 *out) {
    for (int first = 0; first < num_rows; first += W) {
        const bf16 *rows[W];
        const int n = std::min(W, num_rows - first);
        for (int r = 0; r < n; r++) rows[r] = query(first + r);
        bf16 *to = out + first / COLUMNS * COLUMNS * head_dim + first % COLUMNS / W * SIZE;
        for (int d = 0; d < head_dim; d += DEPTH, to += 2 * SIZE) {
            vf pairs[W];
            for (int r = 0; r < W; r++) pairs[r] = r < n ? read<vf>(rows[r] + d) : vf{};
            transpose(pairs);
            for (int i = 0; i < W; i++) write(to + i * DEPTH, pairs[i]);
        }
    }
    amx::written();
}

// Scores COLUMNS rows against keys [begin, end), both multiples of DEPTH -> [2][CHUNK][W rows]. Keys are padded only to
// a multiple of W, so the last W may be other rows of the KV: softmax_columns() hides their scores.
INLINE void score_columns(const bf16 *queries, const bf16 *const *keys, int begin, int end, int head_dim, int ahead,
                          float *scores) {
    for (int j = begin; j < end; j += DEPTH) {
        for (int i = j; ahead && i < j + DEPTH; i++) prefetch(keys[i + ahead], head_dim);
        amx::zero<true>();
        for (int d = 0; d < head_dim; d += DEPTH)
            amx::multiply<true>(keys[j] + d, keys[j + W] + d, head_dim * sizeof(bf16), queries + d * COLUMNS);
        float *to = scores + j * W, *others = to + CHUNK * W;
        _tile_stored(0, to, 64);
        _tile_stored(1, others, 64);
        _tile_stored(2, to + W * W, 64);
        _tile_stored(3, others + W * W, 64);
    }
    amx::written();
}

// Softmax of W rows over keys [begin, end), before division by the sum: exponentials of scores times `factor` -> bf16
// [key / DEPTH][2][DEPTH / 2][W rows][2], innermost a pair of keys; 0 for keys that a row does not see. Row r sees keys
// [low[r], high[r]).
INLINE void softmax_columns(float *scores, int begin, int end, const int *low, const int *high, float factor, float cap,
                            float *row_max, float *row_sum, bf16 *weights) {
    const vi lows = read<vi>(low), highs = read<vi>(high);
    auto hide = [&](int from, int to) {
        for (int j = from; j < to; j++)
            store(scores + j * W, (lows <= j) & (highs > j) ? load(scores + j * W) : splat(NEG_INF));
    };
    if (cap) cap_scores(scores, begin * W, end * W, factor, cap), factor = 1;
    hide(begin, std::min(end, *std::max_element(low, low + W)));
    hide(std::max(begin, *std::min_element(high, high + W)), end);
    vf m[4] = {splat(NEG_INF), splat(NEG_INF), splat(NEG_INF), splat(NEG_INF)}, sums[W] = {};
    for (int j = begin; j < end; j += 4)
        for (int i = 0; i < 4; i++) m[i] = max(m[i], load(scores + (j + i) * W));
    const vf by = splat(factor), top = max(max(m[0], m[1]), max(m[2], m[3])) * by, none = splat(NEG_INF);
    const vf seen = top == none ? vf{} : top;
    for (int j = begin; j < end; j += 2) {
        const float *p = scores + j * W;
        const pair e = {weights_of<true>(load(p), by, seen), weights_of<true>(load(p + W), by, seen)};
        sums[j % W] += e.a, sums[j % W + 1] += e.b;
        write(weights + j / DEPTH * 2 * SIZE + j % DEPTH * W, side_by_side(e));
    }
    for (int step = W / 2; step; step /= 2) // the order of sum_lanes(), hence the same bits
        for (int i = 0; i < step; i++) sums[i] += sums[i + step];
    store(row_max, top);
    store(row_sum, sums[0]);
}

// DEPTH dimensions of values j and j + 1, interleaved; 0 for keys outside [low, high).
struct Pairs {
    vu even, odd; // dimensions
};
INLINE Pairs pairs_of(const bf16 *const *values, int j, int low, int high, int d, int ahead) {
    auto value = [&](int j) __attribute__((always_inline)) {
        if (j < low || j >= high) return vu{};
        if (ahead) prefetch_line(values[j + ahead] + d);
        return read<vu>(values[j] + d);
    };
    const vu a = value(j), b = value(j + 1);
    return {(a & 0xffff) | (b << 16), (a >> 16) | (b & 0xffff0000)};
}

// Transposes the values of keys [low, high) -> [head_dim / DEPTH][CHUNK / DEPTH][2][DEPTH / 2 dimensions][DEPTH keys],
// even dimensions before odd ones. Other keys in the same DEPTH are 0.
INLINE void transpose_values(const bf16 *const *values, int low, int high, int head_dim, int ahead, bf16 *out) {
    for (int first = low / DEPTH * DEPTH; first < high; first += DEPTH)
        for (int d = 0; d < head_dim; d += DEPTH) {
            bf16 *to = out + d * CHUNK + first / DEPTH * 2 * SIZE;
            vf even[W], odd[W];
            for (int i = 0; i < W; i++) {
                const Pairs p = pairs_of(values, first + 2 * i, low, high, d, ahead);
                even[i] = (vf)p.even, odd[i] = (vf)p.odd;
            }
            transpose(even);
            transpose(odd);
            for (int i = 0; i < W; i++) write(to + i * DEPTH, even[i]), write(to + SIZE + i * DEPTH, odd[i]);
        }
    amx::written();
}

// Weighted sums of transposed values over `steps` times DEPTH keys, for COLUMNS rows -> acc [head_dim][COLUMNS], in
// each DEPTH dimensions the even ones first.
INLINE void weigh_columns(const bf16 *weights, const bf16 *values, int steps, int head_dim, float *acc) {
    amx::written();
    for (int d = 0; d < head_dim; d += DEPTH) {
        const bf16 *some = values + d * CHUNK;
        amx::zero<true>();
        for (int step = 0; step < steps; step++, some += 2 * SIZE)
            amx::multiply<true>(some, some + SIZE, 64, weights + step * 2 * SIZE);
        amx::store_sums<true>((float(*)[COLUMNS])(acc + d * COLUMNS));
    }
}

// Transposes W rows of `acc` [head_dim][COLUMNS] back and stores them, times `factors`, at out(row).
template <class Out>
INLINE void store_columns(int num_rows, const float *acc, vf factors, int head_dim, Out out) {
    for (int d = 0; d < head_dim; d += DEPTH, acc += DEPTH * COLUMNS) {
        vf even[W], odd[W];
        for (int i = 0; i < W; i++)
            even[i] = load(acc + i * COLUMNS) * factors, odd[i] = load(acc + (W + i) * COLUMNS) * factors;
        transpose(even);
        transpose(odd);
        for (int r = 0; r < num_rows; r++) store_pair(out(r) + d, {even[r], odd[r]});
    }
}

// Scores W rows against the W keys from `key` on -> [W keys][W rows].
INLINE void score_strip(const bf16 *queries, const bf16 *key, int head_dim, float *scores) {
    _tile_zero(0);
    for (int d = 0; d < head_dim; d += DEPTH) {
        _tile_loadd(4, key + d, head_dim * sizeof(bf16));
        _tile_loadd(6, queries + d * COLUMNS, 64);
        _tile_dpbf16ps(0, 4, 6);
    }
    _tile_stored(0, scores, 64);
    amx::written();
}

// The same for up to FEW rows -> [row][CHUNK].
INLINE void score_few(const bf16 *queries, const bf16 *key, int head_dim, int num_rows, float *scores) {
    alignas(64) float sums[W][W];
    score_strip(queries, key, head_dim, sums[0]);
    vf of_row[W];
    transpose_quads([&](int key) { return sums[key]; }, of_row);
#pragma GCC unroll 4
    for (int r = 0; r < FEW; r++)
        if (r < num_rows) store(scores + r * CHUNK, of_row[r]);
}

// Interleaves the values of keys [low, high) -> [head_dim / DEPTH][CHUNK / DEPTH][2][DEPTH / 2][W][2], innermost a pair
// of keys, even dimensions before odd ones. Other keys in the same DEPTH are 0.
INLINE void pair_values(const bf16 *const *values, int low, int high, int head_dim, int ahead, bf16 *out) {
    for (int first = low / DEPTH * DEPTH; first < high; first += DEPTH)
        for (int d = 0; d < head_dim; d += DEPTH) {
            bf16 *to = out + d * CHUNK + first / DEPTH * 2 * SIZE;
            for (int i = 0; i < W; i++) {
                const Pairs p = pairs_of(values, first + 2 * i, low, high, d, ahead);
                write(to + i * DEPTH, p.even);
                write(to + SIZE + i * DEPTH, p.odd);
            }
        }
    amx::written();
}

// Weighted sums of interleaved values over `steps` times DEPTH keys, for up to W rows -> acc [row][acc_stride], in each
// DEPTH dimensions the even ones first. `weights` are as softmax_columns() gives them, and are transposed in place.
INLINE void weigh_strip(bf16 *weights, const bf16 *values, int steps, int num_rows, int head_dim, float *acc,
                        int acc_stride) {
    alignas(64) float sums[W][DEPTH];
    for (bf16 *tile = weights; tile < weights + steps * 2 * SIZE; tile += 2 * SIZE) {
        vf pairs[W];
        for (int i = 0; i < W; i++) pairs[i] = read<vf>(tile + i * DEPTH);
        transpose(pairs);
        for (int i = 0; i < W; i++) write(tile + i * DEPTH, pairs[i]);
    }
    amx::written();
    for (int d = 0; d < head_dim; d += DEPTH) {
        amx::zero<false>();
        for (int step = 0; step < steps; step++)
            amx::multiply<false>(weights + step * 2 * SIZE, nullptr, 64, values + d * CHUNK + step * 2 * SIZE);
        amx::store_sums<false>(sums);
        amx::written();
        for (int r = 0; r < num_rows; r++) memcpy(acc + r * acc_stride + d, sums[r], sizeof *sums);
    }
}

// Weighted sums of values for N rows without tiles, reading values in place -> acc [row][acc_stride], in each DEPTH
// dimensions the even ones first. weights: bf16 values, widened to fp32.
template <int N>
INLINE void weigh_few(const float *weights, int stride, const bf16 *const *values, int low, int high, int head_dim,
                      int ahead, float *acc, int acc_stride) {
    for (int r = 0; r < N; r++) std::fill(acc + r * acc_stride, acc + r * acc_stride + head_dim, 0.0f);
    for (int step = low / DEPTH * DEPTH; step < high; step += DEPTH)
        for (int d = 0; d < head_dim; d += DEPTH) {
            pair even[N] = {}, odd[N] = {};
            auto add = [&](int j, pair (&to)[N]) __attribute__((always_inline)) {
                if (j < low || j >= high) return;
                if (ahead) prefetch_line(values[j + ahead] + d);
                const pair v = load_pair(values[j] + d);
#pragma GCC unroll 4
                for (int r = 0; r < N; r++) {
                    const vf w = splat(weights[r * stride + j]);
                    to[r] = {fma(w, v.a, to[r].a), fma(w, v.b, to[r].b)};
                }
            };
            for (int j = step; j < step + DEPTH; j += 2) add(j, even), add(j + 1, odd);
            for (int r = 0; r < N; r++) {
                const pair before = load_pair(acc + r * acc_stride + d);
                store_pair(acc + r * acc_stride + d,
                           {before.a + (even[r].a + odd[r].a), before.b + (even[r].b + odd[r].b)});
            }
        }
}

template <int N, class... A> INLINE void weigh_few(int num_rows, A... arguments) {
    if (num_rows == N) weigh_few<N>(arguments...);
    else if constexpr (N > 1) weigh_few<N - 1>(num_rows, arguments...);
}

} // namespace attention
#endif
