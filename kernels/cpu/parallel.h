// Parallel loops on torch's own OpenMP threads: the library links torch's runtime, so a process has one thread pool.
#pragma once

#include <cstdint>
#include <cstdlib>

constexpr int64_t PARALLEL_FROM = 1 << 16; // elements of work below which waking other threads costs more than it saves

// Calls f(i) for each i in [0, n), in equal runs per thread.
template <class F> static inline void parallel(int64_t n, int64_t work, int threads, F f) {
    if (threads < 2 || n < 2 || work < PARALLEL_FROM) {
        for (int64_t i = 0; i < n; i++) f(i);
        return;
    }
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < n; i++) f(i);
}

struct NoScope {};

// The same where items differ in cost, or cores in speed: a thread takes items when it has finished those before. Each
// thread constructs a Scope before its first item. It takes one at a time, or, if they are ADJACENT in memory, its share
// of all that are left, so that it reads memory in order for as long as possible.
template <class Scope, bool ADJACENT = false, class F>
static inline void parallel_dynamic(int64_t n, int64_t work, int threads, F f) {
    if (threads < 2 || n < 2 || work < PARALLEL_FROM) {
        Scope scope;
        for (int64_t i = 0; i < n; i++) f(i);
        return;
    }
#pragma omp parallel num_threads(threads)
    {
        Scope scope;
        if constexpr (ADJACENT) {
#pragma omp for schedule(guided, 1)
            for (int64_t i = 0; i < n; i++) f(i);
        } else {
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = 0; i < n; i++) f(i);
        }
    }
}

// Returns memory that the thread keeps and grows. Its contents are valid until the next call with the same `USE` and T.
template <int USE, class T = float> static inline T *scratch(size_t size) {
    struct Buffer {
        T *data = nullptr;
        size_t size = 0;
        ~Buffer() { free(data); }
    };
    static thread_local Buffer buffer;
    if (buffer.size < size) {
        free(buffer.data);
        buffer.size = (size + 1023) / 1024 * 1024;
        buffer.data = static_cast<T *>(aligned_alloc(64, buffer.size * sizeof(T)));
    }
    return buffer.data;
}
