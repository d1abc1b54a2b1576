// A tile of query rows of paged attention: where its rows and keys lie, and the states of its chunks.
#pragma once

#include <algorithm>
#include <type_traits>

#include "attention_fused.h"
#include "parallel.h"
#include "tiles.h"

namespace attention {

constexpr int TILE = 48;  // query rows
constexpr int TALL = 192; // the same where they are columns of tiles of AMX
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
    int32_t tile_rows() const { return in_tiles() ? TALL : TILE; }
    int ahead() const { return std::clamp<int>(AHEAD_BYTES / sizeof(T) / head_dim, 1, CHUNK); } // in keys
};

// A tile: rows [row, row + num_rows) of those of one sequence and KV head, where row r is query r / group, head
// r % group of the KV head's; and the chunks [chunk, end_chunk) that it sees.
struct Tile {
    int32_t seq, kv_head, row, num_rows, chunk, end_chunk;
    int64_t partial; // where among the floats the states of its chunks go if they are merged later, else -1
};

// Where a row of a tile comes from: [num_tokens, num_heads].
template <class T> INLINE int64_t head_of(const Call<T> &c, const Tile &t, int row) {
    return t.kv_head * c.group() + (t.row + row) % c.group();
}
template <class T> INLINE int64_t place_of(const Call<T> &c, const Tile &t, int row) {
    return (c.query_start[t.seq] + (t.row + row) / c.group()) * c.num_heads + head_of(c, t, row);
}
// What the sink of a row is to base 2, -inf if it has none.
template <class T> INLINE float sink_of(const Call<T> &c, const Tile &t, int row) {
    return c.sinks ? c.sinks[head_of(c, t, row)] * LOG2_E : NEG_INF;
}

// Softmax over some of the keys: maximum (base 2), sum, and the weighted sum of values, per row.
struct State {
    float *max, *sum, *acc; // [rows], [rows], [rows, padded_dim] or, in columns, [rows / COLUMNS][head_dim][COLUMNS]
};

INLINE int64_t whole_rows(int64_t rows) { return (rows + COLUMNS - 1) / COLUMNS * COLUMNS; }
INLINE int64_t state_floats(int64_t rows, int64_t padded_dim) { return whole_rows(rows) * (padded_dim + 2); }
INLINE State state_at(float *p, int64_t rows, int64_t padded_dim) {
    return {p + whole_rows(rows) * padded_dim, p + whole_rows(rows) * (padded_dim + 1), p};
}

// What a tile works with while it runs.
template <class T> struct Work {
    float *q;      // [num_rows, padded_dim], eight elements as load_quads() has them, times what turns scores into
                   // powers of 2 (or into what a soft cap takes); with tiles of AMX as pack_queries() has them
    float factor;  // that is still to be multiplied by
    float *scores; // [num_rows, CHUNK] or, in columns, [2][CHUNK][W]
    float *keys;   // W keys, widened: [padded_dim / 8][4] pairs
    const T *rows[3 * CHUNK]; // of a chunk's keys, then of its values, then what is to be fetched meanwhile
    int64_t position[TALL];    // of a row's token
    int low[TALL], high[TALL]; // the keys of the chunk that a row sees
};

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
    while (next < work.rows + 2 * padded + ahead) *next++ = work.rows[n - 1];
    return padded;
}

} // namespace attention
