// Tiles of AMX, 16 rows of 64 bytes each: that a thread has them, and what holds for all that use them.
#pragma once

#if defined(__AMX_BF16__)
#include "vector.h"

namespace amx {

constexpr int ROWS = 16;   // of a tile
constexpr int SIZE = 512;  // bf16 of a tile

struct alignas(64) Config { // as the processor reads it
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {ROWS, ROWS, ROWS, ROWS, ROWS, ROWS, ROWS, ROWS};
};
constexpr Config CONFIG;

// A thread has tiles while this lives. It costs a tenth of a microsecond.
struct Tiles {
    Tiles() { _tile_loadconfig(&CONFIG); }
    ~Tiles() { _tile_release(); }
};

// The same, and subnormal numbers are 0 to all the rest as they are to tiles: fused multiply-adds then give the same
// sums, to the bit, as Intel's manual has it of TDPBF16PS: what even and what odd elements of a tile's rows make is
// summed up apart, then with each other, then with what was there.
struct Scope {
    const Tiles tiles;
    const unsigned control = _mm_getcsr();
    Scope() { _mm_setcsr(control | _MM_FLUSH_ZERO_ON | _MM_DENORMALS_ZERO_ON); }
    ~Scope() { _mm_setcsr(control); }
};

// Compilers do not know what tiles read.
INLINE void written() { asm volatile("" ::: "memory"); }

// 16 rows, or 32 (TWO), by 32 columns: tiles 0 and 1 have the sums of the first 16 rows, 2 and 3 of the others.
template <bool TWO> INLINE void zero() {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (TWO) {
        _tile_zero(2);
        _tile_zero(3);
    }
}
// Adds 32 elements of rows, `stride` bytes apart, times two tiles.
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
