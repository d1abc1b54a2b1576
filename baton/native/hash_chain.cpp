// Chained SHA-256 (FIPS 180-4) of blocks of equal size: digest[i] = sha256(block[i] || digest[i - 1])[:16].
// Uses the processor's SHA instructions if it has them. hash_chain.py describes the chain; tests compare with hashlib.
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace {

constexpr size_t kDigest = 16, kChunk = 64, kLength = 8;

alignas(16) constexpr uint32_t kRounds[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

using Compress = void (*)(uint32_t *state, const uint8_t *chunk, uint32_t *other, const uint8_t *other_chunk);

uint32_t rotated(uint32_t x, int by) { return x >> by | x << (32 - by); }

uint32_t big_endian(uint32_t x) { return x >> 24 | (x >> 8 & 0xff00) | (x << 8 & 0xff0000) | x << 24; }

void compress_portably(uint32_t *state, const uint8_t *chunk) {
    uint32_t w[64];
    for (int i = 0; i < 16; ++i, chunk += 4)
        w[i] = uint32_t(chunk[0]) << 24 | uint32_t(chunk[1]) << 16 | uint32_t(chunk[2]) << 8 | chunk[3];
    for (int i = 16; i < 64; ++i) {
        const uint32_t x = w[i - 15], y = w[i - 2];
        w[i] = w[i - 16] + (rotated(x, 7) ^ rotated(x, 18) ^ x >> 3) + w[i - 7] +
               (rotated(y, 17) ^ rotated(y, 19) ^ y >> 10);
    }
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (int i = 0; i < 64; ++i) {
        const uint32_t chosen = (e & f) ^ (~e & g);
        const uint32_t t = h + (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) + chosen + kRounds[i] + w[i];
        const uint32_t u = (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
        h = g, g = f, f = e, e = d + t, d = c, c = b, b = a, a = t + u;
    }
    const uint32_t sums[8] = {a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; ++i) state[i] += sums[i];
}

// Compresses a chunk, and one of another hash beside it unless `other` is null.
void compress_both_portably(uint32_t *state, const uint8_t *chunk, uint32_t *other, const uint8_t *other_chunk) {
    compress_portably(state, chunk);
    if (other != nullptr) compress_portably(other, other_chunk);
}

#if defined(__x86_64__)
// The rounds of one chunk wait for each other. With two lanes the processor always has something to do.
template <int kLanes>
__attribute__((target("sha,ssse3,sse4.1"))) inline void compress_lanes(uint32_t *const *states,
                                                                       const uint8_t *const *chunks) {
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    __m128i abef[kLanes], cdgh[kLanes], abef_before[kLanes], cdgh_before[kLanes], w[kLanes][4];
    for (int lane = 0; lane < kLanes; ++lane) {
        const __m128i *const halves = reinterpret_cast<const __m128i *>(states[lane]);
        const __m128i cdab = _mm_shuffle_epi32(_mm_loadu_si128(halves), 0xb1);
        const __m128i efgh = _mm_shuffle_epi32(_mm_loadu_si128(halves + 1), 0x1b);
        abef[lane] = abef_before[lane] = _mm_alignr_epi8(cdab, efgh, 8);
        cdgh[lane] = cdgh_before[lane] = _mm_blend_epi16(efgh, cdab, 0xf0);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {  // four rounds per iteration
        const __m128i k = _mm_load_si128(reinterpret_cast<const __m128i *>(kRounds) + i);
#pragma GCC unroll 2
        for (int lane = 0; lane < kLanes; ++lane) {
            __m128i &now = w[lane][i % 4];
            const __m128i before = w[lane][(i + 3) % 4];
            if (i < 4) {
                const __m128i *const words = reinterpret_cast<const __m128i *>(chunks[lane]);
                now = _mm_shuffle_epi8(_mm_loadu_si128(words + i), big_endian);
            } else {
                const __m128i seventh = _mm_alignr_epi8(before, w[lane][(i + 2) % 4], 4);
                const __m128i half = _mm_sha256msg1_epu32(now, w[lane][(i + 1) % 4]);
                now = _mm_sha256msg2_epu32(_mm_add_epi32(half, seventh), before);
            }
            const __m128i sum = _mm_add_epi32(now, k);
            cdgh[lane] = _mm_sha256rnds2_epu32(cdgh[lane], abef[lane], sum);
            abef[lane] = _mm_sha256rnds2_epu32(abef[lane], cdgh[lane], _mm_shuffle_epi32(sum, 0x0e));
        }
    }
    for (int lane = 0; lane < kLanes; ++lane) {
        __m128i *const halves = reinterpret_cast<__m128i *>(states[lane]);
        const __m128i feba = _mm_shuffle_epi32(_mm_add_epi32(abef[lane], abef_before[lane]), 0x1b);
        const __m128i dchg = _mm_shuffle_epi32(_mm_add_epi32(cdgh[lane], cdgh_before[lane]), 0xb1);
        _mm_storeu_si128(halves, _mm_blend_epi16(feba, dchg, 0xf0));
        _mm_storeu_si128(halves + 1, _mm_alignr_epi8(dchg, feba, 8));
    }
}

__attribute__((target("sha,ssse3,sse4.1"))) void compress_with_sha(uint32_t *state, const uint8_t *chunk,
                                                                   uint32_t *other, const uint8_t *other_chunk) {
    uint32_t *const states[2] = {state, other};
    const uint8_t *const chunks[2] = {chunk, other_chunk};
    other == nullptr ? compress_lanes<1>(states, chunks) : compress_lanes<2>(states, chunks);
}

bool has_sha() {
    unsigned a, b, c, d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b >> 29 & 1) && __builtin_cpu_supports("sse4.1");
}

Compress fastest() { return has_sha() ? compress_with_sha : compress_both_portably; }
#else
Compress fastest() { return compress_both_portably; }
#endif

}  // namespace

// Hashes `num_blocks` blocks of `block_bytes` each into `digests`, 16 bytes each. `portably`: without SHA instructions.
// Only the end of a block depends on its parent's digest, so it is compressed beside the beginning of the next block.
extern "C" void baton_hash_chain(const uint8_t *parent, const uint8_t *blocks, size_t num_blocks, size_t block_bytes,
                                 uint8_t *digests, int portably) {
    constexpr uint32_t kStart[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    const Compress compress = portably ? compress_both_portably : fastest();
    const size_t num_bits = 8 * (block_bytes + kDigest), rest_bytes = block_bytes % kChunk;
    const size_t lead_bytes = block_bytes - rest_bytes;
    const size_t tail_bytes = rest_bytes + kDigest + 1 + kLength <= kChunk ? kChunk : 2 * kChunk;
    alignas(16) uint8_t tail[2 * kChunk] = {};  // the rest of a block, the parent's digest, padding
    tail[rest_bytes + kDigest] = 0x80;
    for (size_t i = 0; i < kLength; ++i) tail[tail_bytes - 1 - i] = uint8_t(uint64_t(num_bits) >> (8 * i));
    uint8_t *const last = tail + tail_bytes - kChunk;  // the last chunk of the tail
    uint32_t states[2][8];                             // of this block and the next
    for (size_t at = 0; at < num_blocks; ++at, parent = digests, digests += kDigest, blocks += block_bytes) {
        uint32_t *const state = states[at % 2], *const next = states[(at + 1) % 2];
        if (at == 0) {
            std::memcpy(state, kStart, sizeof kStart);
            if (lead_bytes > 0) compress(state, blocks, nullptr, nullptr);
        }
        for (size_t byte = kChunk; byte < lead_bytes; byte += kChunk) compress(state, blocks + byte, nullptr, nullptr);
        std::memcpy(tail, blocks + lead_bytes, rest_bytes);
        std::memcpy(tail + rest_bytes, parent, kDigest);
        if (last != tail) compress(state, tail, nullptr, nullptr);
        std::memcpy(next, kStart, sizeof kStart);
        const bool has_next = at + 1 < num_blocks && lead_bytes > 0;
        compress(state, last, has_next ? next : nullptr, blocks + block_bytes);
        for (int i = 0; i < 4; ++i) state[i] = big_endian(state[i]);
        std::memcpy(digests, state, kDigest);
    }
}
