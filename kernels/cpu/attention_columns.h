// Attention of a tile of query rows on AMX: one way for more than W rows, which are columns, and two for fewer.
//
// States in columns are padded to whole_rows(); what the padding holds is undefined.
#pragma once

#if defined(__AMX_BF16__)
#include "attention_amx.h"
#include "attention_tile.h"

namespace attention {

INLINE bool in_columns(const Call<bf16> &c, int64_t num_rows) { return c.in_tiles() && num_rows > W; }

// Computes the state of a chunk's keys [low, high) for up to FEW rows.
INLINE void run_few(const Call<bf16> &c, const Tile &t, const bf16 *const *values, int low, int high, Work<bf16> &work,
                    State state) {
    const int head_dim = int(c.head_dim), ahead = c.ahead();
    for (int j = low / W * W; j < high; j += W) {
        for (int i = j; i < j + W; i++) prefetch(work.rows[i + ahead], head_dim);
        score_few((bf16 *)work.q, work.rows[j], head_dim, t.num_rows, work.scores + j);
    }
    const float factor = c.softcap ? 1 : work.factor;
    for (int r = 0; r < t.num_rows; r++) {
        float *scores = work.scores + r * CHUNK;
        if (c.softcap) cap_scores(scores, work.low[r], work.high[r], work.factor, c.softcap);
        softmax_row<true>(scores, work.low[r], work.high[r], factor, state.max[r], state.sum[r],
                          [=](int j, vf e) { store(scores + j, to_bf16(e)); });
    }
    weigh_few<FEW>(t.num_rows, work.scores, CHUNK, values, low, high, head_dim, ahead, state.acc,
                      int(c.padded_dim()));
}

// The same for up to W rows, which do not repay transposing the values.
INLINE void run_strip(const Call<bf16> &c, const Tile &t, const bf16 *const *values, int low, int high,
                      Work<bf16> &work, State state) {
    const int head_dim = int(c.head_dim), ahead = c.ahead(), begin = low / DEPTH * DEPTH;
    const int end = (high + DEPTH - 1) / DEPTH * DEPTH;
    bf16 *weights = scratch<6, bf16>(COLUMNS * CHUNK), *pairs = scratch<7, bf16>(CHUNK * head_dim);
    for (int j = low / W * W; j < high; j += W) {
        for (int i = j; i < j + W; i++) prefetch(work.rows[i + ahead], head_dim);
        score_strip((bf16 *)work.q, work.rows[j], head_dim, work.scores + j * W);
    }
    float max[W], sum[W];
    softmax_columns(work.scores, begin, end, work.low, work.high, work.factor, c.softcap, max, sum, weights);
    std::copy(max, max + t.num_rows, state.max);
    std::copy(sum, sum + t.num_rows, state.sum);
    pair_values(values, low, high, head_dim, ahead, pairs);
    weigh_strip(weights + begin * COLUMNS, pairs + begin * DEPTH, (end - begin) / DEPTH, t.num_rows, head_dim,
                state.acc, int(c.padded_dim()));
}

// The same for more rows.
INLINE void run_columns(const Call<bf16> &c, const Tile &t, const bf16 *const *values, int low, int high,
                        Work<bf16> &work, State state) {
    const int head_dim = int(c.head_dim), ahead = c.ahead(), begin = low / DEPTH * DEPTH;
    bf16 *weights = scratch<6, bf16>(COLUMNS * CHUNK), *transposed = scratch<7, bf16>(CHUNK * head_dim);
    for (int r = (t.num_rows - 1) / COLUMNS * COLUMNS, last = r; r >= 0; r -= COLUMNS) { // the last see the most keys
        const int end = (work.high[std::min(r + COLUMNS, t.num_rows) - 1] + DEPTH - 1) / DEPTH * DEPTH;
        score_columns((const bf16 *)work.q + r * head_dim, work.rows, begin, end, head_dim, r == last ? ahead : 0,
                      work.scores);
        for (int strip = 0; strip < 2 && r + strip * W < t.num_rows; strip++) {
            const int first = r + strip * W;
            softmax_columns(work.scores + strip * CHUNK * W, begin, end, work.low + first, work.high + first,
                            work.factor, c.softcap, state.max + first, state.sum + first, weights + strip * SIZE);
        }
        if (r == last) transpose_values(values, low, high, head_dim, ahead, transposed);
        weigh_columns(weights + begin * COLUMNS, transposed + begin * DEPTH, (end - begin) / DEPTH, head_dim,
                      state.acc + r * head_dim);
    }
}

INLINE void run_in_tiles(const Call<bf16> &c, const Tile &t, const bf16 *const *values, int low, int high,
                         Work<bf16> &work, State state) {
    if (t.num_rows <= FEW) run_few(c, t, values, low, high, work, state);
    else if (t.num_rows <= W) run_strip(c, t, values, low, high, work, state);
    else run_columns(c, t, values, low, high, work, state);
}

INLINE int64_t column_at(const Call<bf16> &c, int row) { return row / COLUMNS * COLUMNS * c.head_dim + row % COLUMNS; }

// merge() for states in columns.
INLINE void merge_columns(const Call<bf16> &c, State into, State from, int num_rows) {
    for (int r = 0; r < num_rows; r += W) {
        const vf a = load(into.max + r), b = load(from.max + r), none = splat(NEG_INF), m = a > b ? a : b;
        const vi is_new = a == none, is_old = b == none;
        const vf keep = exp2(a - m), add = exp2(b - m);
        auto merge = [&](float *p, const float *q) {
            const vf old = load(p), other = load(q), both = fma(old, keep, other * add);
            store(p, is_new ? other : is_old ? old : both);
        };
        merge(into.sum + r, from.sum + r);
        store(into.max + r, m);
        float *acc = into.acc + column_at(c, r);
        const float *other = from.acc + column_at(c, r);
        for (int64_t d = 0; d < c.head_dim * COLUMNS; d += COLUMNS) merge(acc + d, other + d);
    }
}

// finish() for a state in columns.
INLINE void finish_columns(const Call<bf16> &c, const Tile &t, State state) {
    for (int r = 0; r < t.num_rows; r += W) {
        const int n = std::min(W, t.num_rows - r);
        vf sinks = splat(NEG_INF);
        for (int i = 0; i < n; i++) sinks[i] = sink_of(c, t, r + i);
        const vf sums = load(state.sum + r) + exp2(sinks - load(state.max + r));
        store_columns(n, state.acc + column_at(c, r), splat(1) / sums, int(c.head_dim),
                      [&](int i) { return c.out + place_of(c, t, r + i) * c.head_dim; });
    }
}

} // namespace attention
#endif
