// x @ weight.T + bias for few to many rows of x, by one weight or by the expert of each row.
//
// Weights stay as they are stored (fp32, bf16, fp16, int8 or int4), packed once into panels of 2W outputs so that a
// panel is read as one stream, and are widened in registers: one load and a few cheap instructions serve a tile of rows
// of x. Each result is one chain of fused multiply-adds over the inputs in order (one per group of inputs with int4,
// scaled and added up), so the bits of a row do not depend on which rows come with it.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "parallel.h"
#include "vector.h"

namespace gemm {

constexpr int PANEL = 2 * W;           // outputs
constexpr int ROWS = ACCUMULATORS / 2; // rows of x at once
constexpr int64_t X_FLOATS = 1 << 18;  // of x at a time, so that it stays in the L2 cache
// How far ahead a panel is fetched into the L2 and the L1 cache.
constexpr int FAR_BYTES = W > 8 ? 6144 : 3072, NEAR_BYTES = 640;

INLINE int64_t num_panels(int64_t outputs) { return (outputs + PANEL - 1) / PANEL; }
template <class S> constexpr int STEP = std::is_same_v<S, int4> ? W : PANEL; // elements of S per panel and input

// Of one expert after another; plain linear layers are a single one. library.py has the same struct.
struct Weights {
    const void *panels;  // of S: [experts][panel][inputs][STEP]
    const float *scales; // [experts][panel][inputs / group][PANEL], or null
    const float *bias;   // [experts][panels * PANEL]
    int64_t outputs, inputs, group; // inputs that share a scale
    int64_t storage;     // which S
};

// Where output `lane` of a panel goes, so that load_pair() finds it.
INLINE int place(int lane, const void *) { return lane; }
INLINE int place(int lane, const bf16 *) { return lane % W * 2 + lane / W; }

// [outputs, inputs] -> panels; missing outputs are 0.
template <class S> void pack(const S *weight, int64_t outputs, int64_t inputs, S *packed) {
    for (int64_t p = 0; p < num_panels(outputs); p++)
        for (int64_t k = 0; k < inputs; k++, packed += PANEL)
            for (int lane = 0; lane < PANEL; lane++) {
                const int64_t n = p * PANEL + lane;
                packed[place(lane, packed)] = n < outputs ? weight[n * inputs + k] : S{};
            }
}
inline void pack(const int8 *weight, int64_t outputs, int64_t inputs, int4 *packed) {
    auto at = [=](int64_t n, int64_t k) { return uint8_t(n < outputs ? weight[n * inputs + k].bits + 8 : 8); };
    for (int64_t p = 0; p < num_panels(outputs); p++)
        for (int64_t k = 0; k < inputs; k++)
            for (int64_t n = p * PANEL; n < p * PANEL + W; n++) *packed++ = {uint8_t(at(n, k) | at(n + W, k) << 4)};
}

// For N rows of x. With a single one memory alone sets the pace; processors with AVX2 stream faster when left to it.
template <int N> INLINE void prefetch(const void *weight) {
    if constexpr (W <= 8 && N == 1) return;
    __builtin_prefetch((const char *)weight + FAR_BYTES, 0, 2);
    __builtin_prefetch((const char *)weight + NEAR_BYTES);
}

// N rows of x by P panels, over inputs [begin, end).
template <class S, int N, int P>
INLINE void multiply(const float *x, const S *weight, int64_t stride, int64_t begin, int64_t end, pair (&sums)[N][P]) {
    constexpr int PER_LINE = std::max<int>(1, 64 / (STEP<S> * sizeof(S)));
    for (int64_t k = begin; k < end; k++) {
        pair w[P];
#pragma GCC unroll 4
        for (int p = 0; p < P; p++) {
            const S *at = weight + p * stride + k * STEP<S>;
            if (k % PER_LINE == 0) prefetch<N>(at);
            w[p] = load_pair(at);
        }
#pragma GCC unroll 16
        for (int r = 0; r < N; r++) {
            const vf a = splat(x[k * N + r]);
#pragma GCC unroll 4
            for (int p = 0; p < P; p++) {
                sums[r][p].a = fma(a, w[p].a, sums[r][p].a);
                sums[r][p].b = fma(a, w[p].b, sums[r][p].b);
            }
        }
    }
}

// out[N][P * PANEL] = x[inputs][N] by the panels [panel, panel + P).
template <class S, int N, int P>
__attribute__((noinline)) void run_panels(const Weights &w, const float *x, int64_t panel, float *out) {
    const int64_t stride = w.inputs * STEP<S>, num_groups = w.inputs / w.group;
    const S *weight = (const S *)w.panels + panel * stride;
    const float *bias = w.bias + panel * PANEL;
    for (int r = 0; r < N; r++) memcpy(out + r * P * PANEL, bias, P * PANEL * sizeof(float));
    for (int64_t g = 0; g < num_groups; g++) {
        pair sums[N][P] = {};
        multiply<S, N, P>(x, weight, stride, g * w.group, (g + 1) * w.group, sums);
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

// Rows of x of one expert that are multiplied at once.
struct Tile {
    int64_t row;
    int32_t num_rows, expert;
};

// The rows [row, row + num_rows) of an expert, cut into tiles as even as can be.
inline void cut(int64_t row, int64_t num_rows, int expert, std::vector<Tile> &tiles) {
    const int64_t n = (num_rows + ROWS - 1) / ROWS;
    for (int64_t i = 0; i < n; i++) {
        const int64_t first = num_rows * i / n, end = num_rows * (i + 1) / n;
        tiles.push_back({row + first, int32_t(end - first), expert});
    }
}

constexpr int panels_at_once(int rows) { return rows * 8 <= ACCUMULATORS ? 4 : rows * 4 <= ACCUMULATORS ? 2 : 1; }

// run_panels of n rows, as many panels at once as registers allow (`many`), or one by one.
struct Product {
    void (*run_many)(const Weights &, const float *, int64_t, float *);
    void (*run_one)(const Weights &, const float *, int64_t, float *);
    int many;
};
template <class S, int N = ROWS> Product product(int n) {
    if (n == N) return {run_panels<S, N, panels_at_once(N)>, run_panels<S, N, 1>, panels_at_once(N)};
    if constexpr (N > 1) return product<S, N - 1>(n);
    return {};
}

// A tile by the panels [panel, end). `w` is that of the tile's expert.
template <class S, class Sink>
void run_tile(const Tile &t, const Weights &w, const float *x, int64_t panel, int64_t end, Sink sink) {
    const Product product = gemm::product<S>(t.num_rows);
    float values[ROWS * 4 * PANEL];
    while (panel < end) {
        const int n = panel + product.many <= end ? product.many : 1;
        (n > 1 ? product.run_many : product.run_one)(w, x, panel, values);
        for (int r = 0; r < t.num_rows; r++)
            for (int p = 0; p < n; p++) sink(t.row + r, (panel + p) * PANEL, values + (r * n + p) * PANEL);
        panel += n;
    }
}

template <class S> INLINE Weights of_expert(Weights w, int expert) {
    const int64_t panels = expert * num_panels(w.outputs);
    w.panels = (const S *)w.panels + panels * w.inputs * STEP<S>;
    w.scales = w.scales ? w.scales + panels * (w.inputs / w.group) * PANEL : nullptr;
    w.bias += panels * PANEL;
    return w;
}

// Rows of a tile -> [inputs][rows]. source(row, k, n): n <= W inputs of a row from k on.
template <class Source> INLINE void pack_rows(const Tile &t, int64_t inputs, Source source, float *out) {
    const int64_t rows = t.num_rows;
    float lanes[W];
    for (int r = 0; r < rows; r++) {
        float *to = out + r;
        int64_t k = 0;
        for (; k + W <= inputs; k += W, to += W * rows) {
            store(lanes, source(t.row + r, k, W));
#pragma GCC unroll 16
            for (int i = 0; i < W; i++) to[i * rows] = lanes[i];
        }
        if (k < inputs) store(lanes, source(t.row + r, k, int(inputs - k)));
        for (int i = 0; k + i < inputs; i++) to[i * rows] = lanes[i];
    }
}

// Consecutive tiles [first, end) of one expert.
struct Run {
    int32_t first, end;
};

// As many tiles as the L2 cache holds the rows of.
template <class S, class Source, class Sink>
void run_tiles(const Weights &w, const Tile *tiles, int num_tiles, int64_t rows, Source source, Sink sink,
               int threads) {
    const int64_t panels = num_panels(w.outputs);
    float *packed = scratch<3>(rows * w.inputs);
    auto packed_at = [&](int tile) { return packed + (tiles[tile].row - tiles[0].row) * w.inputs; };
    parallel(num_tiles, rows * w.inputs, threads,
             [&](int64_t i) { pack_rows(tiles[i], w.inputs, source, packed_at(i)); });

    static thread_local std::vector<Run> runs;
    runs.clear();
    for (int i = 0; i < num_tiles; i++)
        if (i && tiles[i].expert == tiles[i - 1].expert) runs.back().end++;
        else runs.push_back({i, i + 1});
    const Run *all = runs.data();
    const int64_t fast = std::min<int64_t>(panels_at_once(tiles[0].num_rows), panels / threads);
    const int64_t at_once = std::max(fast, std::clamp<int64_t>(panels / (4 * threads), 1, 4)); // that a thread takes
    const int64_t per_run = (panels + at_once - 1) / at_once;
    parallel_dynamic(runs.size() * per_run, rows * w.inputs * w.outputs / 4, threads, [&](int64_t i) {
        const Run run = all[i / per_run];
        const int64_t panel = i % per_run * at_once, end = std::min(panels, panel + at_once);
        const Weights own = of_expert<S>(w, tiles[run.first].expert);
        for (int t = run.first; t < run.end; t++) run_tile<S>(tiles[t], own, packed_at(t), panel, end, sink);
    });
}

// Rows from `source`, each by the weight of its tile's expert, to `sink(row, first output, PANEL values)`. Tiles are in
// order of rows.
template <class S, class Source, class Sink>
void run(const Weights &w, const std::vector<Tile> &tiles, Source source, Sink sink, int threads) {
    const int64_t most = std::max<int64_t>(4 * ROWS, X_FLOATS / w.inputs);
    for (size_t first = 0, end = 0; first < tiles.size(); first = end) {
        int64_t rows = 0;
        while (end < tiles.size() && rows + tiles[end].num_rows <= most) rows += tiles[end++].num_rows;
        run_tiles<S>(w, &tiles[first], int(end - first), rows, source, sink, threads);
    }
}

// Values of a panel from output `first` on, to a row of `outputs`.
template <class T> INLINE void store_panel(T *row, int64_t outputs, int64_t first, const float *values) {
    const int n = int(std::min<int64_t>(PANEL, outputs - first));
    if (n == PANEL) store(row + first, load(values)), store(row + first + W, load(values + W));
    else if (n > W) store(row + first, load(values)), store(row + first + W, load(values + W), n - W);
    else store(row + first, load(values), n);
}

// One weight for all rows.
template <class T, class S> void linear(const Weights &w, const T *x, T *out, int64_t rows, int threads) {
    static thread_local std::vector<Tile> tiles;
    tiles.clear();
    cut(0, rows, 0, tiles);
    auto source = [=](int64_t row, int64_t k, int n) { return load_some(x + row * w.inputs + k, n); };
    auto sink = [=](int64_t row, int64_t first, const float *values) {
        store_panel(out + row * w.outputs, w.outputs, first, values);
    };
    run<S>(w, tiles, source, sink, threads);
}

} // namespace gemm
