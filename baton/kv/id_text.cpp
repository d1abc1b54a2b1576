// Token ids out of a JSON list of them, as uint32. What it is for, and what becomes of other texts: id_text.py.
#include <cstddef>
#include <cstdint>

namespace {

bool is_space(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

const char *past_spaces(const char *at, const char *end) {
    while (at < end && is_space(*at)) ++at;
    return at;
}

}  // namespace

// Where the list of ids ends that begins at `start` of `text`; they go into `ids`, and their number into `num_ids`. -1
// where it is no list of at least one and at most `room` integers below `limit`, written as JSON has them.
extern "C" int64_t baton_read_ids(const char *text, size_t num_bytes, size_t start, uint32_t limit, uint32_t *ids,
                                  size_t room, size_t *num_ids) {
    const char *at = text + start, *end = text + num_bytes;
    size_t num = 0;
    char mark = '[';
    while (at < end && *at == mark) {
        at = past_spaces(at + 1, end);
        if (at == end || !is_digit(*at) || num == room) return -1;
        if (*at == '0' && at + 1 < end && is_digit(at[1])) return -1;
        uint64_t id = 0;
        for (; at < end && is_digit(*at); ++at) {
            id = 10 * id + uint64_t(*at - '0');
            if (id >= limit) return -1;
        }
        ids[num++] = uint32_t(id);
        at = past_spaces(at, end);
        mark = ',';
    }
    *num_ids = num;
    return num > 0 && at < end && *at == ']' ? at + 1 - text : -1;
}
