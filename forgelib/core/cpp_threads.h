// Work shared out among torch's own OpenMP threads, where torch has brought them along: a second pool would spin against
// the first.

#pragma once

#include <dlfcn.h>

#include <cstddef>

using Parallel = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);

inline Parallel torchs_threads() {
    static const auto parallel = (Parallel)dlsym(RTLD_DEFAULT, "GOMP_parallel");
    return parallel;
}

// part(work) on so many threads at once; it shares the work out by a counter of its own.
inline void run_on(size_t threads, void (*part)(void*), void* work) {
    if (threads > 1 && torchs_threads())
        torchs_threads()(part, work, (unsigned)threads, 0);
    else
        part(work);
}
