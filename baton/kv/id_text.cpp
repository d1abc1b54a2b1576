// Token ids out of a JSON list of them, as uint32. What it is for, and what becomes of other texts: id_text.py.
#include <cstddef>
#include <cstdint>

namespace {

constexpr int kMaxDigits = 10;  // of a uint32

bool is_digit(char c) { return unsigned(c - '0') < 10; }

const char *past_spaces(const char *at) {
    while (*at <= ' ' && (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t')) ++at;  // one look at most others
    return at;
}

}  // namespace

// Where the list of ids ends that begins at `start` of `text`, which itself ends with a 0; they go into `ids`, and their
// number into `num_ids`. -1 where it is no list of at least one and at most `room` integers below `limit`, written as
// JSON has them.
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
