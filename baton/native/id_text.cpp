// Parses JSON lists of token ids into uint32. id_text.py says what this is for, and how other texts are handled.
#include <cstddef>
#include <cstdint>

namespace {

constexpr int kMaxDigits = 10;  // that a uint32 can have

const char *past_spaces(const char *at) {
    while (*at <= ' ' && (*at == ' ' || *at == '\n' || *at == '\r' || *at == '\t')) ++at;  // one comparison for most
    return at;
}

// Where ids go: at most `room` of them, each below `limit`.
struct Ids {
    uint32_t *ids;
    size_t room, num;
    uint32_t limit;
};

// Parses a list of at least one id. Returns the position after it, or nullptr if it is anything else.
const char *past_list(const char *at, Ids &into) {
    uint32_t *to = into.ids + into.num, *const end = into.ids + into.room;
    if (*at != '[') return nullptr;
    do {
        if (*++at == ' ') ++at;  // most lists have one space or none
        const char *const first = at = past_spaces(at);
        uint64_t id = unsigned(*at - '0');
        if (id > 9) return nullptr;
        for (unsigned digit; (digit = unsigned(*++at - '0')) < 10;) id = 10 * id + digit;
        if (at - first > 1 && (at - first > kMaxDigits || *first == '0')) return nullptr;
        if (id >= into.limit || to == end) return nullptr;
        *to++ = uint32_t(id);
        at = past_spaces(at);
    } while (*at == ',');
    into.num = size_t(to - into.ids);
    return *at == ']' ? at + 1 : nullptr;
}

}  // namespace

// Parses what begins at `start` of `text`, which must end with a NUL: a list of ids, or a list of such lists. Writes all
// ids to `ids`; for each list, how many there are up to its end, to `ends`; the number of lists to `num_lists`, which is
// 0 if it is a single list. Returns the offset after it. Returns -1 unless all lists are in JSON's notation, have at
// least one integer, all integers are below `limit`, and there is `room` and `room_lists`.
extern "C" int64_t baton_read_ids(const char *text, size_t start, uint32_t limit, uint32_t *ids, size_t room,
                                  size_t *ends, size_t room_lists, size_t *num_lists) {
    const char *at = text + start;
    Ids into{ids, room, 0, limit};
    *num_lists = 0;
    if (*at != '[') return -1;
    if (*past_spaces(at + 1) != '[') {
        at = past_list(at, into);
        ends[0] = into.num;
        return at == nullptr ? -1 : at - text;
    }
    for (char mark = '['; *at == mark; mark = ',') {
        if (*num_lists == room_lists) return -1;
        at = past_list(past_spaces(at + 1), into);
        if (at == nullptr) return -1;
        ends[(*num_lists)++] = into.num;
        at = past_spaces(at);
    }
    return *at == ']' ? at + 1 - text : -1;
}
