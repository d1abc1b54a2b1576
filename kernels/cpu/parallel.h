// Parallel loops on torch's own OpenMP threads: the library links torch's runtime, so a process has one thread pool.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <omp.h>
#include <vector>

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

// The same where items differ in cost, or cores in speed: a thread takes an item when it has finished the one before.
// Each thread constructs a Scope before its first item. If items are ADJACENT in memory, a thread first takes those of
// its own run, an equal share, so that it reads memory in order, and then what is left of others' runs.
template <class Scope, bool ADJACENT = false, class F>
static inline void parallel_dynamic(int64_t n, int64_t work, int threads, F f) {
    if (threads < 2 || n < 2 || work < PARALLEL_FROM) {
        Scope scope;
        for (int64_t i = 0; i < n; i++) f(i);
        return;
    }
    struct alignas(64) Run {
        std::atomic<int64_t> next;
        int64_t end;
    };
    const int num_runs = ADJACENT ? threads : 1;
    static thread_local std::vector<Run> storage;
    if (int(storage.size()) < num_runs) storage = std::vector<Run>(num_runs);
    Run *runs = storage.data();
    for (int r = 0; r < num_runs; r++) runs[r].next = n * r / num_runs, runs[r].end = n * (r + 1) / num_runs;
#pragma omp parallel num_threads(threads)
    {
        Scope scope;
        for (int k = 0; k < num_runs; k++) {
            Run &run = runs[(omp_get_thread_num() + k) % num_runs];
            for (int64_t i; (i = run.next.fetch_add(1, std::memory_order_relaxed)) < run.end;) f(i);
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
