// x @ weight.T + bias for few to many rows of x, with one weight for all or with that of each row's expert.
//
// Rows are cut into tiles and packed; threads then take panels of outputs. A `Product` multiplies tiles by panels: with
// fused multiply-adds or products of pairs (fused.h) or, for x in bf16 where there is AMX, on AMX tiles (amx.h). In
// each, the bits of a row do not depend on which rows come with it.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "amx.h"
#include "elementwise.h"
#include "fused.h"
#include "parallel.h"

namespace gemm {

constexpr int64_t X_BYTES = 1 << 20; // of x at a time, so that it stays in the L2 cache

// The Product of rows of T by weights stored as S.
#if defined(__AMX_BF16__)
template <class T, class S>
using Product = std::conditional_t<std::is_same_v<T, bf16>, amx::Product<S>, fused::Product<T, S>>;
#else
template <class T, class S> using Product = fused::Product<T, S>;
#endif

// Cuts the rows [row, row + num_rows) of an expert into tiles.
template <class P> void cut(int64_t row, int64_t num_rows, int expert, std::vector<Tile> &tiles) {
    const int64_t n = (num_rows + P::ROWS - 1) / P::ROWS;
    for (int64_t i = 0; i < n; i++) {
        const int64_t first = P::first_row(i, n, num_rows), end = P::first_row(i + 1, n, num_rows);
        tiles.push_back({row + first, int32_t(end - first), expert});
    }
}

// Consecutive tiles [first, end) of one expert.
struct Run {
    int32_t first, end;
};

// Multiplies tiles whose rows fit the L2 cache together.
template <class P, class Source, class Sink>
void run_tiles(const Weights &w, const Tile *tiles, int num_tiles, int64_t rows, Source source, Sink sink,
               int threads) {
    const int64_t panels = num_panels(w.outputs);
    const int64_t row_floats = P::row_floats(w.inputs);
    float *packed = scratch<3>(rows * row_floats + P::SPARE_FLOATS);
    auto packed_at = [=](int tile) { return packed + (tiles[tile].row - tiles[0].row) * row_floats; };
    parallel(num_tiles, rows * w.inputs, threads,
             [&](int64_t i) { P::pack_rows(tiles[i], w.inputs, source, packed_at(i)); });

    static thread_local std::vector<Run> runs;
    runs.clear();
    for (int i = 0; i < num_tiles; i++)
        if (i && tiles[i].expert == tiles[i - 1].expert) runs.back().end++;
        else runs.push_back({i, i + 1});
    const Run *all = runs.data();
    const int64_t most = std::max<int64_t>(1, panels / threads);
    const int64_t at_once = std::min<int64_t>(P::panels_at_once(tiles[0].num_rows), most); // panels of an item
    const int64_t per_run = (panels + at_once - 1) / at_once;
    const int64_t work = rows * w.inputs * w.outputs / 4;
    parallel_dynamic<typename P::Scope, true>(runs.size() * per_run, work, threads, [&](int64_t i) {
        const Run run = all[i / per_run];
        const int64_t panel = i % per_run * at_once, end = std::min(panels, panel + at_once);
        const Weights own = of_expert<typename P::Storage>(w, tiles[run.first].expert);
        auto at = [&](int tile) { return packed_at(run.first + tile); };
        P::run(tiles + run.first, run.end - run.first, own, at, panel, end, sink);
    });
}

// Multiplies rows from `source` by the weights of their tiles' experts; results go to sink(row, first output, PANEL
// values as a pair). Tiles are in order of rows.
template <class P, class Source, class Sink>
void run(const Weights &w, const std::vector<Tile> &tiles, Source source, Sink sink, int threads) {
    const int64_t most = std::max<int64_t>(4 * P::ROWS, X_BYTES / P::row_bytes(w.inputs));
    for (size_t first = 0, end = 0; first < tiles.size(); first = end) {
        int64_t rows = 0;
        while (end < tiles.size() && rows + tiles[end].num_rows <= most) rows += tiles[end++].num_rows;
        run_tiles<P>(w, &tiles[first], int(end - first), rows, source, sink, threads);
    }
}

// Stores the values of a panel, from output `first` on, to a row of `outputs`; those past the last are padding.
template <class T> INLINE void store_panel(T *row, int64_t outputs, int64_t first, pair values) {
    const int n = int(std::min<int64_t>(PANEL, outputs - first));
    if (n == PANEL) store_all(row + first, values);
    else if (n > W) store(row + first, values.a), store(row + first + W, values.b, n - W);
    else store(row + first, values.a, n);
}

// Sinks store the results of a panel, and prefetch the line that these will go to: waiting for it took a fifth of the
// time.

// Stores to the row at address at(row).
template <class At> struct Stored {
    At at;
    int64_t outputs;
    INLINE_MEMBER void operator()(int64_t row, int64_t first, pair values) const {
        store_panel(at(row), outputs, first, values);
    }
    INLINE_MEMBER void fetch(int64_t row, int64_t first) const { fetch_line(at(row) + first); }
};
template <class At> Stored(At, int64_t) -> Stored<At>;

// Stores activated rows of `outputs`, from panels whose first half are gates and whose second half are the ups.
template <class T> struct GatedRows {
    T *out;
    int64_t outputs;
    int activation;
    INLINE_MEMBER void operator()(int64_t row, int64_t first, pair values) const {
        const int n = int(std::min<int64_t>(W, outputs - first / 2));
        store_some(out + row * outputs + first / 2, activated(activation, values.a, values.b), n);
    }
    INLINE_MEMBER void fetch(int64_t row, int64_t first) const { fetch_line(out + row * outputs + first / 2); }
};

// The same weight for all rows.
template <class T, class S, class Sink>
void linear(const Weights &w, const T *x, int64_t rows, Sink sink, int threads) {
    static thread_local std::vector<Tile> tiles;
    tiles.clear();
    using P = Product<T, S>;
    cut<P>(0, rows, 0, tiles);
    run<P>(w, tiles, InOrder<T>{x, w.inputs}, sink, threads);
}

template <class T, class S> void linear(const Weights &w, const T *x, T *out, int64_t rows, int threads) {
    auto at = [=](int64_t row) { return out + row * w.outputs; };
    linear<T, S>(w, x, rows, Stored<decltype(at)>{at, w.outputs}, threads);
}

// outputs: half of the weight's, without the padding of its last panel.
template <class T, class S>
void linear_gated(const Weights &w, const T *x, T *out, int64_t rows, int64_t outputs, int activation, int threads) {
    linear<T, S>(w, x, rows, GatedRows<T>{out, outputs, activation}, threads);
}

} // namespace gemm
