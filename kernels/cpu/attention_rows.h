// Attention of a tile of query rows: on AMX where the shapes allow it, else with what is in attention_scores.h and
// attention_values.h.
#pragma once

#include "attention_columns.h"
#include "attention_tile.h"
#include "attention_values.h"

namespace attention {

// Merges the state `from` into `into`, whose keys come before.
template <class T> INLINE void merge(const Call<T> &c, State into, State from, int rows) {
    if constexpr (IN_TILES<T>)
        if (in_columns(c, rows)) return merge_columns(c, into, from, rows);
    const int64_t padded_dim = c.padded_dim();
    for (int r = 0; r < rows; r++) {
        float *a = into.acc + r * padded_dim;
        const float *b = from.acc + r * padded_dim;
        if (into.max[r] == NEG_INF) {
            into.max[r] = from.max[r], into.sum[r] = from.sum[r];
            memcpy(a, b, padded_dim * sizeof(float));
        } else if (from.max[r] != NEG_INF) {
            float m = into.max[r] > from.max[r] ? into.max[r] : from.max[r];
            vf keep = exp2(splat(into.max[r] - m)), add = exp2(splat(from.max[r] - m));
            into.max[r] = m;
            into.sum[r] = fma(splat(into.sum[r]), keep, splat(from.sum[r]) * add)[0];
            for (int64_t d = 0; d < padded_dim; d += W) store(a + d, fma(load(a + d), keep, load(b + d) * add));
        }
    }
}

// Computes the state of one chunk for all rows of a tile.
template <class T> void run_chunk(const Call<T> &c, const Tile &t, int chunk, Next next, Work<T> &work, State state) {
    const int64_t start = int64_t(chunk) * CHUNK;
    const int head_dim = int(c.head_dim), stride = int(c.padded_dim()), ahead = c.ahead();
    int low = CHUNK, high = 0;
    for (int r = 0; r < t.num_rows; r++) {
        const int64_t seen = work.position[r] + 1 - start;
        work.high[r] = int(std::clamp<int64_t>(seen, 0, CHUNK));
        work.low[r] = c.window ? int(std::clamp<int64_t>(seen - c.window, 0, CHUNK)) : 0;
        low = std::min(low, work.low[r]), high = std::max(high, work.high[r]);
    }
    for (int r = t.num_rows; r % W; r++) work.low[r] = work.low[r - 1], work.high[r] = work.high[r - 1];
    const T *const *values = work.rows + locate(c, t, start, high, next, work);
    if constexpr (IN_TILES<T>)
        if (c.in_tiles()) return run_in_tiles(c, t, values, low, high, work, state);
    for (int j = low / W * W; j < high; j += W) {
        if (t.num_rows <= DIRECT && head_dim % 8 == 0) {
            score<Keys<T>, DIRECT>(t.num_rows, work.q, stride, {work.rows + j, ahead}, head_dim, work.scores + j);
            continue;
        }
        for (int i = j; i < j + W; i++) prefetch(work.rows[i + ahead], head_dim);
        widen(work.rows + j, head_dim, work.keys);
        for (int r = 0; r < t.num_rows; r += SCORED) {
            const int n = std::min(SCORED, t.num_rows - r);
            if (work.high[r + n - 1] > j)
                score<WidenedKeys<T>, SCORED>(n, work.q + r * stride, stride, {work.keys}, head_dim,
                                              work.scores + r * CHUNK + j);
        }
    }
    const float in_scores = IN_PAIRS<T> ? work.factor : 1, in_weights = c.softcap ? 1 : in_scores;
    const int times = (t.num_rows + WEIGHED - 1) / WEIGHED;
    for (int i = 0; i < times; i++) {
        const int first = t.num_rows * i / times, end = t.num_rows * (i + 1) / times;
        for (int r = first; r < end; r++) {
            float *scores = work.scores + r * CHUNK;
            if (c.softcap) cap_scores(scores, work.low[r], work.high[r], in_scores, c.softcap);
            softmax_row<IN_PAIRS<T>>(scores, work.low[r], work.high[r], in_weights, state.max[r], state.sum[r],
                                     [=](int j, vf e) {
                                         if constexpr (IN_PAIRS<T>) store((bf16 *)scores + j, e);
                                         else store(scores + j, e);
                                     });
        }
        const int low = work.low[first], high = work.high[end - 1];
        for (int j = low, then; j < high || j == low; j = then) {
            then = (j + ahead) / KEYS_AT_ONCE<T> * KEYS_AT_ONCE<T>;
            weigh(end - first, work.scores + first * CHUNK, values, j, std::min(then, high), head_dim, i ? 0 : ahead,
                  state.acc + first * stride, stride, j == low);
        }
    }
}

template <class T> void prepare(const Call<T> &c, const Tile &t, Work<T> &work) {
    const int64_t stride = c.padded_dim();
    work.scores = scratch<0>(TILE * CHUNK + TALL * stride + W * stride);
    work.q = work.scores + TILE * CHUNK, work.keys = work.q + TALL * stride;
    work.factor = c.softcap ? c.scale / c.softcap * 2 * LOG2_E : c.scale * LOG2_E;
    const int64_t first_query = c.seq_lens[t.seq] - (c.query_start[t.seq + 1] - c.query_start[t.seq]);
    for (int r = 0; r < t.num_rows; r++) work.position[r] = first_query + (t.row + r) / c.group();
    auto query = [&](int r) { return c.q + place_of(c, t, r) * c.head_dim; };
    if constexpr (IN_TILES<T>)
        if (c.in_tiles()) return pack_queries(t.num_rows, int(c.head_dim), query, (bf16 *)work.q);
    for (int r = 0; r < t.num_rows; r++) {
        const T *q = query(r);
        float *to = work.q + r * stride, lanes[W];
        std::fill(to, to + stride, 0.0f);
        if constexpr (IN_PAIRS<T>) {
            memcpy(to, q, c.head_dim * sizeof(T));
            continue;
        }
        for (int64_t d = 0; d < c.head_dim; d += W) {
            const int n = int(std::min<int64_t>(W, c.head_dim - d));
            store(lanes, load_some(q + d, n) * splat(work.factor));
            for (int i = 0; i < n; i++) to[(d + i) / 8 * 8 + place_in_quads((d + i) % 8, q)] = lanes[i];
        }
    }
}

template <class T> void finish(const Call<T> &c, const Tile &t, State state) {
    if constexpr (IN_TILES<T>)
        if (in_columns(c, t.num_rows)) return finish_columns(c, t, state);
    for (int r = 0; r < t.num_rows; r++) {
        T *out = c.out + place_of(c, t, r) * c.head_dim;
        const float *acc = state.acc + r * c.padded_dim();
        const vf inverse = splat(1.0f / (state.sum[r] + exp2(splat(sink_of(c, t, r) - state.max[r]))[0]));
        for (int64_t d = 0; d < c.head_dim; d += 2 * W) {
            pair v = {load(acc + d) * inverse, load(acc + d + W) * inverse};
            if (d + 2 * W <= c.head_dim) store_pair(out + d, v);
            else store_pair(out + d, v, int(c.head_dim - d));
        }
    }
}

} // namespace attention
