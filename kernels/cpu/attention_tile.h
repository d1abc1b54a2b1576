// A tile of query rows of paged attention: where its rows and keys are in memory, and the softmax states of its chunks.
#pragma once

#include <algorithm>
#include <type_traits>

#include "attention_scores.h"
#include "parallel.h"
#include "tiles.h"

namespace attention {

constexpr int TILE = 48;  // query rows of a tile
constexpr int TALL = 192; // query rows of a tile where they are columns of AMX tiles
constexpr int DIRECT = 4; // query rows up to which keys are widened as they are scored, not beforehand

// IN_TILES: whether rows of T are multiplied on AMX where the shapes allow it. Scope: what a thread must set up for it.
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
    float scale, softcap; // softcap 0: none
    int64_t window;       // 0: no window
    const float *sinks;   // [num_heads] or null
    int64_t group() const { return num_heads / num_kv_heads; }
    int64_t padded_dim() const { return (head_dim + 2 * W - 1) / (2 * W) * (2 * W); }
    bool in_tiles() const { return IN_TILES<T> && head_dim % 32 == 0 && block_size % 16 == 0; }
    int32_t tile_rows() const { return in_tiles() ? TALL : TILE; }
    int ahead() const { return std::clamp<int>(AHEAD_BYTES / sizeof(T) / head_dim, 1, CHUNK); } // in keys
};

// Rows [row, row + num_rows) of one sequence and KV head, and the chunks [chunk, end_chunk) that they see. Row r is
// query r / group and, of the query heads that share the KV head, head r % group.
struct Tile {
    int32_t seq, kv_head, row, num_rows, chunk, end_chunk;
    int64_t partial; // offset of its chunks' states among the partial states; -1 if one thread runs the whole tile
};

// The query head of a tile's row, and the row's index in [num_tokens, num_heads].
template <class T> INLINE int64_t head_of(const Call<T> &c, const Tile &t, int row) {
    return t.kv_head * c.group() + (t.row + row) % c.group();
}
template <class T> INLINE int64_t place_of(const Call<T> &c, const Tile &t, int row) {
    return (c.query_start[t.seq] + (t.row + row) / c.group()) * c.num_heads + head_of(c, t, row);
}
// The attention sink of a row's head in base 2, or -inf if it has none.
template <class T> INLINE float sink_of(const Call<T> &c, const Tile &t, int row) {
    return c.sinks ? c.sinks[head_of(c, t, row)] * LOG2_E : NEG_INF;
}

// Softmax state over some of the keys, per row: maximum (base 2), sum of exponentials, weighted sum of values.
struct State {
    float *max, *sum, *acc; // [rows], [rows], [rows, padded_dim] or, in columns, [rows / COLUMNS][head_dim][COLUMNS]
};

INLINE int64_t whole_rows(int64_t rows) { return (rows + COLUMNS - 1) / COLUMNS * COLUMNS; }
INLINE int64_t state_floats(int64_t rows, int64_t padded_dim) { return whole_rows(rows) * (padded_dim + 2); }
INLINE State state_at(float *p, int64_t rows, int64_t padded_dim) {
    return {p + whole_rows(rows) * padded_dim, p + whole_rows(rows) * (padded_dim + 1), p};
}

// A thread's working memory for a tile.
template <class T> struct Work {
    float *q;      // [num_rows, padded_dim], each 8 elements in the order of load_quads(), times `factor`; in bf16 on
                   // AMX, in the layout of pack_queries(), and in pairs, where scores are multiplied by `factor` instead
    float factor;  // turns scores into exponents of 2, or into what cap_scores() takes
    float *scores; // [num_rows, CHUNK] or, in columns, [2][CHUNK][W]
    float *keys;   // W keys: [padded_dim / 8][4][HALVES] vectors
    const T *rows[3 * CHUNK]; // addresses of a chunk's keys, then of its values, then of what to prefetch meanwhile
    int64_t position[TALL];    // of each row's token
    int low[TALL], high[TALL]; // each row sees keys [low, high) of the chunk
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

// The chunk that a thread runs next, of the same tile or of another.
struct Next {
    const Tile *tile; // null: none
    int chunk;
};

// Fills work.rows with the addresses of keys [start, start + n), padded to a multiple of W with the last key (whose
// repetitions are scored but hidden), of as many values, and of the next chunk's first keys, which are prefetched
// meanwhile. Returns the index of the first value.
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
