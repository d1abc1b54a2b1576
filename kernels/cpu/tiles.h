// Tiles of AMX, 16 rows of 64 bytes each: that a thread has them, and what holds for all that use them.
#pragma once

#if defined(__AMX_BF16__)
#include "vector.h"

namespace amx {

constexpr int ROWS = 16; // of a tile

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

// Compilers do not know what tiles read.
INLINE void written() { asm volatile("" ::: "memory"); }

} // namespace amx
#endif
