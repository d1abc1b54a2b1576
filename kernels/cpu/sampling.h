// From the output head's results to tokens, a row at a time, so that a row's token never depends on the other rows.
#pragma once

#include <algorithm>
#include <functional>

#include "elementwise.h"

namespace sampling {

// The largest value of a row, and its place: of equal values the first. NaN is never the largest.
struct Largest {
    vf values = splat(NEG_INF);
    vi places = {};

    INLINE_MEMBER void see(vf v, int64_t first) { // `v` are the values from place `first` on
        vi at;
        for (int i = 0; i < W; i++) at[i] = int(first) + i;
        const vi above = v > values;
        values = above ? v : values;
        places = above ? at : places;
    }

    INLINE_MEMBER int64_t place() const {
        int best = 0;
        for (int i = 1; i < W; i++)
            if (values[i] > values[best] || (values[i] == values[best] && places[i] < places[best])) best = i;
        return places[best];
    }
};

// `v` with -inf in all lanes but the first n.
INLINE vf padded(vf v, int n) {
    for (int i = n; i < W; i++) v[i] = NEG_INF;
    return v;
}

// Widens logits, after `softcap * tanh(x / softcap)` unless that is 0; finds each row's largest, and whether all of the
// row are finite.
template <class T>
void read_logits(const T *x, float *out, int64_t *largest, bool *is_finite, int64_t rows, int64_t n, float softcap,
                 int threads) {
    parallel(rows, rows * n, threads, [&](int64_t r) {
        Largest best;
        vf zeros = {}; // NaN once a value was NaN or infinite
        for_each_vector(n, [&](int64_t i, int k) {
            vf v = load_some(x + r * n + i, k);
            if (softcap) v = splat(softcap) * (splat(2) * sigmoid(v * splat(2 / softcap)) - splat(1));
            store_some(out + r * n + i, v, k);
            zeros += v - v;
            best.see(padded(v, k), i);
        });
        largest[r] = best.place();
        is_finite[r] = sum_lanes(zeros) == 0;
    });
}

struct Filters {
    int64_t top_k;      // the size of the row where it is off
    float top_p, min_p; // 1 and 0 where they are off
};

struct Candidate {
    float probability;
    int token;
};

// Unnormalised probabilities of a row: exp((logit - largest) / temperature). The largest is 1.
struct Probabilities {
    float *values;
    int64_t n;
    double total; // summed in the same order whatever the other rows

    Probabilities(const float *logits, int64_t size, float largest, float temperature) : n(size), total(0) {
        constexpr int64_t PART = 4096; // summed in fp32
        values = scratch<8>(n);
        const vf factor = splat(LOG2_E / temperature);
        for (int64_t start = 0; start < n; start += PART) {
            vf sum = {};
            for_each_vector(std::min(PART, n - start), [&](int64_t i, int k) {
                const vf v = exp2((load_some(logits + start + i, k) - splat(largest)) * factor);
                store_some(values + start + i, v == v ? v : vf{}, k); // no order is defined for NaN
                sum += load_some(values + start + i, k);
            });
            total += sum_lanes(sum);
        }
    }

    // The k-th largest of the row is not below this. It is the k-th largest of the maxima of GROUPS parts of the row.
    float bound(int64_t k) const {
        constexpr int64_t GROUPS = 1024;
        if (k > GROUPS || n < 2 * GROUPS) return 0;
        float maxima[GROUPS];
        std::fill_n(maxima, GROUPS, 0.0f);
        for (int64_t start = 0; start < n; start += GROUPS)
            for_each_vector(std::min(GROUPS, n - start), [&](int64_t i, int lanes) {
                store_some(maxima + i, max(load_some(values + start + i, lanes), load_some(maxima + i, lanes)), lanes);
            });
        std::nth_element(maxima, maxima + k - 1, maxima + GROUPS, std::greater<float>());
        return maxima[k - 1];
    }

    // Writes the tokens with at least this probability to `found`, which has room for the row; returns their number.
    int64_t candidates(float least, Candidate *found) const {
        int64_t count = 0;
        for_each_vector(n, [&](int64_t i, int k) {
            if (!any(padded(load_some(values + i, k), k) >= splat(least))) return;
            for (int64_t token = i; token < i + k; token++) {
                found[count] = {values[token], int(token)};
                count += values[token] >= least;
            }
        });
        return count;
    }
};

// The probability below which tokens are excluded. Top-p is the share of the mass that top-k keeps; min-p is relative
// to the largest probability, which is 1.
inline float cutoff(const Probabilities &row, Filters filters) {
    const bool in_top_k = filters.top_k < row.n;
    if (!in_top_k && filters.top_p >= 1) return filters.min_p;
    // Tokens below 1 - top_p of the mean have together less than 1 - top_p of the mass. (A little less, for rounding.)
    const float least = in_top_k ? row.bound(filters.top_k) : 0.999f * (1 - filters.top_p) * float(row.total / row.n);
    Candidate *const found = scratch<9, Candidate>(row.n + 1);
    int64_t count = row.candidates(least, found);
    const auto likelier = [](Candidate a, Candidate b) { return a.probability > b.probability; };
    const auto mass = [&](int64_t first, int64_t last) {
        double sum = 0;
        for (int64_t i = first; i < last; i++) sum += found[i].probability;
        return sum;
    };
    if (in_top_k) {
        std::nth_element(found, found + filters.top_k - 1, found + count, likelier);
        count = filters.top_k;
    }
    int64_t first = std::max<int64_t>(count - 1, 0);
    if (filters.top_p < 1) { // the place of the first candidate, in order, with which the mass reaches top_p
        double missing = filters.top_p * (in_top_k ? mass(0, count) : row.total);
        first = 0;
        for (int64_t last = count; last - first > 1;) {
            const int64_t middle = first + (last - first) / 2;
            std::nth_element(found + first, found + middle, found + last, likelier);
            const double half = mass(first, middle);
            if (half >= missing) last = middle;
            else missing -= half, first = middle;
        }
    }
    return std::max(found[first].probability, filters.min_p);
}

// A number in (0, 1) for each token from `first` on, an odd multiple of 2^-24: the noise of `engine.sampling.noise`.
INLINE vf uniform(const uint32_t *key, int64_t first) {
    vu x;
    for (int i = 0; i < W; i++) x[i] = uint32_t(first) + i;
    x *= 0x7FEB352D;
    x = (x ^ (x >> 16)) * 0x846CA68B;
    x = (x ^ key[0]) * 0x9E3779B1;
    x = (x ^ (x >> 15)) + key[1];
    x *= 0x85EBCA6B;
    x = (x ^ (x >> 13)) * 0xC2B2AE35;
    const vf whole = __builtin_convertvector((vi)x >> 9, vf);
    return whole * splat(0x1p-23f) + splat(0.5f + 0x1p-24f);
}

// Draws a token of one row. With e = -log(u), the token with the largest p / e is that with the largest
// logit / temperature + Gumbel noise, -log(e), at the cost of one logarithm instead of two.
inline int64_t draw_row(const float *logits, int64_t n, float temperature, const uint32_t *key, Filters filters) {
    Largest likeliest;
    for_each_vector(n, [&](int64_t i, int k) { likeliest.see(padded(load_some(logits + i, k), k), i); });
    if (temperature <= 0) return likeliest.place();
    const Probabilities row(logits, n, logits[likeliest.place()], temperature);
    const vf least = splat(cutoff(row, filters));
    Largest drawn;
    for_each_vector(n, [&](int64_t i, int k) {
        const vf p = padded(load_some(row.values + i, k), k);
        if (!any(p >= least)) return;
        const vf u = uniform(key, i);
        // -log(u) is at least 1 - u, which is exact: most tokens are too unlikely for a logarithm to be worth it.
        const vi may_win = (p >= least) & (drawn.values * (splat(1) - u) * splat(0.9999f) < p);
        if (!any(may_win)) return;
        drawn.see(may_win ? p / -log(u) : splat(NEG_INF), i);
    });
    return drawn.place();
}

// Sets the logits of tokens whose bit in `words`, 32 tokens each, is 0 to -inf.
inline void mask(float *logits, const uint32_t *words, int64_t rows, int64_t n, int threads) {
    const int64_t words_per_row = (n + 31) / 32;
    vu lane;
    for (int i = 0; i < W; i++) lane[i] = i;
    parallel(rows, rows * n, threads, [&](int64_t r) {
        float *const row = logits + r * n;
        for_each_vector(n, [&](int64_t i, int k) {
            const vu bits = vu{} + (words[r * words_per_row + i / 32] >> i % 32);
            store_some(row + i, (bits >> lane & 1) == 1 ? load_some(row + i, k) : splat(NEG_INF), k);
        });
    });
}

// One token per row. Pointers of filters may be null: then they are off.
struct Call {
    const float *logits, *temperature;
    const uint32_t *keys; // two per row
    const int64_t *top_k;
    const float *top_p, *min_p;
    int64_t *tokens, rows, n;
};

inline void draw(const Call &c, int threads) {
    parallel(c.rows, c.rows * c.n * 8, threads, [&](int64_t r) { // times 8: exponentials and logarithms
        const Filters filters = {c.top_k ? std::clamp<int64_t>(c.top_k[r], 1, c.n) : c.n, c.top_p ? c.top_p[r] : 1,
                                 c.min_p ? c.min_p[r] : 0};
        c.tokens[r] = draw_row(c.logits + r * c.n, c.n, c.temperature[r], c.keys + 2 * r, filters);
    });
}

} // namespace sampling
