// Products of bf16 rows by tiles of AMX: 16 rows of x, or 16 outputs, by 32 inputs each. Sums are fp32.
//
// Integers are exact in bf16, and are widened once for all rows; a group's sum is scaled. What a tile holds beside a
// row meets only sums that nobody reads. Where rows are few, integers would be widened, stored and loaded for nothing:
// fused multiply-adds give the same sums, see Scope.
#pragma once

#if defined(__AMX_BF16__)
#include <algorithm>
#include <type_traits>

#include "parallel.h"
#include "tiles.h"
#include "weights.h"

namespace amx {

using namespace gemm;

constexpr int FEW = 2;         // rows up to which integers meet no tiles
constexpr int STEPS_AHEAD = 3; // that integers are widened before they are multiplied
constexpr int FAR_BYTES = 6144, NEAR_BYTES = 1024; // that a panel is fetched ahead into the L2 and the L1 cache

template <int BYTES> INLINE void prefetch(const void *weight) {
    for (int i = 0; i < BYTES; i += 64) {
        __builtin_prefetch((const char *)weight + FAR_BYTES + i, 0, 2);
        __builtin_prefetch((const char *)weight + NEAR_BYTES + i);
    }
}

// A step of a panel of integers -> two tiles, as pack() lays out bf16.
template <class S> INLINE void widen(const S *weight, int num_inputs, bf16 *out) {
#pragma GCC unroll 4
    for (int k = 0; k < DEPTH; k += 2, out += PANEL) {
        const pair even = k < num_inputs ? load_pair(weight + k * STEP<S>) : pair{};
        const pair odd = k + 1 < num_inputs ? load_pair(weight + (k + 1) * STEP<S>) : pair{};
        write(out, ((vu)even.a >> 16) | ((vu)odd.a & 0xffff0000));
        write(out + SIZE, ((vu)even.b >> 16) | ((vu)odd.b & 0xffff0000));
    }
}

// A panel that a thread multiplies by one tile of rows after another.
template <class S> struct Panel {
    const S *weight;
    const float *scales, *bias;
    const bf16 *tiles; // the weight itself, or what it was widened to while the first rows were multiplied
    int64_t inputs, group;
    int64_t steps() const { return whole_tiles(inputs) / DEPTH; }
    int64_t steps_of_group() const { return whole_tiles(group) / DEPTH; }
};

template <class S> INLINE void widen(const Panel<S> &p, int64_t step) {
    const S *from = p.weight + step * DEPTH * STEP<S>;
    bf16 *to = (bf16 *)p.tiles + step * 2 * SIZE;
    prefetch<DEPTH * STEP<S> * sizeof(S)>(from);
    if ((step + 1) * DEPTH <= p.inputs) widen(from, DEPTH, to);
    else widen(from, int(p.inputs - step * DEPTH), to);
}

// A group's sums are scaled and added to `out`, or to the bias; after the last they are the result.
template <class S, class Sums, class Sink>
INLINE void add_up(const Panel<S> &p, int64_t step, int num_rows, float (*out)[PANEL], Sums sums, Sink sink) {
    const int64_t group = step / p.steps_of_group();
    const pair by = p.scales ? load_pair(p.scales + group * PANEL) : pair{splat(1), splat(1)};
    const bool is_first = group == 0, is_last = step + 1 == p.steps();
    const pair bias = load_pair(p.bias);
    for (int r = 0; r < num_rows; r++) {
        const pair sum = sums(r), before = is_first ? bias : load_pair(out[r]);
        const pair total = {fma(sum.a, by.a, before.a), fma(sum.b, by.b, before.b)};
        if (is_last) sink(r, total);
        else store_pair(out[r], total);
    }
}

// Where the rows of a tile go, from `output` on.
template <class Sink> struct Rows {
    Sink sink;
    int64_t row, output;
    INLINE_MEMBER void operator()(int r, pair values) const { sink(row + r, output, values); }
    INLINE_MEMBER void fetch(int64_t r) const { sink.fetch(row + r, output); }
};

constexpr int AT_ONCE = 2; // rows that are fetched, or stored, in a step

// Sums by a panel of one group that are not stored yet: they are, a few in a step, while the next tiles are multiplied,
// which would otherwise stand still meanwhile.
template <class Sink> struct Waiting {
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

// Up to 2 * ROWS rows. FIRST: they are the first that meet the panel.
template <class S, bool TWO, bool FIRST, class Sink>
void run_panel(const Panel<S> &p, const bf16 *x, int num_rows, const Rows<Sink> &to, Waiting<Sink> &waiting) {
    const int64_t steps = p.steps(), of_group = p.steps_of_group();
    const bf16 *others = x + ROWS * whole_tiles(p.inputs);
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
        waiting.store_some();
        for (int64_t r = AT_ONCE * step; r < std::min<int64_t>(AT_ONCE * (step + 1), num_rows); r++) to.fetch(r);
        if ((step + 1) % of_group || of_group == steps) continue;
        store_sums<TWO>(sums);
        add_up(p, step, num_rows, out, [&](int r) { return load_pair(sums[r]); }, to);
    }
    if (of_group == steps) waiting.template take<S, TWO>(p, num_rows, to);
}

// Adds the products of N rows with inputs k and k + 1 of a panel.
template <class S, int N>
INLINE void multiply_two(const float *x, const S *weight, bool both, pair (&even)[N], pair (&odd)[N]) {
    const pair first = load_pair(weight), second = both ? load_pair(weight + STEP<S>) : pair{};
#pragma GCC unroll 4
    for (int r = 0; r < N; r++) {
        const vf a = splat(x[r]), b = splat(x[N + r]);
        even[r] = {fma(a, first.a, even[r].a), fma(a, first.b, even[r].b)};
        odd[r] = {fma(b, second.a, odd[r].a), fma(b, second.b, odd[r].b)};
    }
}

// The same for N rows by integers, without tiles. x: [inputs][N], an even number.
template <class S, int N, class Sink> void run_few(const Panel<S> &p, const float *x, Sink sink) {
    const int64_t steps = p.steps(), of_group = p.steps_of_group();
    float out[N][PANEL];
    pair sums[N];
    for (int64_t step = 0; step < steps; step++, x += DEPTH * N) {
        const S *weight = p.weight + step * DEPTH * STEP<S>;
        const int num = int(std::min<int64_t>(DEPTH, p.inputs - step * DEPTH));
        prefetch<DEPTH * STEP<S> * sizeof(S)>(weight);
        pair even[N] = {}, odd[N] = {};
        if (num == DEPTH)
#pragma GCC unroll 4
            for (int k = 0; k < DEPTH; k += 2) multiply_two<S, N>(x + k * N, weight + k * STEP<S>, true, even, odd);
        else
            for (int k = 0; k < num; k += 2)
                multiply_two<S, N>(x + k * N, weight + k * STEP<S>, k + 1 < num, even, odd);
        for (int r = 0; r < N; r++) {
            if (step % of_group == 0) sums[r] = pair{};
            sums[r] = {sums[r].a + (even[r].a + odd[r].a), sums[r].b + (even[r].b + odd[r].b)};
        }
        if ((step + 1) % of_group == 0) add_up(p, step, N, out, [&](int r) { return sums[r]; }, sink);
    }
}
template <class S, int N = FEW, class Sink> void run_few(const Panel<S> &p, const float *x, int num_rows, Sink sink) {
    if (num_rows == N) run_few<S, N>(p, x, sink);
    else if constexpr (N > 1) run_few<S, N - 1>(p, x, num_rows, sink);
}

// x of bf16 by weights stored as S; see gemm.h.
template <class S> struct Product {
    using Storage = S;
    using Scope = amx::Scope;
    static constexpr int SPARE_FLOATS = amx::ROWS * DEPTH; // tiles of 16 rows are read where there are fewer
    static constexpr int ROWS = 2 * amx::ROWS;

    // As few tiles of AMX as can be.
    static int64_t first_row(int64_t tile, int64_t, int64_t rows) { return std::min(tile * ROWS, rows); }
    static int64_t row_floats(int64_t inputs) { return whole_tiles(inputs); }
    static int64_t row_bytes(int64_t inputs) { return whole_tiles(inputs) * sizeof(bf16); }
    static int panels_at_once(int) { return 1; }

    // -> bf16 [16 rows or the others][step][row][DEPTH]; of few rows fp32 [inputs][row]. Missing inputs are 0.
    template <class Source> static void pack_rows(const Tile &t, int64_t inputs, Source source, float *out) {
        auto vector = [&](int row, int64_t at) {
            const int some = int(std::clamp<int64_t>(inputs - at, 0, W));
            return some ? source(t.row + row, at, some) : vf{};
        };
        for (int row = 0; row < t.num_rows; row++) {
            const int first = row / amx::ROWS * amx::ROWS, n = std::min(amx::ROWS, t.num_rows - first);
            bf16 *to = (bf16 *)out + first * whole_tiles(inputs) + (row - first) * DEPTH;
            if constexpr (std::is_same_v<Source, InOrder<bf16>>)
                if (inputs % DEPTH == 0 && !without_tiles(t)) {
                    for (int64_t k = 0; k < inputs; k += DEPTH) write(to + k * n, read<vu>(source.at(t.row + row) + k));
                    continue;
                }
            for (int64_t k = 0; k < whole_tiles(inputs); k += W) {
                const vf values = vector(row, k);
                if (without_tiles(t)) for (int i = 0; i < W; i++) out[(k + i) * n + row] = to_bf16(values)[i];
                else store(to + k / DEPTH * n * DEPTH + k % DEPTH, values);
            }
        }
        written();
    }

    template <class At, class Sink>
    static void run(const Tile *tiles, int n, const Weights &w, At packed_at, int64_t panel, int64_t end, Sink sink) {
        Waiting<Sink> waiting = {{sink, 0, 0}};
        bf16 *wide = IN_TILES<S> ? nullptr : scratch<5, bf16>(whole_tiles(w.inputs) * PANEL);
        for (; panel < end; panel++) {
            const S *weight = (const S *)w.panels + panel * panel_size<S>(w.inputs);
            const float *scales = w.scales ? w.scales + panel * (w.inputs / w.group) * PANEL : nullptr;
            const Panel<S> p = {weight, scales, w.bias + panel * PANEL, wide, w.inputs, w.group};
            for (int i = 0; i < n; i++) run_tile(tiles[i], p, packed_at(i), i == 0, panel * PANEL, waiting);
        }
        waiting.store_rest();
    }

  private:
    static bool without_tiles(const Tile &t) { return !IN_TILES<S> && t.num_rows <= FEW; }

    template <class Sink>
    static void run_tile(const Tile &t, Panel<S> p, const float *packed, bool is_first, int64_t output,
                         Waiting<Sink> &waiting) {
        const Rows<Sink> to = {waiting.to.sink, t.row, output};
        if constexpr (IN_TILES<S>) p.tiles = p.weight;
        else if (without_tiles(t)) return run_few(p, packed, t.num_rows, to);
        auto run = [&](auto two, auto first) {
            constexpr bool TWO = decltype(two)::value, FIRST = decltype(first)::value;
            run_panel<S, TWO, FIRST>(p, (const bf16 *)packed, t.num_rows, to, waiting);
        };
        const bool two = t.num_rows > amx::ROWS;
        if (is_first) two ? run(std::true_type(), std::true_type()) : run(std::false_type(), std::true_type());
        else two ? run(std::true_type(), std::false_type()) : run(std::false_type(), std::false_type());
    }
};

} // namespace amx
#endif
