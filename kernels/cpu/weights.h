// The packed layout of weights of linear layers, and the rows of x that are multiplied by them.
//
// Weights keep the type that they are stored in (fp32, bf16, fp16, int8 or int4), and are packed once into panels of 2W
// outputs, so that a panel is read as one sequential stream.
#pragma once

#include <type_traits>

#include "pairs.h"

namespace gemm {

constexpr int PANEL = 2 * W; // outputs

// The weights of one expert after another; a plain linear layer has a single one. library.py mirrors this struct.
struct Weights {
    const void *panels;  // of S: [experts][panel][panel_size<S>]
    const float *scales; // [experts][panel][inputs / group][PANEL], or null
    const float *bias;   // [experts][panels * PANEL]
    int64_t outputs, inputs, group; // group: how many inputs share a scale
    int64_t storage;     // number of S; see weights.py
};

// Rows of x, all of one expert, that are multiplied at once.
struct Tile {
    int64_t row;
    int32_t num_rows, expert;
};

// A source of rows that are contiguous in memory.
template <class T> struct InOrder {
    const T *x;
    int64_t inputs;
    INLINE_MEMBER const T *at(int64_t row) const { return x + row * inputs; }
    INLINE_MEMBER vf operator()(int64_t row, int64_t k, int n) const { return load_some(at(row) + k, n); }
};

INLINE int64_t num_panels(int64_t outputs) { return (outputs + PANEL - 1) / PANEL; }
template <class S> constexpr int STEP = std::is_same_v<S, int4> ? W : PANEL; // elements of S per panel and input

#if defined(__AMX_BF16__)
constexpr int DEPTH = 32; // inputs of a row in an AMX tile, a step; panels are padded to a multiple of it
template <class S> constexpr bool IN_TILES = std::is_same_v<S, bf16>; // whether panels are stored as tiles
#else
constexpr int DEPTH = IN_PAIRS<bf16> ? 2 : 1;
template <class S> constexpr bool IN_TILES = false;
#endif
INLINE int64_t padded(int64_t inputs) { return (inputs + DEPTH - 1) / DEPTH * DEPTH; }

template <class S> INLINE int64_t stored_inputs(int64_t inputs) {
    return IN_TILES<S> || IN_PAIRS<bf16> ? padded(inputs) : inputs;
}
template <class S> INLINE int64_t panel_size(int64_t inputs) { return stored_inputs<S>(inputs) * STEP<S>; } // elements

template <class S> INLINE Weights of_expert(Weights w, int expert) {
    const int64_t panels = expert * num_panels(w.outputs);
    w.panels = (const S *)w.panels + panels * panel_size<S>(w.inputs);
    w.scales = w.scales ? w.scales + panels * (w.inputs / w.group) * PANEL : nullptr;
    w.bias += panels * PANEL;
    return w;
}

// Where output `lane` of a panel is stored, given the order in which load_pair() loads.
INLINE int place(int lane, const void *) { return lane; }
INLINE int place(int lane, const bf16 *) { return lane % W * 2 + lane / W; }

// Packs [outputs, inputs] into panels of [stored inputs][STEP]; missing outputs and inputs are 0.
template <class S> void pack(const S *weight, int64_t outputs, int64_t inputs, S *packed) {
    for (int64_t p = 0; p < num_panels(outputs); p++)
        for (int64_t k = 0; k < stored_inputs<S>(inputs); k++, packed += PANEL)
            for (int lane = 0; lane < PANEL; lane++) {
                const int64_t n = p * PANEL + lane;
                packed[place(lane, packed)] = n < outputs && k < inputs ? weight[n * inputs + k] : S{};
            }
}
inline void pack(const int8 *weight, int64_t outputs, int64_t inputs, int4 *packed) {
    auto at = [=](int64_t n, int64_t k) { return uint8_t(n < outputs ? weight[n * inputs + k].bits + 8 : 8); };
    for (int64_t p = 0; p < num_panels(outputs); p++)
        for (int64_t k = 0; k < inputs; k++)
            for (int64_t n = p * PANEL; n < p * PANEL + W; n++) *packed++ = {uint8_t(at(n, k) | at(n + W, k) << 4)};
}
#if defined(__AVX512BF16__)
// The same as [inputs / DEPTH][2][DEPTH / 2][W][2], innermost a pair of inputs. On AMX each half is a tile.
template <> inline void pack(const bf16 *weight, int64_t outputs, int64_t inputs, bf16 *packed) {
    for (int64_t p = 0; p < num_panels(outputs); p++)
        for (int64_t k = 0; k < padded(inputs); k += DEPTH)
            for (int64_t first = p * PANEL; first < (p + 1) * PANEL; first += W)
                for (int i = 0; i < DEPTH * W; i++) {
                    const int64_t n = first + i / 2 % W, input = k + i / (2 * W) * 2 + i % 2;
                    *packed++ = n < outputs && input < inputs ? weight[n * inputs + input] : bf16{};
                }
}
#endif

} // namespace gemm
