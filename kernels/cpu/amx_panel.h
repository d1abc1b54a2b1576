// A panel of weights that a thread multiplies by rows of bf16: fetched ahead, widened where it is of integers, and its
// sums by groups of inputs scaled and added up.
#pragma once

#if defined(__AMX_BF16__)
#include "tiles.h"
#include "weights.h"

namespace amx {

using namespace gemm;

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

} // namespace amx
#endif
