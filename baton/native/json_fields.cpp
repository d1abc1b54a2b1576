// Finds the fields of a JSON object, and counts the values in each. json_fields.py says what this is for.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>

namespace {

struct Field {
    size_t name, name_end;  // between the quotes
    size_t start, end;      // of the value
    size_t num_strings, num_containers, num_commas;
};

bool is_space(char c) { return c == ' ' || c == '\n' || c == '\r' || c == '\t'; }

// Which characters outside of strings change neither the depth nor a count.
struct Plain {
    bool is[256];
    constexpr Plain() : is{} {
        for (bool &any : is) any = true;
        for (const char c : {'"', ',', '[', ']', '{', '}'}) is[uint8_t(c)] = false;
    }
};
constexpr Plain kPlain;

// Returns where the string ends that begins after the quote before `at`: at its closing quote, or at `end`.
const char *string_end(const char *at, const char *end) {
    for (const char *first = at; at < end; ++at) {
        at = static_cast<const char *>(std::memchr(at, '"', size_t(end - at)));
        if (at == nullptr) return end;
        const char *before = at;
        while (before > first && before[-1] == '\\') --before;
        if ((at - before) % 2 == 0) return at;
    }
    return end;
}

// If a list of numbers begins at `at`, moves past it and counts its commas, vectorized: prompts are lists of token ids.
const char *past_numbers(const char *at, const char *end, Field &field) {
    if (at == end || *at != '[') return at;
    const char *close = static_cast<const char *>(std::memchr(at, ']', size_t(end - at)));
    if (close == nullptr) return at;
    for (const char c : {'"', '{', '['})
        if (std::memchr(at + 1, c, size_t(close - at - 1)) != nullptr) return at;
    ++field.num_containers;
    field.num_commas += size_t(std::count(at, close, ','));
    return close + 1;
}

// Moves past a value, and counts what is in it. Returns the comma or the bracket after it, or `end`.
const char *past_value(const char *at, const char *end, Field &field) {
    at = past_numbers(at, end, field);
    for (size_t depth = 0; at < end; ++at) {
        while (at < end && kPlain.is[uint8_t(*at)]) ++at;
        if (at == end) break;
        if (*at == '"') {
            ++field.num_strings;
            at = string_end(at + 1, end);
            if (at == end) break;
        } else if (*at == ',') {
            if (depth == 0) return at;
            ++field.num_commas;
        } else if (*at == '{' || *at == '[') {
            ++field.num_containers;
            ++depth;
        } else if (depth-- == 0) {
            return at;
        }
    }
    return end;
}

}  // namespace

// Writes the fields of the object in `text` to `fields`, and returns their number: `room` + 1 if there are more than
// `room`, 0 if there is no object. Where the text is not valid JSON, the last field extends up to its end.
extern "C" size_t baton_json_fields(const char *text, size_t size, Field *fields, size_t room) {
    const char *at = text, *end = text + size;
    while (at < end && is_space(*at)) ++at;
    if (at == end || *at != '{') return 0;
    for (size_t num = 0;; ++num) {
        while (++at < end && is_space(*at)) {}
        if (at >= end || *at != '"') return num;
        if (num == room) return room + 1;
        Field &field = fields[num] = Field{};
        field.name = size_t(++at - text);
        at = string_end(at, end);
        field.name_end = size_t(at - text);
        while (at < end && *at != ':') ++at;
        while (at < end && (*at == ':' || is_space(*at))) ++at;
        field.start = size_t(at - text);
        at = past_value(at, end, field);
        field.end = size_t(at - text);
        if (at == end || *at != ',') return num + 1;
    }
}
