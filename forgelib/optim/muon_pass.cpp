// The element-wise half of a Muon step, each pass once over memory: five of torch's one after the other read and write a
// matrix five times. Needs AVX-512 BF16. Every line is one of torch's operations, rounded as torch rounds it.

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "cpp_threads.h"

namespace {

constexpr size_t BLOCK = 16384, LANES = 16;  // numbers that a thread takes at a time; numbers in a register

struct Blocks {  // of n matrices of `count` numbers each
    size_t n, count;
    std::atomic<size_t> next{0};

    template <typename OF_BLOCK>
    void each(OF_BLOCK of_block) {
        const size_t blocks = (count + BLOCK - 1) / BLOCK;
        for (size_t taken; (taken = next++) < n * blocks;) {
            const size_t begin = taken % blocks * BLOCK;
            of_block(taken / blocks, begin, std::min(begin + BLOCK, count));
        }
    }
};

struct Collect : Blocks {
    const float* const* gradients;
    float *const *slow, *const *momenta;  // slow: null without a filter
    uint16_t* stack;
    float toward, lambda, fresh, kept;  // 1 - alpha, lambda, 1 - momentum, momentum
};

struct Apply : Blocks {
    float* const* weights;
    const uint16_t* stack;
    float keep, rate;
};

// torch.lerp: from the nearer end, so that it arrives exactly.
__m512 lerp(__m512 from, __m512 to, float weight) {
    const __m512 way = _mm512_sub_ps(to, from);
    if (weight < 0.5f) return _mm512_fmadd_ps(_mm512_set1_ps(weight), way, from);
    return _mm512_fmadd_ps(_mm512_set1_ps(weight - 1), way, to);
}

void collect(void* data) {
    Collect& work = *(Collect*)data;
    work.each([&](size_t i, size_t begin, size_t end) {
        float* momentum = work.momenta[i];
        for (size_t k = begin; k < end; k += LANES) {
            __m512 g = _mm512_loadu_ps(work.gradients[i] + k);
            if (work.slow) {
                const __m512 h = lerp(_mm512_loadu_ps(work.slow[i] + k), g, work.toward);
                _mm512_storeu_ps(work.slow[i] + k, h);
                g = _mm512_fmadd_ps(h, _mm512_set1_ps(work.lambda), g);
            }
            const __m512 b = lerp(_mm512_loadu_ps(momentum + k), g, work.fresh);
            _mm512_storeu_ps(momentum + k, b);
            const auto update = (__m256i)_mm512_cvtneps_pbh(lerp(g, b, work.kept));
            _mm256_storeu_si256((__m256i*)(work.stack + i * work.count + k), update);
        }
    });
}

void apply(void* data) {
    Apply& work = *(Apply*)data;
    work.each([&](size_t i, size_t begin, size_t end) {
        float* weights = work.weights[i];
        for (size_t k = begin; k < end; k += LANES) {
            const __m256i half = _mm256_loadu_si256((const __m256i*)(work.stack + i * work.count + k));
            const __m512 direction = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
            const __m512 kept = _mm512_mul_ps(_mm512_loadu_ps(weights + k), _mm512_set1_ps(work.keep));
            _mm512_storeu_ps(weights + k, _mm512_fmadd_ps(direction, _mm512_set1_ps(work.rate), kept));
        }
    });
}

}  // namespace

// What each pass does to n matrices of `count` numbers, a multiple of 16, is said in muon_pass.py. The caller has checked.
extern "C" {
void muon_collect(size_t n, size_t count, const float* const* gradients, float* const* slow, float* const* momenta,
                  uint16_t* stack, float toward, float lambda, float fresh, float kept, size_t threads) {
    Collect work{{n, count}, gradients, slow, momenta, stack, toward, lambda, fresh, kept};
    run_on(threads, collect, &work);
}

void muon_apply(size_t n, size_t count, float* const* weights, const uint16_t* stack, float keep, float rate, size_t threads) {
    Apply work{{n, count}, weights, stack, keep, rate};
    run_on(threads, apply, &work);
}
}
