// Products of bf16 rows by tiles of AMX: 16 rows of x, or 16 outputs, by 32 inputs each. Sums are fp32.
//
// A row's bits do not depend on which rows come with it, nor on how many: tiles are always configured for 16, and what
// a tile holds beside a row meets only sums that nobody reads. Integers are exact in bf16, and are widened once for all
// rows; a group's sum is scaled.
#pragma once

#if defined(__AMX_BF16__)
#include <algorithm>
#include <type_traits>

#include "parallel.h"
#include "weights.h"

namespace amx {

using namespace gemm;

constexpr int ROWS = 16;          // of a tile
constexpr int SIZE = ROWS * DEPTH; // elements of a tile
constexpr int STEPS_AHEAD = 3;     // that integers are widened before they are multiplied
constexpr int FAR_BYTES = 6144, NEAR_BYTES = 1024; // that a panel is fetched ahead into the L2 and the L1 cache

struct alignas(64) Config { // as the processor reads it
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {ROWS, ROWS, ROWS, ROWS, ROWS, ROWS, ROWS, ROWS};
};
constexpr Config CONFIG;

// A thread has tiles while this lives. It costs a tenth of a microsecond.
struct Scope {
    Scope() { _tile_loadconfig(&CONFIG); }
    ~Scope() { _tile_release(); }
};

// Compilers do not know what tiles read.
INLINE void written() { asm volatile("" ::: "memory"); }

// Up to 32 rows by a panel: tiles 0 and 1 have the sums of the first 16 rows, 2 and 3 of the others.
template <bool TWO> INLINE void zero() {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (TWO) {
        _tile_zero(2);
        _tile_zero(3);
    }
}
// A step: DEPTH inputs.
template <bool TWO> INLINE void multiply(const bf16 *x, const bf16 *others, const bf16 *weight) {
    _tile_loadd(6, weight, 64);
    _tile_loadd(4, x, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, weight + SIZE, 64);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (TWO) {
        _tile_loadd(5, others, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
}
template <bool TWO> INLINE void store_sums(float (*sums)[PANEL]) {
    _tile_stored(0, sums[0], sizeof *sums);
    _tile_stored(1, sums[0] + W, sizeof *sums);
    if constexpr (TWO) {
        _tile_stored(2, sums[ROWS], sizeof *sums);
        _tile_stored(3, sums[ROWS] + W, sizeof *sums);
    }
}

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
template <class S> INLINE void widen(const S *weight, int64_t inputs, int64_t step, bf16 *out) {
    const S *from = weight + step * DEPTH * STEP<S>;
    prefetch<DEPTH * STEP<S> * sizeof(S)>(from);
    if ((step + 1) * DEPTH <= inputs) widen(from, DEPTH, out + step * 2 * SIZE);
    else widen(from, int(inputs - step * DEPTH), out + step * 2 * SIZE);
}

// A panel that a thread multiplies by one tile of rows after another.
template <class S> struct Panel {
    const S *weight;
    const float *scales, *bias;
    const bf16 *tiles; // the weight itself, or what it was widened to while the first rows were multiplied
    int64_t inputs, group;
};

// out[num_rows][PANEL] = x by a panel. FIRST: these are the first rows that meet it.
template <class S, bool TWO, bool FIRST>
void run_panel(const Panel<S> &p, const bf16 *x, int num_rows, float (*out)[PANEL]) {
    const int64_t steps = whole_tiles(p.inputs) / DEPTH, of_group = whole_tiles(p.group) / DEPTH;
    const bf16 *others = x + ROWS * whole_tiles(p.inputs);
    const int stride = std::min(num_rows, ROWS) * DEPTH, of_others = (num_rows - ROWS) * DEPTH;
    alignas(64) float sums[(1 + TWO) * ROWS][PANEL];
    for (int r = 0; r < num_rows; r++) memcpy(out[r], p.bias, sizeof *out);
    if constexpr (FIRST && !IN_TILES<S>)
        for (int step = 0; step < std::min<int64_t>(STEPS_AHEAD, steps); step++)
            widen(p.weight, p.inputs, step, (bf16 *)p.tiles);
    for (int64_t step = 0; step < steps; step++) {
        const bf16 *weight = p.tiles + step * 2 * SIZE;
        if constexpr (FIRST && IN_TILES<S>) prefetch<2 * SIZE * sizeof(bf16)>(weight);
        if constexpr (FIRST && !IN_TILES<S>) {
            if (step + STEPS_AHEAD < steps) widen(p.weight, p.inputs, step + STEPS_AHEAD, (bf16 *)p.tiles);
            written();
        }
        if (step % of_group == 0) zero<TWO>();
        multiply<TWO>(x + step * stride, others + step * of_others, weight);
        if ((step + 1) % of_group) continue;
        store_sums<TWO>(sums);
        const pair by = p.scales ? load_pair(p.scales + step / of_group * PANEL) : pair{splat(1), splat(1)};
        for (int r = 0; r < num_rows; r++) {
            store(out[r], fma(load(sums[r]), by.a, load(out[r])));
            store(out[r] + W, fma(load(sums[r] + W), by.b, load(out[r] + W)));
        }
    }
}

// x of bf16 by weights stored as S; see gemm.h.
template <class S> struct Product {
    using Storage = S;
    using Element = bf16;
    using Scope = amx::Scope;
    static constexpr int ROWS = 2 * amx::ROWS;

    // As few tiles of AMX as can be.
    static int64_t first_row(int64_t tile, int64_t, int64_t rows) { return std::min(tile * ROWS, rows); }
    static int64_t padded(int64_t inputs) { return whole_tiles(inputs); }
    static int panels_at_once(int) { return 1; }

    // -> [16 rows or the others][step][row][DEPTH], with 0 for missing inputs.
    template <class Source> static void pack_rows(const Tile &t, int64_t inputs, Source source, bf16 *out) {
        for (int first = 0; first < t.num_rows; first += amx::ROWS) {
            const int n = std::min(amx::ROWS, t.num_rows - first);
            for (int r = 0; r < n; r++) {
                bf16 *to = out + r * DEPTH;
                for (int64_t k = 0; k < inputs; k += DEPTH, to += n * DEPTH) {
                    auto half = [&](int64_t at) {
                        const int some = int(std::clamp<int64_t>(inputs - at, 0, W));
                        return some ? source(t.row + first + r, at, some) : vf{};
                    };
                    store(to, half(k)), store(to + W, half(k + W));
                }
            }
            out += n * whole_tiles(inputs);
        }
        written();
    }

    template <class At, class Sink>
    static void run(const Tile *tiles, int n, const Weights &w, At packed_at, int64_t panel, int64_t end, Sink sink) {
        bf16 *wide = IN_TILES<S> ? nullptr : scratch<5, bf16>(whole_tiles(w.inputs) * PANEL);
        for (; panel < end; panel++) {
            const S *weight = (const S *)w.panels + panel * panel_size<S>(w.inputs);
            const float *scales = w.scales ? w.scales + panel * (w.inputs / w.group) * PANEL : nullptr;
            const Panel<S> p = {weight, scales, w.bias + panel * PANEL, wide, w.inputs, w.group};
            for (int i = 0; i < n; i++) run_tile(tiles[i], p, packed_at(i), i == 0, panel * PANEL, sink);
        }
    }

  private:
    template <class Sink>
    static void run_tile(const Tile &t, Panel<S> p, const bf16 *x, bool is_first, int64_t output, Sink sink) {
        if constexpr (IN_TILES<S>) p.tiles = p.weight;
        alignas(64) float out[ROWS][PANEL];
        const bool two = t.num_rows > amx::ROWS;
        if (is_first) (two ? run_panel<S, true, true> : run_panel<S, false, true>)(p, x, t.num_rows, out);
        else (two ? run_panel<S, true, false> : run_panel<S, false, false>)(p, x, t.num_rows, out);
        for (int r = 0; r < t.num_rows; r++) sink(t.row + r, output, out[r]);
    }
};

} // namespace amx
#endif
