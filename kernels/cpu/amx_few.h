// One or two rows of bf16 by integers, without tiles: so few rows do not repay widening the integers, storing them and
// loading them as tiles. Fused multiply-adds give the same sums to the bit; see Scope in tiles.h.
#pragma once

#if defined(__AMX_BF16__)
#include <algorithm>

#include "amx_panel.h"

namespace amx {

constexpr int FEW = 2; // rows, at most

// Adds the products of N rows for inputs k and k + 1 of a panel, to sums of their own as TDPBF16PS does.
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

// Multiplies N rows by a panel. x: [inputs][N], zero-padded to whole steps.
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

} // namespace amx
#endif
