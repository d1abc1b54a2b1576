// A tile of query rows of paged attention: where its keys lie, the states of its chunks, and what becomes of them.
#pragma once

#include <algorithm>
#include <type_traits>

#include "attention_amx.h"
#include "attention_fused.h"
#include "parallel.h"
#include "pairs.h"

namespace attention {

constexpr int TILE = 48;  // query rows
constexpr int DIRECT = 4; // query rows up to which keys are widened as they are scored

// What a thread needs to have, and whether rows of T are multiplied by tiles of AMX where the shape allows it.
#if defined(__AMX_BF16__)
template <class T> constexpr bool IN_TILES = std::is_same_v<T, bf16>;
template <class T> using Scope = std::conditional_t<IN_TILES<T>, amx::Scope, NoScope>;
#else
template <class T> constexpr bool IN_TILES = false;
template <class T> using Scope = NoScope;
#endif

template <class T> struct Call {
    const T *q;    // [num_tokens, num_heads, head_dim]
    const T *kv;   // [num_blocks, planes, num_kv_heads, block_size, head_dim], block_stride elements between blocks
    T *out;        // as q
    const int32_t *query_start, *seq_lens, *block_tables;
    int64_t num_seqs, max_blocks, num_heads, num_kv_heads, planes, head_dim, block_size, block_stride;
    float scale, softcap; // no cap is 0
    int64_t window;       // all is 0
    const float *sinks;   // [num_heads] or null
    int64_t group() const { return num_heads / num_kv_heads; }
    int64_t padded_dim() const { return (head_dim + 2 * W - 1) / (2 * W) * (2 * W); }
    bool in_tiles() const { return IN_TILES<T> && head_dim % 32 == 0 && block_size % 16 == 0; }
    int ahead() const { return std::clamp<int>(AHEAD_BYTES / sizeof(T) / head_dim, 1, CHUNK); } // in keys
};

// A tile: rows [row, row + num_rows) of those of one sequence and KV head, where row r is query r / group, head
// r % group of the KV head's; and the chunks [chunk, end_chunk) that it sees.
struct Tile {
    int32_t seq, kv_head, row, num_rows, chunk, end_chunk;
    int64_t partial; // where among the floats the states of its chunks go if they are merged later, else -1
};

// Softmax over some of the keys: maximum (base 2), sum, and the weighted sum of values, per row.
struct State {
    float *max, *sum, *acc; // [rows], [rows], [rows, padded_dim]
};

INLINE int64_t state_floats(int64_t rows, int64_t padded_dim) { return rows * (padded_dim + 2); }
INLINE State state_at(float *p, int64_t rows, int64_t padded_dim) {
    return {p + rows * padded_dim, p + rows * (padded_dim + 1), p};
}

// What a tile works with while it runs.
template <class T> struct Work {
    float *q;      // [num_rows, padded_dim], eight elements as load_quads() has them, times what turns scores into
                   // powers of 2 (or into what a soft cap takes); with tiles of AMX as pack_queries() has them
    float factor;  // that
    float *scores; // [num_rows, CHUNK]
    float *keys;   // W keys, widened: [padded_dim / 8][4] pairs
    const T *rows[3 * CHUNK]; // of a chunk's keys, then of its values, then what is to be fetched meanwhile
    int64_t position[TILE];    // of a row's token
    int low[TILE], high[TILE]; // the keys of the chunk that a row sees
};

INLINE void merge(State into, State from, int64_t rows, int64_t padded_dim) {
    for (int64_t r = 0; r < rows; r++) {
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

// Calls f(key) with the address of each key at positions [start, end).
template <class T, class F> INLINE void for_each_key(const Call<T> &c, const Tile &t, int64_t start, int64_t end, F f) {
    const int32_t *table = c.block_tables + t.seq * c.max_blocks;
    for (int64_t position = start; position < end;) {
        const int64_t offset = position % c.block_size, n = std::min(c.block_size - offset, end - position);
        const T *key = c.kv + table[position / c.block_size] * c.block_stride +
                       (t.kv_head * c.block_size + offset) * c.head_dim;
        for (int64_t i = 0; i < n; i++) f(key + i * c.head_dim);
        position += n;
    }
}

// What comes after a chunk: another one of the same tile or of the next.
struct Next {
    const Tile *tile; // null: nothing
    int chunk;
};

// Fills work.rows with the keys [start, start + n), padded to a multiple of W by the last one, which is read but not
// seen; with as many values; and with the first keys of the next chunk. Returns where the values are.
template <class T> INLINE int locate(const Call<T> &c, const Tile &t, int64_t start, int n, Next then, Work<T> &work) {
    const int64_t to_values = c.planes > 1 ? c.num_kv_heads * c.block_size * c.head_dim : 0;
    const int padded = (n + W - 1) / W * W, ahead = c.ahead();
    int j = 0;
    for_each_key(c, t, start, start + n, [&](const T *key) {
        work.rows[j] = key, work.rows[padded + j] = key + to_values;
        j++;
    });
    for (; j < padded; j++) work.rows[j] = work.rows[n - 1], work.rows[padded + j] = work.rows[padded + n - 1];
    const T **next = work.rows + padded + n;
    if (then.tile) {
        const int64_t from = int64_t(then.chunk) * CHUNK;
        const int64_t end = std::min<int64_t>(c.seq_lens[then.tile->seq], from + ahead);
        for_each_key(c, *then.tile, from, end, [&](const T *key) { *next++ = key; });
    }
    while (next < work.rows + padded + n + ahead) *next++ = work.rows[n - 1];
    return padded;
}

#if defined(__AMX_BF16__)
// run_chunk() by tiles of AMX, of a chunk's keys [low, high).
INLINE void run_in_tiles(const Call<bf16> &c, const Tile &t, const bf16 *const *values, int low, int high,
                         Work<bf16> &work, State state) {
    const int head_dim = int(c.head_dim), stride = int(c.padded_dim()), ahead = c.ahead();
    const bf16 *q = (const bf16 *)work.q;
    for (int j = low / W * W; j < high; j += W) {
        for (int i = j; i < j + W; i++) prefetch(work.rows[i + ahead], head_dim);
        int unseen = 0; // first rows that see none of these keys
        while (work.high[std::min(unseen + W, t.num_rows) - 1] <= j) unseen += W;
        score_keys(q + unseen * head_dim, work.rows[j], head_dim, t.num_rows - unseen, work.factor,
                   work.scores + unseen * CHUNK + j, CHUNK);
    }
    const int begin = low / DEPTH * DEPTH, steps = std::max(0, high - begin + DEPTH - 1) / DEPTH;
    bf16 *weights = scratch<6, bf16>(TILE * CHUNK), *packed = scratch<7, bf16>(CHUNK * head_dim);
    const bool few = t.num_rows <= FEW;
    for (int r = 0; r < t.num_rows; r++) {
        float *scores = work.scores + r * CHUNK;
        if (c.softcap) cap_scores(scores, work.low[r], work.high[r], c.softcap);
        softmax_row(scores, work.low[r], work.high[r], state.max[r], state.sum[r], [=](int j, vf e) {
            if (few) store(scores + j, to_bf16(e));
            else store(weights + r * CHUNK + j, e);
        });
    }
    if (few)
        return weigh_few<FEW>(t.num_rows, work.scores, CHUNK, values, low, high, head_dim, ahead, state.acc, stride);
    pack_values(values, low, high, head_dim, ahead, packed);
    amx::written();
    for (int r = 0; r < t.num_rows; r += 2 * W) {
        const int n = std::min(2 * W, t.num_rows - r);
        (n > W ? weigh_tiles<true> : weigh_tiles<false>)(weights + r * CHUNK + begin, CHUNK, packed, steps, n, head_dim,
                                                         state.acc + r * stride, stride);
    }
}
#endif

// State of one chunk for all rows of a tile.
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
    const T *const *values = work.rows + locate(c, t, start, high, next, work);
    if constexpr (IN_TILES<T>)
        if (c.in_tiles()) return run_in_tiles(c, t, values, low, high, work, state);
    for (int j = low / W * W; j < high; j += W) {
        for (int i = j; i < j + W; i++) prefetch(work.rows[i + ahead], head_dim);
        if (t.num_rows <= DIRECT && head_dim % 8 == 0) {
            score<Keys<T>, DIRECT>(t.num_rows, work.q, stride, {work.rows + j}, head_dim, work.scores + j);
            continue;
        }
        widen(work.rows + j, head_dim, work.keys);
        for (int r = 0; r < t.num_rows; r += SCORED) {
            const int n = std::min(SCORED, t.num_rows - r);
            if (work.high[r + n - 1] > j)
                score<WidenedKeys, SCORED>(n, work.q + r * stride, stride, {work.keys}, head_dim,
                                           work.scores + r * CHUNK + j);
        }
    }
    const int times = (t.num_rows + WEIGHED - 1) / WEIGHED;
    for (int i = 0; i < times; i++) {
        const int first = t.num_rows * i / times, end = t.num_rows * (i + 1) / times;
        for (int r = first; r < end; r++) {
            float *scores = work.scores + r * CHUNK;
            if (c.softcap) cap_scores(scores, work.low[r], work.high[r], c.softcap);
            softmax_row(scores, work.low[r], work.high[r], state.max[r], state.sum[r],
                        [=](int j, vf e) { store(scores + j, e); });
        }
        const int low = work.low[first], high = work.high[end - 1];
        for (int j = low; j < high || j == low; j += ahead)
            weigh(end - first, work.scores + first * CHUNK, values, j, std::min(j + ahead, high), head_dim,
                  i ? 0 : ahead, state.acc + first * stride, stride, j == low);
    }
}

template <class T> void prepare(const Call<T> &c, const Tile &t, Work<T> &work) {
    const int64_t stride = c.padded_dim();
    work.scores = scratch<0>(TILE * (CHUNK + stride) + W * stride);
    work.q = work.scores + TILE * CHUNK, work.keys = work.q + TILE * stride;
    work.factor = c.softcap ? c.scale / c.softcap * 2 * LOG2_E : c.scale * LOG2_E;
    const int64_t first_query = c.seq_lens[t.seq] - (c.query_start[t.seq + 1] - c.query_start[t.seq]);
    for (int r = 0; r < t.num_rows; r++) work.position[r] = first_query + (t.row + r) / c.group();
    auto query = [&](int r) {
        const int64_t token = c.query_start[t.seq] + (t.row + r) / c.group();
        return c.q + (token * c.num_heads + t.kv_head * c.group() + (t.row + r) % c.group()) * c.head_dim;
    };
    if constexpr (IN_TILES<T>)
        if (c.in_tiles()) return pack_queries(t.num_rows, int(c.head_dim), query, (bf16 *)work.q);
    for (int r = 0; r < t.num_rows; r++) {
        const T *q = query(r);
        float *to = work.q + r * stride, lanes[W];
        std::fill(to, to + stride, 0.0f);
        for (int64_t d = 0; d < c.head_dim; d += W) {
            const int n = int(std::min<int64_t>(W, c.head_dim - d));
            store(lanes, load_some(q + d, n) * splat(work.factor));
            for (int i = 0; i < n; i++) to[(d + i) / 8 * 8 + place_in_quads((d + i) % 8, q)] = lanes[i];
        }
    }
}

template <class T> void finish(const Call<T> &c, const Tile &t, State state) {
    for (int r = 0; r < t.num_rows; r++) {
        const int64_t token = c.query_start[t.seq] + (t.row + r) / c.group();
        const int64_t head = t.kv_head * c.group() + (t.row + r) % c.group();
        T *out = c.out + (token * c.num_heads + head) * c.head_dim;
        const float *acc = state.acc + r * c.padded_dim();
        const float sink = c.sinks ? exp2(splat(c.sinks[head] * LOG2_E - state.max[r]))[0] : 0;
        const vf inverse = splat(1.0f / (state.sum[r] + sink));
        for (int64_t d = 0; d < c.head_dim; d += 2 * W) {
            pair v = {load(acc + d) * inverse, load(acc + d + W) * inverse};
            if (d + 2 * W <= c.head_dim) store_pair(out + d, v);
            else store_pair(out + d, v, int(c.head_dim - d));
        }
    }
}

} // namespace attention
