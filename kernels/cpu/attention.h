// Paged attention, reading KV blocks in place through the block tables.
//
// The keys of a sequence are cut into chunks at fixed positions. For each tile of query rows and each chunk there is a
// softmax state: the maximum of the scores, the sum of their exponentials, and the weighted sum of values. The states
// of a tile's chunks are merged in order. Where there are too few tiles to keep all threads busy, one tile's chunks go
// to several threads and are merged afterwards, in the same order. So the bits of a row depend neither on the number of
// threads, nor on the batch, nor on whether the row came in a prefill or in a decode step.
#pragma once

#include <algorithm>
#include <vector>

#include "attention_rows.h"
#include "parallel.h"

namespace attention {

// Runs all chunks of a tile on one thread. `next` is the tile that this thread runs afterwards, or null.
template <class T> void run_tile(const Call<T> &c, const Tile &t, const Tile *next) {
    Work<T> work;
    prepare(c, t, work);
    const int64_t dim = c.padded_dim();
    float *buffer = scratch<1>(2 * state_floats(t.num_rows, dim));
    State total = state_at(buffer, t.num_rows, dim);
    State part = state_at(buffer + state_floats(t.num_rows, dim), t.num_rows, dim);
    for (int chunk = t.chunk; chunk < t.end_chunk; chunk++) {
        const Next then = chunk + 1 < t.end_chunk ? Next{&t, chunk + 1} : Next{next, next ? next->chunk : 0};
        run_chunk(c, t, chunk, then, work, chunk == t.chunk ? total : part);
        if (chunk > t.chunk) merge(c, total, part, t.num_rows);
    }
    finish(c, t, total);
}

// Cuts a batch into tiles. Of each sequence the last rows come first: they see the most keys, so they take longest.
template <class T> void plan(const Call<T> &c, std::vector<Tile> &tiles) {
    for (int32_t seq = 0; seq < c.num_seqs; seq++) {
        const int32_t num_queries = c.query_start[seq + 1] - c.query_start[seq];
        const int32_t rows = num_queries * int32_t(c.group()), of_tile = c.tile_rows();
        const int32_t num_tiles = (rows + of_tile - 1) / of_tile;
        const int64_t first_query = c.seq_lens[seq] - num_queries;
        for (int32_t i = num_tiles - 1; i >= 0; i--) {
            const int32_t row = i * of_tile, n = std::min(of_tile, rows - row);
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

template <class T> void run_tiles(const Call<T> &c, const Tile *tiles, int num_tiles) {
    for (int i = 0; i < num_tiles; i++) run_tile(c, tiles[i], i + 1 < num_tiles ? tiles + i + 1 : nullptr);
}

// Divides the work into items of up to `fair` chunks: several whole tiles, or part of a tile, to be merged afterwards.
template <class T>
void run_shared(const Call<T> &c, std::vector<Tile> &tiles, int64_t work, int64_t fair, int threads) {
    struct Item {
        int32_t tile, num_tiles, chunk, end_chunk; // whole tiles (chunk is -1), or these chunks of one tile
    };
    static thread_local std::vector<Item> items;
    items.clear();
    const int64_t dim = c.padded_dim();
    int64_t num_floats = 0, together = fair;
    for (int32_t i = 0; i < int32_t(tiles.size()); i++) {
        Tile &t = tiles[i];
        const int32_t num_chunks = t.end_chunk - t.chunk;
        if (num_chunks <= fair) {
            if (together + num_chunks > fair) items.push_back({i, 0, -1, -1}), together = 0;
            items.back().num_tiles++, together += num_chunks;
            continue;
        }
        together = fair;
        t.partial = num_floats;
        num_floats += num_chunks * state_floats(t.num_rows, dim);
        for (int32_t chunk = t.chunk; chunk < t.end_chunk; chunk += fair)
            items.push_back({i, 1, chunk, std::min(t.end_chunk, int32_t(chunk + fair))});
    }
    float *partials = scratch<2>(num_floats);
    const Item *all = items.data();
    parallel_dynamic<Scope<T>>(items.size(), work, threads, [&](int64_t i) {
        const Tile *t = &tiles[all[i].tile];
        if (all[i].chunk < 0) return run_tiles(c, t, all[i].num_tiles);
        Work<T> own;
        prepare(c, *t, own);
        for (int32_t chunk = all[i].chunk; chunk < all[i].end_chunk; chunk++) {
            const Next next = {chunk + 1 < all[i].end_chunk ? t : nullptr, chunk + 1};
            run_chunk(c, *t, chunk, next, own, partial_state(partials, *t, chunk, dim));
        }
    });
    for (const Tile &t : tiles) {
        if (t.partial < 0) continue;
        State total = partial_state(partials, t, t.chunk, dim);
        for (int32_t chunk = t.chunk + 1; chunk < t.end_chunk; chunk++)
            merge(c, total, partial_state(partials, t, chunk, dim), t.num_rows);
        finish(c, t, total);
    }
}

template <class T> void run(const Call<T> &c, int threads) {
    Scope<T> scope;
    static thread_local std::vector<Tile> tiles;
    tiles.clear();
    plan(c, tiles);
    int64_t num_chunks = 0, work = 0;
    for (const Tile &t : tiles) {
        num_chunks += t.end_chunk - t.chunk;
        work += int64_t(t.end_chunk - t.chunk) * CHUNK * c.head_dim;
    }
    const int64_t fair = std::max<int64_t>(1, num_chunks / (4 * threads)); // about four items per thread
    if (threads > 1) return run_shared(c, tiles, work, fair, threads);
    run_tiles(c, tiles.data(), int(tiles.size()));
}

} // namespace attention
