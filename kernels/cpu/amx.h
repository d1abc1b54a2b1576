// Linear layers of bf16 on AMX tiles: a tile holds 16 rows of x, or 16 outputs, by 32 inputs. Sums are fp32.
//
// Integer weights are exact in bf16. Each panel is widened once and used for all rows, unless the rows are too few to
// repay that (amx_few.h). A tile with fewer than 16 rows of x is filled up with whatever follows them in memory: it
// only reaches sums that are never stored.
#pragma once

#if defined(__AMX_BF16__)
#include <algorithm>
#include <type_traits>

#include "amx_few.h"
#include "parallel.h"

namespace amx {

constexpr int STEPS_AHEAD = 3; // steps from widening integers to multiplying them

// Destination of a tile's results: x's rows from `row` on, outputs from `output` on.
template <class Sink> struct Rows {
    Sink sink;
    int64_t row, output;
    INLINE_MEMBER void operator()(int r, pair values) const { sink(row + r, output, values); }
    INLINE_MEMBER void fetch(int64_t r) const { sink.fetch(row + r, output); }
};

constexpr int AT_ONCE = 2; // rows that are stored, and rows whose destination is prefetched, per step

// Sums of a panel with a single group of inputs that are still to be stored. A few rows are stored in each step of the
// next product, since AMX would idle if all were stored at once.
template <class Sink> struct PendingStores {
    Rows<Sink> to;
    pair by, bias;
    int next = 0, end = 0; // rows
    alignas(64) float sums[2 * ROWS][PANEL];

    INLINE_MEMBER void store_next() {
        const pair sum = load_pair(sums[next]);
        to(next++, {fma(sum.a, by.a, bias.a), fma(sum.b, by.b, bias.b)});
    }
    INLINE_MEMBER void store_some() {
        for (int i = 0; i < AT_ONCE && next < end; i++) store_next();
    }
    INLINE_MEMBER void store_rest() {
        while (next < end) store_next();
    }
    template <class S, bool TWO> INLINE_MEMBER void take(const Panel<S> &p, int num_rows, const Rows<Sink> &rows) {
        store_rest();
        store_sums<TWO>(sums);
        to.row = rows.row, to.output = rows.output;
        by = p.scales ? load_pair(p.scales) : pair{splat(1), splat(1)}, bias = load_pair(p.bias);
        next = 0, end = num_rows;
    }
};

// Multiplies up to 2 * ROWS rows by a panel; TWO: more than ROWS. FIRST: no rows have met the panel yet, so its weights
// are to be prefetched and, if they are integers, widened.
template <class S, bool TWO, bool FIRST, class Sink>
void run_panel(const Panel<S> &p, const bf16 *x, int num_rows, const Rows<Sink> &to, PendingStores<Sink> &pending) {
    const int64_t steps = p.steps(), of_group = p.steps_of_group();
    const bf16 *others = x + ROWS * padded(p.inputs);
    const int stride = std::min(num_rows, ROWS) * DEPTH, of_others = (num_rows - ROWS) * DEPTH;
    alignas(64) float sums[(1 + TWO) * ROWS][PANEL], out[(1 + TWO) * ROWS][PANEL];
    if constexpr (FIRST && !IN_TILES<S>)
        for (int step = 0; step < std::min<int64_t>(STEPS_AHEAD, steps); step++) widen(p, step);
    for (int64_t step = 0; step < steps; step++) {
        if constexpr (FIRST && IN_TILES<S>) prefetch<2 * SIZE * sizeof(bf16)>(p.weight + step * 2 * SIZE);
        if constexpr (FIRST && !IN_TILES<S>)
            if (step + STEPS_AHEAD < steps) widen(p, step + STEPS_AHEAD);
        written();
        if (step % of_group == 0) zero<TWO>();
        multiply<TWO>(x + step * stride, others + step * of_others, 64, p.tiles + step * 2 * SIZE);
        pending.store_some();
        for (int64_t r = AT_ONCE * step; r < std::min<int64_t>(AT_ONCE * (step + 1), num_rows); r++) to.fetch(r);
        if ((step + 1) % of_group || of_group == steps) continue;
        store_sums<TWO>(sums);
        add_up(p, step, num_rows, out, [&](int r) { return load_pair(sums[r]); }, to);
    }
    if (of_group == steps) pending.template take<S, TWO>(p, num_rows, to);
}

// The `Product` (see gemm.h) of x in bf16 by weights stored as S.
template <class S> struct Product {
    using Storage = S;
    using Scope = amx::Scope;
    static constexpr int SPARE_FLOATS = amx::ROWS * DEPTH; // a tile load reads 16 rows even where there are fewer
    static constexpr int ROWS = 2 * amx::ROWS;

    // Every tile but the last is full, which makes them as few as possible.
    static int64_t first_row(int64_t tile, int64_t, int64_t rows) { return std::min(tile * ROWS, rows); }
    static int64_t row_floats(int64_t inputs) { return padded(inputs); }
    static int64_t row_bytes(int64_t inputs) { return padded(inputs) * sizeof(bf16); }
    static int panels_at_once(int) { return 1; }

    // Packs as bf16 [rows / 16][step][row][DEPTH], or as fp32 [inputs][row] for run_few(). Missing inputs are 0.
    template <class Source> static void pack_rows(const Tile &t, int64_t inputs, Source source, float *out) {
        auto vector = [&](int row, int64_t at) {
            const int some = int(std::clamp<int64_t>(inputs - at, 0, W));
            return some ? source(t.row + row, at, some) : vf{};
        };
        for (int row = 0; row < t.num_rows; row++) {
            const int first = row / amx::ROWS * amx::ROWS, n = std::min(amx::ROWS, t.num_rows - first);
            bf16 *to = (bf16 *)out + first * padded(inputs) + (row - first) * DEPTH;
            if constexpr (std::is_same_v<Source, InOrder<bf16>>)
                if (inputs % DEPTH == 0 && !without_tiles(t)) {
                    for (int64_t k = 0; k < inputs; k += DEPTH) write(to + k * n, read<vu>(source.at(t.row + row) + k));
                    continue;
                }
            for (int64_t k = 0; k < padded(inputs); k += W) {
                const vf values = vector(row, k);
                if (without_tiles(t)) for (int i = 0; i < W; i++) out[(k + i) * n + row] = to_bf16(values)[i];
                else store(to + k / DEPTH * n * DEPTH + k % DEPTH, values);
            }
        }
        written();
    }

    template <class At, class Sink>
    static void run(const Tile *tiles, int n, const Weights &w, At packed_at, int64_t panel, int64_t end, Sink sink) {
        PendingStores<Sink> pending = {{sink, 0, 0}};
        bf16 *wide = IN_TILES<S> ? nullptr : scratch<5, bf16>(padded(w.inputs) * PANEL);
        for (; panel < end; panel++) {
            const S *weight = (const S *)w.panels + panel * panel_size<S>(w.inputs);
            const float *scales = w.scales ? w.scales + panel * (w.inputs / w.group) * PANEL : nullptr;
            const Panel<S> p = {weight, scales, w.bias + panel * PANEL, wide, w.inputs, w.group};
            for (int i = 0; i < n; i++) run_tile(tiles[i], p, packed_at(i), i == 0, panel * PANEL, pending);
        }
        pending.store_rest();
    }

  private:
    static bool without_tiles(const Tile &t) { return !IN_TILES<S> && t.num_rows <= FEW; }

    template <class Sink>
    static void run_tile(const Tile &t, Panel<S> p, const float *packed, bool is_first, int64_t output,
                         PendingStores<Sink> &pending) {
        const Rows<Sink> to = {pending.to.sink, t.row, output};
        if constexpr (IN_TILES<S>) p.tiles = p.weight;
        else if (without_tiles(t)) return run_few(p, packed, t.num_rows, to);
        auto run = [&](auto two, auto first) {
            constexpr bool TWO = decltype(two)::value, FIRST = decltype(first)::value;
            run_panel<S, TWO, FIRST>(p, (const bf16 *)packed, t.num_rows, to, pending);
        };
        const bool two = t.num_rows > amx::ROWS;
        if (is_first) two ? run(std::true_type(), std::true_type()) : run(std::false_type(), std::true_type());
        else two ? run(std::true_type(), std::false_type()) : run(std::false_type(), std::false_type());
    }
};

} // namespace amx
#endif
