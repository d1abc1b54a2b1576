// The C interface: tensors as addresses, types as numbers. Compiled once per instruction set; see build.py.
#include <type_traits>

#include "attention.h"
#include "elementwise.h"
#include "gemm.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

// f with a null pointer to the type that `type` stands for.
template <class F> static void with_type(int type, F f) {
    if (type == 0) f((float *)nullptr);
    else if (type == 1) f((bf16 *)nullptr);
    else f((fp16 *)nullptr);
}

EXPORT int num_lanes() { return W; }

EXPORT void rms_norm_op(int type, const void *x, const void *weight, void *out, int64_t rows, int64_t n, float eps,
                        int threads) {
    with_type(type, [&](auto *t) {
        using T = std::remove_pointer_t<decltype(t)>;
        rms_norm<T>((const T *)x, (const T *)weight, (T *)out, rows, n, eps, threads);
    });
}

EXPORT void add_rms_norm_op(int type, const void *x, const void *residual, const void *weight, void *out, void *total,
                        int64_t rows, int64_t n, float eps, int threads) {
    with_type(type, [&](auto *t) {
        using T = std::remove_pointer_t<decltype(t)>;
        add_rms_norm<T>((const T *)x, (const T *)residual, (const T *)weight, (T *)out, (T *)total, rows, n,
            eps, threads);
    });
}

EXPORT void silu_mul_op(int type, const void *gate_up, void *out, int64_t rows, int64_t n, int threads) {
    with_type(type, [&](auto *t) {
        using T = std::remove_pointer_t<decltype(t)>;
        silu_mul<T>((const T *)gate_up, (T *)out, rows, n, threads);
    });
}

EXPORT void rope_and_cache_op(int type, const void *qkv, const float *cos_sin, const int64_t *positions, const int64_t
                        *slots, void *kv, void *q, const void *q_norm, const void *k_norm, float eps, int64_t tokens,
                        int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t block_size, int64_t block_stride,
                        int threads) {
    with_type(type, [&](auto *t) {
        using T = std::remove_pointer_t<decltype(t)>;
        const RopeShape shape = {tokens, heads, kv_heads, head_dim, block_size, block_stride};
        rope_and_cache<T>((const T *)qkv, cos_sin, positions, slots, (T *)kv, (T *)q, (const T *)q_norm,
            (const T *)k_norm, eps, shape, threads);
    });
}

EXPORT void paged_attention_op(int type, const void *q, const void *kv, void *out, const int32_t *query_start, const
                        int32_t *seq_lens, const int32_t *block_tables, int64_t seqs, int64_t max_blocks, int64_t
                        heads, int64_t kv_heads, int64_t head_dim, int64_t block_size, int64_t block_stride, float
                        scale, int64_t window, int threads) {
    with_type(type, [&](auto *t) {
        using T = std::remove_pointer_t<decltype(t)>;
        attention::Call<T> call = {(const T *)q, (const T *)kv, (T *)out, query_start, seq_lens, block_tables,
            seqs, max_blocks, heads, kv_heads, head_dim, block_size, block_stride, scale, window};
        attention::run(call, threads);
    });
}

EXPORT void pack_weight_op(int type, const void *weight, void *packed, int64_t outputs, int64_t inputs) {
    with_type(type, [&](auto *t) {
        using T = std::remove_pointer_t<decltype(t)>;
        gemm::pack((const T *)weight, outputs, inputs, (T *)packed);
    });
}

EXPORT void linear_op(int type, const void *x, const void *packed, const void *bias, void *out, int64_t rows, int64_t
                        outputs, int64_t inputs, int threads) {
    with_type(type, [&](auto *t) {
        using T = std::remove_pointer_t<decltype(t)>;
        gemm::run<T>({(const T *)packed, (const T *)bias, (T *)out, inputs, outputs}, (const T *)x, rows,
            threads);
    });
}
