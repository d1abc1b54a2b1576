// Linear layers with fused multiply-adds in fp32 or with products of pairs in bf16. Weights are widened in registers: one
// load and a few cheap instructions, shared by a tile of rows of x. Each result is one chain over the inputs in order
// (with int4 one per group of inputs, scaled and added up), so the bits of a row do not depend on which rows come with
// it.
#pragma once

#include <algorithm>
#include <type_traits>

#include "parallel.h"
#include "pairs.h"
#include "weights.h"

namespace fused {

using namespace gemm;
constexpr int ROWS = ACCUMULATORS / 2; // rows of x at once
// How far ahead a panel is prefetched into L2 and into L1 (0: not at all).
constexpr int FAR_BYTES = W > 8 ? 6144 : 3072, NEAR_BYTES = IN_PAIRS<bf16> ? 0 : 640;
// Few rows are limited by memory bandwidth alone, and up to so many AMD's processors stream faster on their own, best
// from one panel after the other.
constexpr int FEW_ROWS = IN_PAIRS<bf16> ? 4 : W > 8 ? 0 : 1, MOST_PANELS = IN_PAIRS<bf16> ? 2 : 4;

// Prefetches for N rows of x.
template <int N> INLINE void prefetch(const void *weight) {
    if constexpr (N <= FEW_ROWS) return;
    __builtin_prefetch((const char *)weight + FAR_BYTES, 0, 2);
    if constexpr (NEAR_BYTES > 0) __builtin_prefetch((const char *)weight + NEAR_BYTES);
}

// Products in fp32, one input after the other.
struct Single {
    static constexpr int INPUTS = 1;
    template <class S> static INLINE_MEMBER pair load(const S *weight) { return load_pair(weight); }
    static INLINE_MEMBER vf repeat(const float *x) { return splat(*x); }
    static INLINE_MEMBER vf add(vf sums, vf x, vf weight) { return fma(x, weight, sums); }
    static INLINE_MEMBER void store_inputs(float *to, vf x) { store(to, x); }
};
// Products in bf16, two inputs at once. Integers are widened to bf16, which is exact.
struct Paired {
    static constexpr int INPUTS = 2;
    static INLINE_MEMBER pair load(const bf16 *weight) { return {read<vf>(weight), read<vf>(weight + 2 * W)}; }
    template <class S> static INLINE_MEMBER pair load(const S *weight) {
        const pair first = load_pair(weight), second = load_pair(weight + STEP<S>);
        return {(vf)(((vu)first.a >> 16) | (vu)second.a), (vf)(((vu)first.b >> 16) | (vu)second.b)};
    }
    static INLINE_MEMBER vf repeat(const float *x) { return repeat_two(x); }
    static INLINE_MEMBER vf add(vf sums, vf x, vf weight) { return add_products(sums, x, weight); }
    static INLINE_MEMBER void store_inputs(float *to, vf x) { store((bf16 *)to, x); }
};
template <class T> using Products = std::conditional_t<IN_PAIRS<T>, Paired, Single>;

// Adds the products of N rows of x with P panels over inputs [begin, end).
template <class M, class S, int N, int P>
INLINE void multiply(const float *x, const S *weight, int64_t stride, int64_t begin, int64_t end, pair (&sums)[N][P]) {
    constexpr int BYTES = M::INPUTS * STEP<S> * sizeof(S), EVERY = BYTES < 64 ? 64 / BYTES : 1;
    for (int64_t k = begin / M::INPUTS; k * M::INPUTS < end; k++) {
        pair w[P];
#pragma GCC unroll 4
        for (int p = 0; p < P; p++) {
            const S *at = weight + p * stride + k * M::INPUTS * STEP<S>;
            if (k % EVERY == 0)
                for (int line = 0; line < BYTES * EVERY; line += 64) prefetch<N>((const char *)at + line);
            w[p] = M::load(at);
        }
#pragma GCC unroll 16
        for (int r = 0; r < N; r++) {
            const vf a = M::repeat(x + k * N + r);
#pragma GCC unroll 4
            for (int p = 0; p < P; p++) {
                sums[r][p].a = M::add(sums[r][p].a, a, w[p].a);
                sums[r][p].b = M::add(sums[r][p].b, a, w[p].b);
            }
        }
    }
}

// out [N][P * PANEL] = x [inputs / M::INPUTS][N] times panels [panel, panel + P), plus bias.
template <class M, class S, int N, int P>
__attribute__((noinline)) void run_panels(const Weights &w, const float *x, int64_t panel, float *out) {
    const int64_t stride = panel_size<S>(w.inputs), num_groups = w.inputs / w.group;
    const S *weight = (const S *)w.panels + panel * stride;
    const float *bias = w.bias + panel * PANEL;
    for (int r = 0; r < N; r++) memcpy(out + r * P * PANEL, bias, P * PANEL * sizeof(float));
    for (int64_t g = 0; g < num_groups; g++) {
        pair sums[N][P] = {};
        multiply<M, S, N, P>(x, weight, stride, g * w.group, (g + 1) * w.group, sums);
        for (int p = 0; p < P; p++) {
            const int64_t at = ((panel + p) * num_groups + g) * PANEL;
            const pair by = w.scales ? load_pair(w.scales + at) : pair{splat(1), splat(1)};
            for (int r = 0; r < N; r++) {
                float *to = out + (r * P + p) * PANEL;
                store(to, fma(sums[r][p].a, by.a, load(to)));
                store(to + W, fma(sums[r][p].b, by.b, load(to + W)));
            }
        }
    }
}

constexpr int panels_at_once(int rows) {
    if (rows <= FEW_ROWS) return 1;
    return std::min(MOST_PANELS, rows * 8 <= ACCUMULATORS ? 4 : rows * 4 <= ACCUMULATORS ? 2 : 1);
}

// run_panels() for some number of rows: for `many` panels, as many as registers allow, and for one.
struct Runs {
    void (*run_many)(const Weights &, const float *, int64_t, float *);
    void (*run_one)(const Weights &, const float *, int64_t, float *);
    int many;
};
template <class M, class S, int N = ROWS> Runs runs(int n) {
    if (n == N) return {run_panels<M, S, N, panels_at_once(N)>, run_panels<M, S, N, 1>, panels_at_once(N)};
    if constexpr (N > 1) return runs<M, S, N - 1>(n);
    return {};
}

// Multiplies a tile by panels [panel, end). `w` is the weight of the tile's expert.
template <class M, class S, class Sink>
void run_tile(const Tile &t, const Weights &w, const float *x, int64_t panel, int64_t end, Sink sink) {
    const Runs runs = fused::runs<M, S>(t.num_rows);
    float values[ROWS * 4 * PANEL];
    while (panel < end) {
        const int n = panel + runs.many <= end ? runs.many : 1;
        (n > 1 ? runs.run_many : runs.run_one)(w, x, panel, values);
        for (int r = 0; r < t.num_rows; r++)
            for (int p = 0; p < n; p++)
                sink(t.row + r, (panel + p) * PANEL, load_pair(values + (r * n + p) * PANEL));
        panel += n;
    }
}

// Packs a tile's rows as [inputs / M::INPUTS][rows]. source(row, k, n): n <= W inputs of a row from k on.
template <class M, class Source> INLINE void pack_rows(const Tile &t, int64_t inputs, Source source, float *out) {
    const int64_t rows = t.num_rows;
    float lanes[W];
    for (int r = 0; r < rows; r++) {
        float *to = out + r;
        int64_t k = 0;
        for (; k + W <= inputs; k += W, to += W / M::INPUTS * rows) {
            M::store_inputs(lanes, source(t.row + r, k, W));
#pragma GCC unroll 16
            for (int i = 0; i < W / M::INPUTS; i++) to[i * rows] = lanes[i];
        }
        if (k < inputs) M::store_inputs(lanes, source(t.row + r, k, int(inputs - k)));
        for (int i = 0; k + i * M::INPUTS < inputs; i++) to[i * rows] = lanes[i];
    }
}

// The `Product` (see gemm.h) of x in T by weights stored as S.
template <class T, class S> struct Product {
    using M = Products<T>;
    using Storage = S;
    using Scope = NoScope;
    static constexpr int SPARE_FLOATS = 0;
    static constexpr int ROWS = fused::ROWS;

    // Tiles are of equal size, give or take a row.
    static int64_t first_row(int64_t tile, int64_t num_tiles, int64_t rows) { return rows * tile / num_tiles; }
    static int64_t row_floats(int64_t inputs) { return (inputs + M::INPUTS - 1) / M::INPUTS; }
    static int64_t row_bytes(int64_t inputs) { return row_floats(inputs) * sizeof(float); }
    static int panels_at_once(int rows) { return fused::panels_at_once(rows); }

    template <class Source> static void pack_rows(const Tile &t, int64_t inputs, Source source, float *out) {
        fused::pack_rows<M>(t, inputs, source, out);
    }
    template <class At, class Sink>
    static void run(const Tile *tiles, int n, const Weights &w, At packed_at, int64_t panel, int64_t end, Sink sink) {
        for (int i = 0; i < n; i++) run_tile<M, S>(tiles[i], w, packed_at(i), panel, end, sink);
    }
};

} // namespace fused
