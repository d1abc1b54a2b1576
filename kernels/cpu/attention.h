// Paged attention over blocks where they lie.
//
// The keys of a sequence are cut at fixed positions into chunks. For a tile of query rows and a chunk: scores, their
// maximum and the sum of their exponentials, and the weighted sum of values; chunks are then merged in order. Where
// there is too little to share between threads the chunks of one tile go to several of them, and are merged in the
// same order afterwards. So the bits of a row depend neither on the number of threads, nor on the batch, nor on whether
// the row came in a prefill or in a decode step.
#pragma once

#include <algorithm>
#include <vector>

#include "parallel.h"
#include "vector.h"

namespace attention {

constexpr int CHUNK = 256;              // keys
constexpr int TILE = 48;                // query rows
constexpr int KEYS = 4 * W;             // keys that are transposed and scored at once, at most
constexpr int AHEAD = 32;               // keys whose values are fetched before they are needed
constexpr int ROWS = ACCUMULATORS / 2;  // query rows that are scored at once
constexpr int FEW_ROWS = 8;             // a tile of no more waits for memory, so it is told what comes next
constexpr float LOG2_E = 1.4426950408889634f;

template <class T> struct Call {
    const T *q;    // [num_tokens, num_heads, head_dim]
    const T *kv;   // [num_blocks, 2, num_kv_heads, block_size, head_dim], block_stride elements between blocks
    T *out;        // as q
    const int32_t *query_start, *seq_lens, *block_tables;
    int64_t num_seqs, max_blocks, num_heads, num_kv_heads, head_dim, block_size, block_stride;
    float scale;
    int64_t window;
    int64_t group() const { return num_heads / num_kv_heads; }
    int keys() const { return head_dim > 64 ? KEYS / 2 : KEYS; } // so that they stay in the L1 cache
    int64_t padded_dim() const { return (head_dim + 2 * W - 1) / (2 * W) * (2 * W); }
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
    float *q;      // [num_rows, head_dim], times scale and log2(e)
    float *scores; // [num_rows, CHUNK]
    float *keys;   // [head_dim, keys()]
    const T *k_rows[CHUNK], *v_rows[CHUNK];
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

// W keys of a chunk, transposed and widened: out[d * keys + key].
template <class T> INLINE void transpose_keys(const T *const *rows, int head_dim, int keys, float *out) {
    vu lanes[W];
    for (int d = 0; d < head_dim; d += W, out += W * keys) {
        const int n = head_dim - d;
#pragma GCC unroll 16
        for (int i = 0; i < W; i++) lanes[i] = (vu)(n >= W ? load(rows[i] + d) : load(rows[i] + d, n));
        transpose(lanes);
#pragma GCC unroll 16
        for (int i = 0; i < W; i++)
            if (i < n) store(out + i * keys, (vf)lanes[i]);
    }
}
template <> inline void transpose_keys(const bf16 *const *rows, int head_dim, int keys, float *out) {
    vu lanes[W]; // each holds an even and an odd element
    for (int d = 0; d < head_dim; d += 2 * W, out += 2 * W * keys) {
        const int n = head_dim - d;
#pragma GCC unroll 16
        for (int i = 0; i < W; i++) {
            bf16 some[2 * W] = {};
            if (n < 2 * W) memcpy(some, rows[i] + d, n * sizeof(bf16));
            lanes[i] = n < 2 * W ? read<vu>(some) : read<vu>(rows[i] + d);
        }
        transpose(lanes);
#pragma GCC unroll 16
        for (int i = 0; i < W; i++) {
            if (2 * i < n) store(out + 2 * i * keys, (vf)(lanes[i] << 16));
            if (2 * i < n) store(out + (2 * i + 1) * keys, (vf)(lanes[i] & 0xffff0000));
        }
    }
}

// Scores of N rows against V vectors of keys.
template <int N, int V> INLINE void score_rows(const float *q, const float *keys, int head_dim, int stride, float *scores) {
    vf sums[N][V] = {};
    for (int d = 0; d < head_dim; d++) {
        vf k[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) k[v] = load(keys + d * stride + v * W);
#pragma GCC unroll 16
        for (int r = 0; r < N; r++) {
            const vf x = splat(q[r * head_dim + d]);
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) sums[r][v] = fma(x, k[v], sums[r][v]);
        }
    }
    for (int r = 0; r < N; r++)
        for (int v = 0; v < V; v++) store(scores + r * CHUNK + v * W, sums[r][v]);
}

template <int N = ROWS> INLINE void score(int n, const float *q, const float *keys, int head_dim, int num_keys, float *scores) {
    if constexpr (N > 0) {
        if (n != N) return score<N - 1>(n, q, keys, head_dim, num_keys, scores);
        int j = 0;
        if constexpr (N * 4 <= ACCUMULATORS) // few rows need many keys to keep the adders busy
            for (; j + 4 * W <= num_keys; j += 4 * W) score_rows<N, 4>(q, keys + j, head_dim, num_keys, scores + j);
        for (; j < num_keys; j += 2 * W) score_rows<N, 2>(q, keys + j, head_dim, num_keys, scores + j);
    }
}

// Scores of a row -> exponentials, 0 where the row does not see. Leaves their maximum and sum.
INLINE void softmax_row(float *scores, int low, int high, float &row_max, float &row_sum) {
    if (low >= high) {
        std::fill(scores, scores + CHUNK, 0.0f);
        row_max = NEG_INF, row_sum = 0;
        return;
    }
    const int end = (high + W - 1) / W * W;
    std::fill(scores, scores + low, NEG_INF);
    std::fill(scores + high, scores + end, NEG_INF);
    vf m = splat(NEG_INF), sum = {};
    for (int j = low / W * W; j < end; j += W) m = max(m, load(scores + j));
    row_max = max_lanes(m);
    for (int j = 0; j < end; j += W) {
        vf e = exp2(load(scores + j) - splat(row_max));
        sum += e;
        store(scores + j, e);
    }
    std::fill(scores + end, scores + CHUNK, 0.0f);
    row_sum = sum_lanes(sum);
}

template <class T> INLINE void prefetch(const T *row, int n) {
    for (int i = 0; i < n; i += 64 / sizeof(T)) __builtin_prefetch(row + i);
}

// Weighted sum of values over keys [low, high) for N rows and P times 2W dimensions from `d` on.
template <class T, int N, int P>
INLINE void weigh_rows(const float *weights, const T *const *v_rows, int low, int high, int d, float *acc, int stride) {
    pair sums[N][P] = {};
    for (int j = low; j < high; j++) {
        if constexpr (N <= FEW_ROWS) prefetch(v_rows[std::min(j + AHEAD, high - 1)] + d, P * 2 * W);
        pair v[P];
#pragma GCC unroll 4
        for (int p = 0; p < P; p++) v[p] = load_pair(v_rows[j] + d + p * 2 * W);
#pragma GCC unroll 16
        for (int r = 0; r < N; r++) {
            vf w = splat(weights[r * CHUNK + j]);
#pragma GCC unroll 4
            for (int p = 0; p < P; p++) {
                sums[r][p].a = fma(w, v[p].a, sums[r][p].a);
                sums[r][p].b = fma(w, v[p].b, sums[r][p].b);
            }
        }
    }
    for (int r = 0; r < N; r++)
        for (int p = 0; p < P; p++) {
            store(acc + r * stride + d + p * 2 * W, sums[r][p].a);
            store(acc + r * stride + d + p * 2 * W + W, sums[r][p].b);
        }
}

// The last dimensions of a head that are no multiple of 2W.
template <class T>
INLINE void weigh_tail(int n, const float *weights, const T *const *v_rows, int low, int high, int d, int tail, float *acc,
                       int stride) {
    for (int r = 0; r < n; r++) {
        pair sum = {};
        for (int j = low; j < high; j++) {
            vf w = splat(weights[r * CHUNK + j]);
            pair v = load_pair(v_rows[j] + d, tail);
            sum = {fma(w, v.a, sum.a), fma(w, v.b, sum.b)};
        }
        store(acc + r * stride + d, sum.a);
        store(acc + r * stride + d + W, sum.b);
    }
}

template <class T, int N = ROWS>
INLINE void weigh(int n, const float *weights, const T *const *v_rows, int low, int high, int head_dim, float *acc,
                  int stride) {
    if constexpr (N > 0) {
        if (n != N) return weigh<T, N - 1>(n, weights, v_rows, low, high, head_dim, acc, stride);
        int d = 0;
        if constexpr (N * 8 <= ACCUMULATORS)
            for (; d + 8 * W <= head_dim; d += 8 * W) weigh_rows<T, N, 4>(weights, v_rows, low, high, d, acc, stride);
        if constexpr (N * 4 <= ACCUMULATORS)
            for (; d + 4 * W <= head_dim; d += 4 * W) weigh_rows<T, N, 2>(weights, v_rows, low, high, d, acc, stride);
        for (; d + 2 * W <= head_dim; d += 2 * W) weigh_rows<T, N, 1>(weights, v_rows, low, high, d, acc, stride);
        if (d < head_dim) weigh_tail(n, weights, v_rows, low, high, d, head_dim - d, acc, stride);
    }
}

// Addresses of the keys and values of a chunk; past `end` the last one again, which is read but not seen.
template <class T> INLINE void locate(const Call<T> &c, const Tile &t, int64_t start, int64_t end, Work<T> &work) {
    const int32_t *table = c.block_tables + t.seq * c.max_blocks;
    const int64_t plane = c.block_size * c.head_dim;
    int64_t position = start, j = 0;
    while (position < end) {
        const int64_t offset = position % c.block_size, n = std::min(c.block_size - offset, end - position);
        const T *k = c.kv + table[position / c.block_size] * c.block_stride + t.kv_head * plane + offset * c.head_dim;
        const T *v = k + c.num_kv_heads * plane;
        for (int64_t i = 0; i < n; i++, j++) work.k_rows[j] = k + i * c.head_dim, work.v_rows[j] = v + i * c.head_dim;
        position += n;
    }
    for (const int64_t last = j - 1; j % c.keys(); j++) work.k_rows[j] = work.k_rows[last], work.v_rows[j] = work.v_rows[last];
}

// State of one chunk for all rows of a tile.
template <class T> void run_chunk(const Call<T> &c, const Tile &t, int chunk, Work<T> &work, State state) {
    const int64_t first_query = c.seq_lens[t.seq] - (c.query_start[t.seq + 1] - c.query_start[t.seq]);
    const int64_t start = int64_t(chunk) * CHUNK;
    const int head_dim = int(c.head_dim), stride = int(c.padded_dim());
    int low = CHUNK, high = 0;
    for (int r = 0; r < t.num_rows; r++) {
        const int64_t position = first_query + (t.row + r) / c.group();
        work.high[r] = int(std::clamp<int64_t>(position + 1 - start, 0, CHUNK));
        work.low[r] = c.window ? int(std::clamp<int64_t>(position + 1 - c.window - start, 0, CHUNK)) : 0;
        low = std::min(low, work.low[r]), high = std::max(high, work.high[r]);
    }
    const int keys = c.keys();
    const bool fetch = t.num_rows <= FEW_ROWS;
    low = low / keys * keys;
    locate(c, t, start, start + high, work);
    for (int j = low; j < high; j += keys) {
        for (int i = j; i < j + keys; i += W) {
            for (int k = i + keys; fetch && k < std::min(i + keys + W, high); k++) prefetch(work.k_rows[k], head_dim);
            transpose_keys(work.k_rows + i, head_dim, keys, work.keys + i - j);
        }
        for (int r = 0; r < t.num_rows; r += ROWS) {
            const int n = std::min(ROWS, t.num_rows - r);
            if (work.high[r + n - 1] > j) score(n, work.q + r * head_dim, work.keys, head_dim, keys, work.scores + r * CHUNK + j);
        }
    }
    for (int j = low; fetch && j < std::min(low + AHEAD, high); j++) prefetch(work.v_rows[j], head_dim);
    for (int r = 0; r < t.num_rows; r += ROWS) {
        const int n = std::min(ROWS, t.num_rows - r);
        for (int i = r; i < r + n; i++)
            softmax_row(work.scores + i * CHUNK, work.low[i], work.high[i], state.max[i], state.sum[i]);
        weigh(n, work.scores + r * CHUNK, work.v_rows, work.low[r], work.high[r + n - 1], head_dim, state.acc + r * stride,
              stride);
    }
}

template <class T> void prepare(const Call<T> &c, const Tile &t, Work<T> &work) {
    float *buffer = scratch<0>(TILE * (c.head_dim + CHUNK) + c.head_dim * c.keys());
    work.scores = buffer, work.keys = buffer + TILE * CHUNK, work.q = work.keys + c.head_dim * c.keys();
    const vf factor = splat(c.scale * LOG2_E);
    for (int r = 0; r < t.num_rows; r++) {
        const int64_t token = c.query_start[t.seq] + (t.row + r) / c.group();
        const T *q = c.q + (token * c.num_heads + t.kv_head * c.group() + (t.row + r) % c.group()) * c.head_dim;
        float *to = work.q + r * c.head_dim;
        int64_t d = 0;
        for (; d + W <= c.head_dim; d += W) store(to + d, load(q + d) * factor);
        if (d < c.head_dim) store(to + d, load(q + d, int(c.head_dim - d)) * factor, int(c.head_dim - d));
    }
}

template <class T> void finish(const Call<T> &c, const Tile &t, State state) {
    for (int r = 0; r < t.num_rows; r++) {
        const int64_t token = c.query_start[t.seq] + (t.row + r) / c.group();
        T *out = c.out + (token * c.num_heads + t.kv_head * c.group() + (t.row + r) % c.group()) * c.head_dim;
        const float *acc = state.acc + r * c.padded_dim();
        const vf inverse = splat(1.0f / state.sum[r]);
        for (int64_t d = 0; d < c.head_dim; d += 2 * W) {
            pair v = {load(acc + d) * inverse, load(acc + d + W) * inverse};
            if (d + 2 * W <= c.head_dim) store_pair(out + d, v);
            else store_pair(out + d, v, int(c.head_dim - d));
        }
    }
}

// All chunks of a tile by one thread.
template <class T> void run_tile(const Call<T> &c, const Tile &t) {
    Work<T> work;
    prepare(c, t, work);
    const int64_t dim = c.padded_dim();
    float *buffer = scratch<1>(2 * state_floats(TILE, dim));
    State total = state_at(buffer, TILE, dim), part = state_at(buffer + state_floats(TILE, dim), TILE, dim);
    for (int chunk = t.chunk; chunk < t.end_chunk; chunk++) {
        run_chunk(c, t, chunk, work, chunk == t.chunk ? total : part);
        if (chunk > t.chunk) merge(total, part, t.num_rows, dim);
    }
    finish(c, t, total);
}

// The tiles of a batch. Later rows see more keys, so they come first.
template <class T> void plan(const Call<T> &c, std::vector<Tile> &tiles) {
    for (int32_t seq = 0; seq < c.num_seqs; seq++) {
        const int32_t num_queries = c.query_start[seq + 1] - c.query_start[seq];
        const int32_t rows = num_queries * int32_t(c.group()), num_tiles = (rows + TILE - 1) / TILE;
        const int64_t first_query = c.seq_lens[seq] - num_queries;
        for (int32_t i = num_tiles - 1; i >= 0; i--) {
            const int32_t row = i * TILE, n = std::min(TILE, rows - row);
            const int64_t low = c.window ? std::max<int64_t>(0, first_query + row / c.group() + 1 - c.window) : 0;
            const int64_t high = first_query + (row + n - 1) / c.group() + 1;
            const int32_t chunk = int32_t(low / CHUNK), end_chunk = int32_t((high + CHUNK - 1) / CHUNK);
            for (int32_t h = 0; h < c.num_kv_heads; h++) tiles.push_back({seq, h, row, n, chunk, end_chunk, -1});
        }
    }
}

INLINE State partial_state(float *partials, const Tile &t, int chunk, int64_t dim) {
    return state_at(partials + t.partial + (chunk - t.chunk) * state_floats(t.num_rows, dim), t.num_rows, dim);
}

// Tiles of more than `fair` chunks are shared between threads, chunk by chunk.
template <class T> void run_shared(const Call<T> &c, std::vector<Tile> &tiles, int64_t work, int64_t fair, int threads) {
    struct Item {
        int32_t tile, chunk; // one chunk of a tile, or all (-1)
    };
    static thread_local std::vector<Item> items;
    items.clear();
    const int64_t dim = c.padded_dim();
    int64_t num_floats = 0;
    for (size_t i = 0; i < tiles.size(); i++) {
        Tile &t = tiles[i];
        if (t.end_chunk - t.chunk <= fair) {
            items.push_back({int32_t(i), -1});
            continue;
        }
        t.partial = num_floats;
        num_floats += (t.end_chunk - t.chunk) * state_floats(t.num_rows, dim);
        for (int32_t chunk = t.chunk; chunk < t.end_chunk; chunk++) items.push_back({int32_t(i), chunk});
    }
    float *partials = scratch<2>(num_floats);
    const Item *all = items.data();
    parallel_dynamic(items.size(), work, threads, [&](int64_t i) {
        const Tile &t = tiles[all[i].tile];
        if (all[i].chunk < 0) return run_tile(c, t);
        Work<T> own;
        prepare(c, t, own);
        run_chunk(c, t, all[i].chunk, own, partial_state(partials, t, all[i].chunk, dim));
    });
    for (const Tile &t : tiles) {
        if (t.partial < 0) continue;
        State total = partial_state(partials, t, t.chunk, dim);
        for (int32_t chunk = t.chunk + 1; chunk < t.end_chunk; chunk++)
            merge(total, partial_state(partials, t, chunk, dim), t.num_rows, dim);
        finish(c, t, total);
    }
}

template <class T> void run(const Call<T> &c, int threads) {
    static thread_local std::vector<Tile> tiles;
    tiles.clear();
    plan(c, tiles);
    int64_t num_chunks = 0, work = 0;
    for (const Tile &t : tiles) {
        num_chunks += t.end_chunk - t.chunk;
        work += int64_t(t.end_chunk - t.chunk) * CHUNK * c.head_dim;
    }
    const int64_t fair = std::max<int64_t>(1, num_chunks / (4 * threads)); // chunks that one thread may keep to itself
    if (threads > 1) return run_shared(c, tiles, work, fair, threads);
    for (const Tile &t : tiles) run_tile(c, t);
}

} // namespace attention
