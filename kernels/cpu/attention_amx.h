// Scores and weighted sums of values by tiles of AMX, for a chunk of keys and some query rows of bf16.
//
// Queries and keys stay as they are; weights are rounded to bf16, as values are. A tile takes 16 keys from where they
// lie. What belongs to no row is 0, and 0 adds nothing: the bits of a row do not depend on which rows and keys come
// with it. Few rows, as decode has, weigh values without tiles, to the same bits (see Scope): laying values out for
// tiles would cost more than it saves.
#pragma once

#if defined(__AMX_BF16__)
#include <algorithm>

#include "attention_fused.h"
#include "pairs.h"
#include "tiles.h"

namespace attention {

constexpr int DEPTH = 32; // dimensions or keys that are multiplied at once
constexpr int FEW = 4;    // query rows that are weighed without tiles
using amx::SIZE;

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

// Rows of queries -> [16 rows][step][DEPTH / 2][row][2], in pairs of dimensions. query(row): its address.
template <class Query> INLINE void pack_queries(int num_rows, int head_dim, Query query, bf16 *out) {
    for (int first = 0; first < num_rows; first += amx::ROWS) {
        const bf16 *rows[amx::ROWS];
        const int n = std::min(amx::ROWS, num_rows - first);
        for (int r = 0; r < n; r++) rows[r] = query(first + r);
        for (int d = 0; d < head_dim; d += DEPTH, out += SIZE) {
            vf pairs[W];
            for (int r = 0; r < W; r++) pairs[r] = r < n ? read<vf>(rows[r] + d) : vf{};
            transpose(pairs);
            for (int i = 0; i < W; i++) write(out + i * DEPTH, pairs[i]);
        }
    }
    amx::written();
}

// Lane i of rows r < 4 is lane r of v(i), the others undefined.
template <class At> INLINE void transpose_quads(At at, vf (&rows)[W]) {
    vf quads[4];
    for (int i = 0; i < 4; i++) quads[i] = (vf)gather_quads([&](int j) { return at(4 * i + j); });
    vi even, odd, low, high; // of two vectors: lanes 0 and 1 of each quad; lanes 2 and 3; halves
    for (int i = 0; i < W; i++) {
        even[i] = i % 8 * 4 + i / 8, odd[i] = even[i] + 2;
        low[i] = i % 8 + i / 8 * W, high[i] = low[i] + 8;
    }
    const vf a = __builtin_shuffle(quads[0], quads[1], even), b = __builtin_shuffle(quads[2], quads[3], even);
    const vf c = __builtin_shuffle(quads[0], quads[1], odd), d = __builtin_shuffle(quads[2], quads[3], odd);
    rows[0] = __builtin_shuffle(a, b, low), rows[1] = __builtin_shuffle(a, b, high);
    rows[2] = __builtin_shuffle(c, d, low), rows[3] = __builtin_shuffle(c, d, high);
}

// scores[row * stride], for 16 keys of which tile 0 has the sums, times `factor`, of up to 16 rows.
INLINE void store_scores(int num_rows, float factor, float *scores, int stride) {
    alignas(64) float sums[W][W];
    _tile_stored(0, sums, 64);
    vf of_row[W];
    if (num_rows <= 4) transpose_quads([&](int key) { return sums[key]; }, of_row);
    else {
        for (int i = 0; i < W; i++) of_row[i] = load(sums[i]);
        transpose(of_row);
    }
#pragma GCC unroll 16
    for (int r = 0; r < W; r++)
        if (r < num_rows) store(scores + r * stride, of_row[r] * splat(factor));
}

// The same for up to 48 rows by 16 keys from `key` on.
INLINE void score_keys(const bf16 *queries, const bf16 *key, int head_dim, int num_rows, float factor, float *scores,
                       int stride) {
    if (head_dim == 2 * DEPTH) {
        _tile_loadd(4, key, 2 * DEPTH * sizeof(bf16));
        _tile_loadd(5, key + DEPTH, 2 * DEPTH * sizeof(bf16));
    }
    for (int r = 0; r < num_rows; r += W, queries += W * head_dim, scores += W * stride) {
        _tile_zero(0);
        if (head_dim == 2 * DEPTH) {
            _tile_loadd(6, queries, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, queries + SIZE, 64);
            _tile_dpbf16ps(0, 5, 7);
        } else
            for (int d = 0; d < head_dim; d += DEPTH) {
                _tile_loadd(4, key + d, head_dim * sizeof(bf16));
                _tile_loadd(6, queries + d / DEPTH * SIZE, 64);
                _tile_dpbf16ps(0, 4, 6);
            }
        store_scores(std::min(W, num_rows - r), factor, scores, stride);
    }
}

// Values of keys [low, high) -> [head_dim / DEPTH][keys / DEPTH][2][DEPTH / 2][W][2]: pairs of keys, first of even,
// then of odd dimensions. Keys begin at a multiple of DEPTH; those beside are 0.
INLINE void pack_values(const bf16 *const *values, int low, int high, int head_dim, int ahead, bf16 *out) {
    const int begin = low / DEPTH * DEPTH, end = (high + DEPTH - 1) / DEPTH * DEPTH, steps = (end - begin) / DEPTH;
    const vu zeros = {};
    for (int j = begin; j < end; j += 2) {
        bf16 *to = out + (j - begin) / DEPTH * 2 * SIZE + j % DEPTH * W;
        for (int d = 0; d < head_dim; d += DEPTH, to += steps * 2 * SIZE) {
            const bool first = j >= low && j < high, second = j + 1 >= low && j + 1 < high;
            const vu a = first ? read<vu>(values[j] + d) : zeros, b = second ? read<vu>(values[j + 1] + d) : zeros;
            if (first && ahead) prefetch_line(values[j + ahead] + d);
            if (second && ahead) prefetch_line(values[j + 1 + ahead] + d);
            write(to, (a & 0xffff) | (b << 16));
            write(to + SIZE, (a >> 16) | (b & 0xffff0000));
        }
    }
}

// Weighted sums of values for up to 16 rows, or for 32 (TWO): weights [row][stride], values of `steps` DEPTHs ->
// acc [row][acc_stride], of each DEPTH dimensions first the even ones.
template <bool TWO>
INLINE void weigh_tiles(const bf16 *weights, int stride, const bf16 *values, int steps, int num_rows, int head_dim,
                        float *acc, int acc_stride) {
    alignas(64) float sums[(1 + TWO) * W][DEPTH];
    for (int d = 0; d < head_dim; d += DEPTH) {
        amx::zero<TWO>();
        for (int step = 0; step < steps; step++, values += 2 * SIZE)
            amx::multiply<TWO>(weights + step * DEPTH, weights + W * stride + step * DEPTH, stride * sizeof(bf16),
                               values);
        amx::store_sums<TWO>(sums);
        for (int r = 0; r < num_rows; r++) memcpy(acc + r * acc_stride + d, sums[r], sizeof *sums);
    }
}

// The same for N rows without tiles, from values where they lie. weights: of bf16, widened.
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
