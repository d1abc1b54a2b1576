// Embedding, RMSNorm, gated activations, and RoPE fused with the KV write: one pass over each row, computed in fp32.
#pragma once

#include <algorithm>

#include "parallel.h"
#include "vector.h"

// Calls f(first column, number of columns) for each vector of a row; the number is W except for the last.
template <class F> INLINE void for_each_vector(int64_t n, F f) {
    int64_t i = 0;
    for (; i + W <= n; i += W) f(i, W);
    if (i < n) f(i, int(n - i));
}

// Rows of `table` times `scale`; NaN for ids that it does not have.
template <class T>
void embed(const T *table, const int64_t *ids, T *out, int64_t rows, int64_t table_rows, int64_t n, float scale,
           int threads) {
    parallel(rows, rows * n, threads, [&](int64_t r) {
        const vf factor = splat(0 <= ids[r] && ids[r] < table_rows ? scale : std::numeric_limits<float>::quiet_NaN());
        const T *x = table + std::clamp<int64_t>(ids[r], 0, table_rows - 1) * n;
        for_each_vector(n, [&](int64_t i, int k) { store_some(out + r * n + i, load_some(x + i, k) * factor, k); });
    });
}

// x / rms(x) * weight; `out` may be `x`.
template <class T> INLINE void norm_row(const T *x, const float *weight, T *out, int64_t n, float eps) {
    vf squares = {};
    for_each_vector(n, [&](int64_t i, int k) {
        vf v = load_some(x + i, k);
        squares = fma(v, v, squares);
    });
    vf inverse = splat(1.0f / __builtin_sqrtf(sum_lanes(squares) / float(n) + eps));
    for_each_vector(n, [&](int64_t i, int k) {
        store_some(out + i, load_some(x + i, k) * inverse * load_some(weight + i, k), k);
    });
}

template <class T>
void rms_norm(const T *x, const float *weight, T *out, int64_t rows, int64_t n, float eps, int threads) {
    parallel(rows, rows * n, threads, [&](int64_t r) { norm_row(x + r * n, weight, out + r * n, n, eps); });
}

template <class T>
void add_rms_norm(const T *x, const T *residual, const float *weight, T *out, T *total, int64_t rows, int64_t n,
                  float eps, int threads) {
    parallel(rows, rows * n * 4, threads, [&](int64_t r) { // times 4: x is still in other cores' caches
        const T *a = x + r * n, *b = residual + r * n;
        T *sum = total + r * n;
        for_each_vector(n, [&](int64_t i, int k) {
            store_some(sum + i, load_some(a + i, k) + load_some(b + i, k), k);
        });
        norm_row(sum, weight, out + r * n, n, eps);
    });
}

enum Activation { SILU, GELU_TANH, SWIGLU_OAI }; // as library.py numbers them

INLINE vf activated(int activation, vf gate, vf up) {
    if (activation == SWIGLU_OAI) {
        gate = clamp(gate, NEG_INF, 7);
        return gate * sigmoid(splat(1.702f) * gate) * (clamp(up, -7, 7) + splat(1));
    }
    if (activation == SILU) return gate * sigmoid(gate) * up;
    const vf cubic = gate * fma(gate * gate, splat(0.044715f), splat(1)); // (1 + tanh(x)) / 2 is sigmoid(2x)
    return gate * sigmoid(splat(1.5957691216f) * cubic) * up;
}

template <class T> void gated(const T *gate_up, T *out, int64_t rows, int64_t n, int activation, int threads) {
    parallel(rows, rows * n * 4, threads, [&](int64_t r) { // times 4: exponentials are costly
        const T *gate = gate_up + 2 * r * n, *up = gate + n;
        for_each_vector(n, [&](int64_t i, int k) {
            store_some(out + r * n + i, activated(activation, load_some(gate + i, k), load_some(up + i, k)), k);
        });
    });
}

// Rotates element i of a head with element i + half. cos_sin: `half` cosines, then `half` sines.
template <class T> INLINE void rotate_row(const T *x, const float *cos_sin, T *out, int half) {
    for_each_vector(half, [&](int64_t i, int k) {
        vf a = load_some(x + i, k), b = load_some(x + half + i, k);
        vf c = load_some(cos_sin + i, k), s = load_some(cos_sin + half + i, k);
        store_some(out + i, a * c - b * s, k);
        store_some(out + half + i, b * c + a * s, k);
    });
}

struct RopeShape {
    int64_t num_tokens, num_heads, num_kv_heads, planes, head_dim, block_size, block_stride; // stride in elements
};

template <class T>
void rope_and_cache(const T *qkv, const float *cos_sin, const int64_t *positions, const int64_t *slots, T *kv, T *q_out,
                    const float *q_norm, const float *k_norm, float eps, const RopeShape &s, int threads) {
    const int64_t row = (s.num_heads + s.planes * s.num_kv_heads) * s.head_dim, plane = s.block_size * s.head_dim;
    const size_t head_bytes = s.head_dim * sizeof(T);
    parallel(s.num_tokens, s.num_tokens * row, threads, [&](int64_t t) {
        const T *head = qkv + t * row;
        const float *angle = cos_sin + positions[t] * s.head_dim;
        auto place = [&](const T *x, const float *weight, T *out) {
            if (weight) norm_row(x, weight, out, s.head_dim, eps);
            rotate_row(weight ? out : x, angle, out, int(s.head_dim / 2));
        };
        for (int64_t h = 0; h < s.num_heads; h++, head += s.head_dim)
            place(head, q_norm, q_out + (t * s.num_heads + h) * s.head_dim);
        if (slots[t] < 0) return;
        T *k_out = kv + slots[t] / s.block_size * s.block_stride + slots[t] % s.block_size * s.head_dim;
        for (int64_t h = 0; h < s.num_kv_heads; h++, head += s.head_dim) place(head, k_norm, k_out + h * plane);
        if (s.planes == 1) return;
        T *v_out = k_out + s.num_kv_heads * plane;
        for (int64_t h = 0; h < s.num_kv_heads; h++, head += s.head_dim) memcpy(v_out + h * plane, head, head_bytes);
    });
}
