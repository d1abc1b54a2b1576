// The C interface: tensors as addresses, types as numbers. Compiled once per instruction set; see build.py.
#include <type_traits>
#include <utility>

#include "attention.h"
#include "elementwise.h"
#include "experts.h"
#include "gemm.h"
#include "sampling.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

// Calls f with a null pointer to the type that `type` stands for.
template <class F> static void with_type(int type, F f) {
    if (type == 0) f((float *)nullptr);
    else if (type == 1) f((bf16 *)nullptr);
    else f((fp16 *)nullptr);
}

// The same for two types: that of activations, and that in which weights are stored.
template <class F> static void with_types(int type, int64_t storage, F f) {
    with_type(type, [&](auto *t) {
        if (storage == 3) f(t, (int8 *)nullptr);
        else if (storage == 4) f(t, (int4 *)nullptr);
        else f(t, t);
    });
}

EXPORT int num_lanes() { return W; }

EXPORT void rms_norm_op(int type, const void *x, const void *weight, void *out, int64_t rows, int64_t n, float eps,
                        int threads) {
    with_type(type, [&](auto *t) {
        using T = std::remove_pointer_t<decltype(t)>;
        rms_norm<T>((const T *)x, (const float *)weight, (T *)out, rows, n, eps, threads);
    });
}

EXPORT void add_rms_norm_op(int type, const void *x, const void *residual, const void *weight, void *out, void *total,
                            int64_t rows, int64_t n, float eps, int threads) {
    with_type(type, [&](auto *t) {
        using T = std::remove_pointer_t<decltype(t)>;
        add_rms_norm<T>((const T *)x, (const T *)residual, (const float *)weight, (T *)out, (T *)total, rows, n, eps,
                        threads);
    });
}

EXPORT void gated_op(int type, const void *gate_up, void *out, int64_t rows, int64_t n, int activation, int threads) {
    with_type(type, [&](auto *t) {
        using T = std::remove_pointer_t<decltype(t)>;
        gated<T>((const T *)gate_up, (T *)out, rows, n, activation, threads);
    });
}

EXPORT void rope_and_cache_op(int type, const void *qkv, const float *cos_sin, const int64_t *positions,
                              const int64_t *slots, void *kv, void *q, const void *q_norm, const void *k_norm,
                              float eps, int64_t tokens, int64_t heads, int64_t kv_heads, int64_t planes,
                              int64_t head_dim, int64_t block_size, int64_t block_stride, int threads) {
    with_type(type, [&](auto *t) {
        using T = std::remove_pointer_t<decltype(t)>;
        const RopeShape shape = {tokens, heads, kv_heads, planes, head_dim, block_size, block_stride};
        rope_and_cache<T>((const T *)qkv, cos_sin, positions, slots, (T *)kv, (T *)q, (const float *)q_norm,
                          (const float *)k_norm, eps, shape, threads);
    });
}

EXPORT void paged_attention_op(int type, const void *q, const void *kv, void *out, const int32_t *query_start,
                               const int32_t *seq_lens, const int32_t *block_tables, int64_t seqs, int64_t max_blocks,
                               int64_t heads, int64_t kv_heads, int64_t planes, int64_t head_dim, int64_t block_size,
                               int64_t block_stride, float scale, float softcap, int64_t window, const float *sinks,
                               int threads) {
    with_type(type, [&](auto *t) {
        using T = std::remove_pointer_t<decltype(t)>;
        attention::Call<T> call = {(const T *)q, (const T *)kv, (T *)out, query_start, seq_lens, block_tables,
                                   seqs, max_blocks, heads, kv_heads, planes, head_dim, block_size, block_stride,
                                   scale, softcap, window, sinks};
        attention::run(call, threads);
    });
}

// Packs the weight of one expert. `weight` is of the stored type, or of int8 if that is int4.
EXPORT void pack_weight_op(int storage, const void *weight, void *packed, int64_t outputs, int64_t inputs) {
    if (storage == 4) return gemm::pack((const int8 *)weight, outputs, inputs, (int4 *)packed);
    if (storage == 3) return gemm::pack((const int8 *)weight, outputs, inputs, (int8 *)packed);
    with_type(storage, [&](auto *t) { gemm::pack((decltype(t))weight, outputs, inputs, (decltype(t))packed); });
}

// The size of one expert's packed weight in bytes.
EXPORT int64_t weight_bytes(int storage, int64_t outputs, int64_t inputs) {
    const int64_t panels = gemm::num_panels(outputs);
    if (storage == 4) return panels * gemm::panel_size<int4>(inputs);
    if (storage == 3) return panels * gemm::panel_size<int8>(inputs);
    int64_t bytes = 0;
    with_type(storage, [&](auto *t) {
        bytes = panels * gemm::panel_size<std::remove_pointer_t<decltype(t)>>(inputs) * sizeof *t;
    });
    return bytes;
}

EXPORT void linear_op(int type, const gemm::Weights *weights, const void *x, void *out, int64_t rows, int threads) {
    with_types(type, weights->storage, [&](auto *t, auto *s) {
        using T = std::remove_pointer_t<decltype(t)>;
        using S = std::remove_pointer_t<decltype(s)>;
        gemm::linear<T, S>(*weights, (const T *)x, (T *)out, rows, threads);
    });
}

EXPORT void linear_gated_op(int type, const gemm::Weights *weights, const void *x, void *out, int64_t rows,
                            int64_t outputs, int activation, int threads) {
    with_types(type, weights->storage, [&](auto *t, auto *s) {
        using T = std::remove_pointer_t<decltype(t)>;
        using S = std::remove_pointer_t<decltype(s)>;
        gemm::linear_gated<T, S>(*weights, (const T *)x, (T *)out, rows, outputs, activation, threads);
    });
}

EXPORT void experts_op(int type, const gemm::Weights *gate_up, const gemm::Weights *down, int activation,
                       int64_t num_experts, const void *x, const int64_t *ids, const float *weights, void *out,
                       int64_t tokens, int64_t per_token, int threads) {
    with_types(type, gate_up->storage, [&](auto *t, auto *s) {
        using T = std::remove_pointer_t<decltype(t)>;
        using S = std::remove_pointer_t<decltype(s)>;
        experts::Call<T> call = {(const T *)x, ids, weights, (T *)out, *gate_up, *down,
                                 tokens, per_token, num_experts, activation};
        experts::run<T, S>(call, threads);
    });
}

EXPORT void read_logits_op(int type, const void *x, float *out, int64_t *largest, bool *is_finite, int64_t rows,
                           int64_t n, float softcap, int threads) {
    with_type(type, [&](auto *t) {
        sampling::read_logits((decltype(t))x, out, largest, is_finite, rows, n, softcap, threads);
    });
}

EXPORT void embed_op(int type, const void *table, const int64_t *ids, void *out, int64_t rows, int64_t table_rows,
                     int64_t n, float scale, int threads) {
    with_type(type, [&](auto *t) {
        embed((decltype(t))table, ids, (decltype(t))out, rows, table_rows, n, scale, threads);
    });
}

EXPORT void draw_op(const float *logits, const float *temperature, const uint32_t *keys, const int64_t *top_k,
                    const float *top_p, const float *min_p, int64_t *tokens, int64_t rows, int64_t n, int threads) {
    sampling::draw({logits, temperature, keys, top_k, top_p, min_p, tokens, rows, n}, threads);
}

EXPORT void mask_op(float *logits, const uint32_t *words, int64_t rows, int64_t n, int threads) {
    sampling::mask(logits, words, rows, n, threads);
}

// An op's number, or one of its arguments.
union Slot {
    int64_t integer; // or an address
    double real;
};

template <class T> static T value(Slot slot) {
    if constexpr (std::is_pointer_v<T>) return (T)slot.integer;
    else if constexpr (std::is_floating_point_v<T>) return (T)slot.real;
    else return (T)slot.integer;
}

template <class... A, size_t... I> static void unpack(void (*op)(A...), const Slot *s, std::index_sequence<I...>) {
    op(value<A>(s[I])...);
}

// Calls `op`; returns where the next recorded call begins.
template <class... A> static const Slot *call(void (*op)(A...), const Slot *arguments) {
    unpack(op, arguments, std::index_sequence_for<A...>());
    return arguments + sizeof...(A);
}

// Repeats recorded calls, each given by the op's number in library.py and its arguments.
EXPORT void replay(const Slot *slots, int64_t num_calls) {
    for (; num_calls > 0; num_calls--) {
        switch ((slots++)->integer) {
        case 0: slots = call(rms_norm_op, slots); break;
        case 1: slots = call(add_rms_norm_op, slots); break;
        case 2: slots = call(gated_op, slots); break;
        case 3: slots = call(rope_and_cache_op, slots); break;
        case 4: slots = call(paged_attention_op, slots); break;
        case 5: slots = call(linear_op, slots); break;
        case 6: slots = call(linear_gated_op, slots); break;
        case 7: slots = call(experts_op, slots); break;
        case 8: slots = call(read_logits_op, slots); break;
        case 9: slots = call(embed_op, slots); break;
        }
    }
}
