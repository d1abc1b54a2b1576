// AMX tiles, registers of 16 rows of 64 bytes: their configuration, and what all their users share.
#pragma once

#if defined(__AMX_BF16__)
#include "vector.h"

namespace amx {

constexpr int ROWS = 16;   // of a tile
constexpr int SIZE = 512;  // bf16 of a tile

struct alignas(64) Config { // the operand of LDTILECFG
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {ROWS, ROWS, ROWS, ROWS, ROWS, ROWS, ROWS, ROWS};
};
constexpr Config CONFIG;

// Configures this thread's tiles, and releases them when it is destroyed. Costs a tenth of a microsecond.
struct Tiles {
    Tiles() { _tile_loadconfig(&CONFIG); }
    ~Tiles() { _tile_release(); }
};

// Tiles for this thread, whose other instructions treat subnormal numbers as 0 meanwhile, as AMX does. Fused
// multiply-adds can then give the same sums, to the bit. By Intel's manual, TDPBF16PS sums up the products of a row's
// even elements and those of its odd elements separately, adds the two sums, and adds the result to the accumulator.
struct Scope {
    const Tiles tiles;
    const unsigned control = _mm_getcsr();
    Scope() { _mm_setcsr(control | _MM_FLUSH_ZERO_ON | _MM_DENORMALS_ZERO_ON); }
    ~Scope() { _mm_setcsr(control); }
};

// A compiler barrier, since compilers do not know which memory tile instructions read.
INLINE void written() { asm volatile("" ::: "memory"); }

// Sums of 16 rows, or 32 (TWO), by 32 columns: the first 16 rows are in tiles 0 and 1, the others in tiles 2 and 3.
template <bool TWO> INLINE void zero() {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (TWO) {
        _tile_zero(2);
        _tile_zero(3);
    }
}
// Adds the products of 32 elements of each row with two tiles. `rows` and `others` (TWO) are `stride` bytes apart.
template <bool TWO> INLINE void multiply(const bf16 *rows, const bf16 *others, int64_t stride, const bf16 *tiles) {
    _tile_loadd(6, tiles, 64);
    _tile_loadd(4, rows, stride);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, tiles + SIZE, 64);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (TWO) {
        _tile_loadd(5, others, stride);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
}
template <bool TWO> INLINE void store_sums(float (*sums)[2 * W]) {
    _tile_stored(0, sums[0], sizeof *sums);
    _tile_stored(1, sums[0] + W, sizeof *sums);
    if constexpr (TWO) {
        _tile_stored(2, sums[ROWS], sizeof *sums);
        _tile_stored(3, sums[ROWS] + W, sizeof *sums);
    }
}

} // namespace amx
#endif
