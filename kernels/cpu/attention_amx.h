// Scores and weighted sums of values by tiles of AMX, for a chunk of keys and some query rows of bf16.
//
// Queries and keys stay as they are; weights are rounded to bf16, as values are. A tile takes 16 keys from where they
// lie. What belongs to no row is 0, and 0 adds nothing: the bits of a row do not depend on which rows and keys come
// with it.
#pragma once

#if defined(__AMX_BF16__)
#include <algorithm>

#include "tiles.h"

namespace attention {

constexpr int DEPTH = 32;              // dimensions or keys that are multiplied at once
constexpr int SIZE = amx::ROWS * DEPTH; // elements of a tile

// Rows of queries -> [16 rows][step][DEPTH / 2][row][2], in pairs of dimensions. query(row): its address.
template <class Query> INLINE void pack_queries(int num_rows, int head_dim, Query query, bf16 *out) {
    const int steps = head_dim / DEPTH, padded = (num_rows + amx::ROWS - 1) / amx::ROWS * amx::ROWS;
    for (int r = 0; r < padded; r++) {
        uint32_t *to = (uint32_t *)(out + r / amx::ROWS * steps * SIZE) + r % amx::ROWS;
        for (int d = 0; d < head_dim; d += 2) {
            uint32_t two = 0;
            if (r < num_rows) memcpy(&two, query(r) + d, sizeof two);
            to[d / 2 * amx::ROWS] = two;
        }
    }
    amx::written();
}

template <int STEP = 1> INLINE void transpose(vf (&v)[W]) {
    vi low, high; // of two rows: blocks of STEP lanes, in turn from one and from the other
    for (int i = 0; i < W; i++) {
        const bool second = i / STEP % 2;
        low[i] = second ? i - STEP + W : i;
        high[i] = second ? i + W : i + STEP;
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) {
        if (i / STEP % 2) continue;
        const vf a = v[i], b = v[i + STEP];
        v[i] = __builtin_shuffle(a, b, low);
        v[i + STEP] = __builtin_shuffle(a, b, high);
    }
    if constexpr (STEP * 2 < W) transpose<STEP * 2>(v);
}

// scores[row * stride], for 16 keys from `key` on, times `factor`, of up to 16 rows.
INLINE void score_tile(const bf16 *queries, const bf16 *key, int head_dim, int num_rows, float factor, float *scores,
                       int stride) {
    alignas(64) float sums[W][W];
    _tile_zero(0);
    for (int d = 0; d < head_dim; d += DEPTH) {
        _tile_loadd(4, key + d, head_dim * sizeof(bf16));
        _tile_loadd(6, queries + d / DEPTH * SIZE, 64);
        _tile_dpbf16ps(0, 4, 6);
    }
    _tile_stored(0, sums, 64);
    vf of_row[W];
    for (int i = 0; i < W; i++) of_row[i] = load(sums[i]);
    transpose(of_row);
#pragma GCC unroll 16
    for (int r = 0; r < W; r++)
        if (r < num_rows) store(scores + r * stride, of_row[r] * splat(factor));
}

// Values of keys [low, high) -> [head_dim / DEPTH][keys / DEPTH][2][DEPTH / 2][W][2]: pairs of keys, first of even, then
// of odd dimensions. Keys begin at a multiple of DEPTH; those beside are 0.
INLINE void pack_values(const bf16 *const *values, int low, int high, int head_dim, int ahead, bf16 *out) {
    const int begin = low / DEPTH * DEPTH, end = (high + DEPTH - 1) / DEPTH * DEPTH, steps = (end - begin) / DEPTH;
    const vu zeros = {};
    for (int j = begin; j < end; j += 2) {
        bf16 *to = out + (j - begin) / DEPTH * 2 * SIZE + j % DEPTH * W;
        for (int d = 0; d < head_dim; d += DEPTH, to += steps * 2 * SIZE) {
            const bool first = j >= low && j < high, second = j + 1 >= low && j + 1 < high;
            const vu a = first ? read<vu>(values[j] + d) : zeros, b = second ? read<vu>(values[j + 1] + d) : zeros;
            if (first && ahead) __builtin_prefetch(values[j + ahead] + d);
            if (second && ahead) __builtin_prefetch(values[j + 1 + ahead] + d);
            write(to, (a & 0xffff) | (b << 16));
            write(to + SIZE, (a >> 16) | (b & 0xffff0000));
        }
    }
}

// Weighted sums of values for up to 16 rows: weights [row][stride], values of `steps` DEPTHs -> acc [row][acc_stride],
// of each DEPTH dimensions first the even ones.
INLINE void weigh_tile(const bf16 *weights, int stride, const bf16 *values, int steps, int num_rows, int head_dim,
                       float *acc, int acc_stride) {
    alignas(64) float sums[amx::ROWS][DEPTH];
    for (int d = 0; d < head_dim; d += DEPTH) {
        _tile_zero(0);
        _tile_zero(1);
        for (int step = 0; step < steps; step++, values += 2 * SIZE) {
            _tile_loadd(4, weights + step * DEPTH, stride * sizeof(bf16));
            _tile_loadd(6, values, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, values + SIZE, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        _tile_stored(0, sums[0], sizeof *sums);
        _tile_stored(1, sums[0] + W, sizeof *sums);
        for (int r = 0; r < num_rows; r++)
            memcpy(acc + r * acc_stride + d, sums[r], sizeof *sums);
    }
}

} // namespace attention
#endif
