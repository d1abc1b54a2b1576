// Counts how often each of some bytes occurs in a text. byte_count.py says what this is for.
#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace {

constexpr size_t kRun = 255;  // the most that a byte can count: the compiler then vectorizes the inner loop over bytes

}  // namespace

// Writes to `counts[i]` how often `marks[i]` occurs in the `size` bytes of `text`.
extern "C" void baton_count_bytes(const uint8_t *text, size_t size, const uint8_t *marks, size_t num_marks,
                                  uint64_t *counts) {
    std::fill_n(counts, num_marks, 0);
    for (size_t start = 0; start < size; start += kRun) {
        const size_t end = std::min(start + kRun, size);
        for (size_t mark = 0; mark < num_marks; ++mark) {
            uint8_t num = 0;
            for (size_t at = start; at < end; ++at) num = uint8_t(num + (text[at] == marks[mark]));
            counts[mark] += num;
        }
    }
}
