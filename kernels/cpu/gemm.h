// x @ weight.T + bias for few to many rows of x.
//
// Weights stay in their own type, packed once into panels of 2W outputs so that a panel is read as one stream, and are
// widened in registers: one load and two cheap instructions serve every row of x. Each result is one chain of fused
// multiply-adds over the inputs in order, so the bits of a row do not depend on how many rows come with it.
#pragma once

#include <algorithm>
#include <type_traits>

#include "parallel.h"
#include "vector.h"

namespace gemm {

constexpr int PANEL = 2 * W;              // outputs
constexpr int ROWS = ACCUMULATORS / 2;    // rows of x at once
constexpr int64_t X_FLOATS = 1 << 18;     // of x at a time, so that it stays in the L2 cache

INLINE int64_t num_panels(int64_t outputs) { return (outputs + PANEL - 1) / PANEL; }

// [outputs, inputs] -> [panel][inputs][PANEL], in the order that load_pair() undoes; missing outputs are 0.
template <class T> void pack(const T *weight, int64_t outputs, int64_t inputs, T *packed) {
    for (int64_t p = 0; p < num_panels(outputs); p++)
        for (int64_t k = 0; k < inputs; k++, packed += PANEL)
            for (int lane = 0; lane < PANEL; lane++) {
                const int64_t n = p * PANEL + lane;
                const int at = std::is_same_v<T, bf16> ? lane % W * 2 + lane / W : lane;
                packed[at] = n < outputs ? weight[n * inputs + k] : T{};
            }
}

// Rows of a tile -> [inputs][rows] in fp32.
template <class T> INLINE void pack_rows(const T *x, int rows, int64_t inputs, float *out) {
    float lanes[W];
    for (int r = 0; r < rows; r++, x += inputs)
        for (int64_t k = 0; k < inputs; k += W) {
            const int n = int(std::min<int64_t>(W, inputs - k));
            store(lanes, n == W ? load(x + k) : load(x + k, n));
            for (int i = 0; i < n; i++) out[(k + i) * rows + r] = lanes[i];
        }
}

// N rows of x by P panels.
template <class T, int N, int P>
INLINE void multiply(const float *x, const T *weight, int64_t inputs, pair (&sums)[N][P]) {
    const int64_t stride = inputs * PANEL;
    for (int64_t k = 0; k < inputs; k++) {
        pair w[P];
#pragma GCC unroll 4
        for (int p = 0; p < P; p++) w[p] = load_pair(weight + p * stride + k * PANEL);
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

template <class T> struct Call {
    const T *weight, *bias; // packed; [outputs] or null
    T *out;                 // [rows, outputs]
    int64_t inputs, outputs;
};

template <class T, int N, int P> void run_panels(const Call<T> &c, const float *x, int64_t row, int64_t panel) {
    pair sums[N][P] = {};
    multiply<T, N, P>(x, c.weight + panel * c.inputs * PANEL, c.inputs, sums);
    for (int p = 0; p < P; p++) {
        const int64_t first = (panel + p) * PANEL;
        const int n = int(std::min<int64_t>(PANEL, c.outputs - first)), na = std::min(n, W), nb = n - na;
        const pair bias = c.bias ? pair{load(c.bias + first, na), load(c.bias + first + na, nb)} : pair{};
        for (int r = 0; r < N; r++) {
            T *out = c.out + (row + r) * c.outputs + first;
            const pair v = {sums[r][p].a + bias.a, sums[r][p].b + bias.b};
            if (n == PANEL) store(out, v.a), store(out + W, v.b);
            else store(out, v.a, na), store(out + na, v.b, nb);
        }
    }
}

constexpr int panels_at_once(int rows) { return rows * 8 <= ACCUMULATORS ? 4 : rows * 4 <= ACCUMULATORS ? 2 : 1; }

// A tile of n rows by the panels [panel, end), as many at once as registers allow.
template <class T, int N = ROWS>
void run_tile(int n, const Call<T> &c, const float *x, int64_t row, int64_t panel, int64_t end) {
    if constexpr (N > 0) {
        if (n != N) return run_tile<T, N - 1>(n, c, x, row, panel, end);
        constexpr int P = panels_at_once(N);
        for (; panel + P <= end; panel += P) run_panels<T, N, P>(c, x, row, panel);
        for (; panel < end; panel++) run_panels<T, N, 1>(c, x, row, panel);
    }
}

// Rows that x's L2 share holds, cut into tiles as even as can be.
template <class T> void run_rows(const Call<T> &c, const T *x, int64_t row, int64_t rows, int threads) {
    const int64_t num_tiles = (rows + ROWS - 1) / ROWS, panels = num_panels(c.outputs);
    auto first = [=](int64_t tile) { return rows * tile / num_tiles; };
    float *packed = scratch<3>(rows * c.inputs);
    parallel(num_tiles, rows * c.inputs, threads, [&](int64_t i) {
        pack_rows(x + (row + first(i)) * c.inputs, int(first(i + 1) - first(i)), c.inputs, packed + first(i) * c.inputs);
    });
    const int64_t run = std::clamp<int64_t>(panels / (4 * threads), 1, 4); // panels that a thread takes at a time
    parallel_dynamic((panels + run - 1) / run, rows * c.inputs * c.outputs / 4, threads, [&](int64_t i) {
        const int64_t end = std::min(panels, (i + 1) * run);
        for (int64_t t = 0; t < num_tiles; t++)
            run_tile(int(first(t + 1) - first(t)), c, packed + first(t) * c.inputs, row + first(t), i * run, end);
    });
}

template <class T> void run(const Call<T> &c, const T *x, int64_t rows, int threads) {
    const int64_t most = std::max<int64_t>(4 * ROWS, X_FLOATS / c.inputs / ROWS * ROWS);
    for (int64_t row = 0; row < rows; row += most) run_rows(c, x, row, std::min(most, rows - row), threads);
}

} // namespace gemm
