// Parses a JSON list of token ids into uint32. id_text.py says what this is for, and how other texts are handled.
#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace {

constexpr int kMaxDigits = 10;  // that a uint32 can have

bool is_digit(char c) { return unsigned(c - '0') < 10; }

const char *past_spaces(const char *at) {
    while (*at <= ' ' && (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t')) ++at;  // one comparison for most
    return at;
}

}  // namespace

// Returns how many commas are in `text`: a list has one id more.
extern "C" size_t baton_count_commas(const char *text, size_t size) {
    return size_t(std::count(text, text + size, ','));
}

// Parses the list that begins at `start` of `text`, which must end with a NUL. Writes the ids to `ids` and their number
// to `num_ids`, and returns the offset at which the list ends. Returns -1 unless it is a list, in JSON's notation, of
// at least one and at most `room` integers below `limit`.
extern "C" int64_t baton_read_ids(const char *text, size_t start, uint32_t limit, uint32_t *ids, size_t room,
                                  size_t *num_ids) {
    const char *at = text + start;
    size_t num = 0;
    for (char mark = '['; *at == mark; mark = ',') {
        const char *first = at = past_spaces(at + 1);
        uint64_t id = 0;
        while (is_digit(*at)) id = 10 * id + uint64_t(*at++ - '0');
        const auto num_digits = at - first;
        if (num_digits == 0 || num_digits > kMaxDigits || (*first == '0' && num_digits > 1)) return -1;
        if (id >= limit || num == room) return -1;
        ids[num++] = uint32_t(id);
        at = past_spaces(at);
    }
    *num_ids = num;
    return num > 0 && *at == ']' ? at + 1 - text : -1;
}
