// A panel of weights while a thread multiplies it by rows of bf16: prefetching it, widening integers, and scaling and
// adding up the sums of its groups of inputs.
#pragma once

#if defined(__AMX_BF16__)
#include "tiles.h"
#include "weights.h"

namespace amx {

using namespace gemm;

constexpr int FAR_BYTES = 6144, NEAR_BYTES = 1024; // how far ahead a panel is prefetched into L2 and into L1

template <int BYTES> INLINE void prefetch(const void *weight) {
    for (int i = 0; i < BYTES; i += 64) {
        __builtin_prefetch((const char *)weight + FAR_BYTES + i, 0, 2);
        __builtin_prefetch((const char *)weight + NEAR_BYTES + i);
    }
}

// Widens one step of a panel of integers to two tiles, in the layout that pack() gives bf16.
template <class S> INLINE void widen(const S *weight, int num_inputs, bf16 *out) {
#pragma GCC unroll 4
    for (int k = 0; k < DEPTH; k += 2, out += PANEL) {
        const pair even = k < num_inputs ? load_pair(weight + k * STEP<S>) : pair{};
        const pair odd = k + 1 < num_inputs ? load_pair(weight + (k + 1) * STEP<S>) : pair{};
        write(out, ((vu)even.a >> 16) | ((vu)odd.a & 0xffff0000));
        write(out + SIZE, ((vu)even.b >> 16) | ((vu)odd.b & 0xffff0000));
    }
}

// A panel, which a thread multiplies by one tile of rows after another.
template <class S> struct Panel {
    const S *weight;
    const float *scales, *bias;
    const bf16 *tiles; // the weight itself, or the buffer that it is widened to while the first rows are multiplied
    int64_t inputs, group;
    int64_t steps() const { return padded(inputs) / DEPTH; }
    int64_t steps_of_group() const { return padded(group) / DEPTH; }
};

template <class S> INLINE void widen(const Panel<S> &p, int64_t step) {
    const S *from = p.weight + step * DEPTH * STEP<S>;
    bf16 *to = (bf16 *)p.tiles + step * 2 * SIZE;
    prefetch<DEPTH * STEP<S> * sizeof(S)>(from);
    if ((step + 1) * DEPTH <= p.inputs) widen(from, DEPTH, to);
    else widen(from, int(p.inputs - step * DEPTH), to);
}

// Scales a group's sums and adds them to `out` (the first group's to the bias). After the last group the totals go to
// `sink` instead.
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

} // namespace amx
#endif
