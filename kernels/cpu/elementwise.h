// RMSNorm, SiLU * up, and RoPE with the write to the KV: one pass over each row, computed in fp32.
#pragma once

#include "parallel.h"
#include "vector.h"

// f(first column, number of columns) for each vector of a row; the number is W but for the last.
template <class F> INLINE void for_each_vector(int64_t n, F f) {
    int64_t i = 0;
    for (; i + W <= n; i += W) f(i, W);
    if (i < n) f(i, int(n - i));
}
template <class T> INLINE vf load_some(const T *p, int n) { return n == W ? load(p) : load(p, n); }
template <class T> INLINE void store_some(T *p, vf v, int n) { n == W ? store(p, v) : store(p, v, n); }

// weight * cast(x / rms(x)), in place or not; `weight` and `out` are of x's type.
template <class T> INLINE void norm_row(const T *x, const T *weight, T *out, int64_t n, float eps) {
    vf squares = {};
    for_each_vector(n, [&](int64_t i, int k) {
        vf v = load_some(x + i, k);
        squares = fma(v, v, squares);
    });
    vf inverse = splat(1.0f / __builtin_sqrtf(sum_lanes(squares) / float(n) + eps));
    for_each_vector(n, [&](int64_t i, int k) {
        vf v = rounded(load_some(x + i, k) * inverse, x);
        store_some(out + i, v * load_some(weight + i, k), k);
    });
}

template <class T>
void rms_norm(const T *x, const T *weight, T *out, int64_t rows, int64_t n, float eps, int threads) {
    parallel(rows, rows * n, threads, [&](int64_t r) { norm_row(x + r * n, weight, out + r * n, n, eps); });
}

template <class T>
void add_rms_norm(const T *x, const T *residual, const T *weight, T *out, T *total, int64_t rows, int64_t n, float eps,
                  int threads) {
    parallel(rows, rows * n, threads, [&](int64_t r) {
        const T *a = x + r * n, *b = residual + r * n;
        T *sum = total + r * n;
        for_each_vector(n, [&](int64_t i, int k) { store_some(sum + i, load_some(a + i, k) + load_some(b + i, k), k); });
        norm_row(sum, weight, out + r * n, n, eps);
    });
}

template <class T> void silu_mul(const T *gate_up, T *out, int64_t rows, int64_t n, int threads) {
    parallel(rows, rows * n, threads, [&](int64_t r) {
        const T *gate = gate_up + 2 * r * n, *up = gate + n;
        for_each_vector(n, [&](int64_t i, int k) {
            vf activated = rounded(silu(load_some(gate + i, k)), gate);
            store_some(out + r * n + i, activated * load_some(up + i, k), k);
        });
    });
}

// Rotate element i of a head with element i + half. cos_sin: half cosines, then half sines.
template <class T> INLINE void rotate_row(const T *x, const float *cos_sin, T *out, int half) {
    for_each_vector(half, [&](int64_t i, int k) {
        vf a = load_some(x + i, k), b = load_some(x + half + i, k);
        vf c = load_some(cos_sin + i, k), s = load_some(cos_sin + half + i, k);
        store_some(out + i, a * c - b * s, k);
        store_some(out + half + i, b * c + a * s, k);
    });
}

struct RopeShape {
    int64_t num_tokens, num_heads, num_kv_heads, head_dim, block_size, block_stride; // stride in elements
};

template <class T>
void rope_and_cache(const T *qkv, const float *cos_sin, const int64_t *positions, const int64_t *slots, T *kv, T *q_out,
                    const T *q_norm, const T *k_norm, float eps, const RopeShape &s, int threads) {
    const int64_t row = (s.num_heads + 2 * s.num_kv_heads) * s.head_dim, plane = s.block_size * s.head_dim;
    const size_t head_bytes = s.head_dim * sizeof(T);
    parallel(s.num_tokens, s.num_tokens * row, threads, [&](int64_t t) {
        const T *head = qkv + t * row;
        const float *angle = cos_sin + positions[t] * s.head_dim;
        auto place = [&](const T *x, const T *weight, T *out) {
            if (weight) norm_row(x, weight, out, s.head_dim, eps);
            rotate_row(weight ? out : x, angle, out, int(s.head_dim / 2));
        };
        for (int64_t h = 0; h < s.num_heads; h++, head += s.head_dim)
            place(head, q_norm, q_out + (t * s.num_heads + h) * s.head_dim);
        if (slots[t] < 0) return;
        T *k_out = kv + slots[t] / s.block_size * s.block_stride + slots[t] % s.block_size * s.head_dim;
        T *v_out = k_out + s.num_kv_heads * plane;
        for (int64_t h = 0; h < s.num_kv_heads; h++, head += s.head_dim) place(head, k_norm, k_out + h * plane);
        for (int64_t h = 0; h < s.num_kv_heads; h++, head += s.head_dim) memcpy(v_out + h * plane, head, head_bytes);
    });
}
