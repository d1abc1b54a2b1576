// Transposition of vectors of 16 lanes.
#pragma once

#if defined(__AMX_BF16__)
#include "pairs.h"

// Transposes in place: lane i of v[j] becomes lane j of v[i].
template <int STEP = 1> INLINE void transpose(vf (&v)[W]) {
    vi low, high; // of two rows: blocks of STEP lanes, in turn from one and from the other
    for (int i = 0; i < W; i++) {
        const bool second = i / STEP % 2;
        low[i] = second ? i - STEP + W : i;
        high[i] = second ? i + W : i + STEP;
    }
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) {
        if (i / STEP % 2) continue;
        const vf a = v[i], b = v[i + STEP];
        v[i] = __builtin_shuffle(a, b, low);
        v[i + STEP] = __builtin_shuffle(a, b, high);
    }
    if constexpr (STEP * 2 < W) transpose<STEP * 2>(v);
}

// Transposes four lanes: lane i of rows[r], r < 4, becomes lane r of what at(i) points to. Other rows are not set.
template <class At> INLINE void transpose_quads(At at, vf (&rows)[W]) {
    vf quads[4];
    for (int i = 0; i < 4; i++) quads[i] = (vf)gather_quads([&](int j) { return at(4 * i + j); });
    vi even, odd, low, high; // of two vectors: lanes 0 and 1 of each quad; lanes 2 and 3; halves
    for (int i = 0; i < W; i++) {
        even[i] = i % 8 * 4 + i / 8, odd[i] = even[i] + 2;
        low[i] = i % 8 + i / 8 * W, high[i] = low[i] + 8;
    }
    const vf a = __builtin_shuffle(quads[0], quads[1], even), b = __builtin_shuffle(quads[2], quads[3], even);
    const vf c = __builtin_shuffle(quads[0], quads[1], odd), d = __builtin_shuffle(quads[2], quads[3], odd);
    rows[0] = __builtin_shuffle(a, b, low), rows[1] = __builtin_shuffle(a, b, high);
    rows[2] = __builtin_shuffle(c, d, low), rows[3] = __builtin_shuffle(c, d, high);
}

// Rounds both vectors to bf16 and interleaves their lanes.
INLINE vu side_by_side(pair v) {
    typedef uint16_t halves __attribute__((vector_size(W * 4)));
    halves from;
    for (int i = 0; i < 2 * W; i++) from[i] = i / 2 + i % 2 * W;
    return (vu)__builtin_shuffle((halves)_mm512_cvtne2ps_pbh((__m512)v.b, (__m512)v.a), from);
}
#endif
