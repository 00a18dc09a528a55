// The products of one token: ternary layers by the kernel, the others (the head above all) from panels of 64 outputs
//
//     panel p:   [input 0: outputs 64p ... 64p + 63][input 1: the same 64 outputs] ...
//
// in float16 where that holds them exactly, else in float32. An input is multiplied with 64 weights that lie side by
// side, so no sum ever runs across a vector, and a panel is read from its beginning to its end: the memory, not the
// arithmetic, sets the pace.
#pragma once

#include <atomic>
#include <initializer_list>

#include "cpp_threads.h"
#include "decoder_rows.h"
#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

namespace {

constexpr size_t PANEL = 64, AT_ONCE = 8;  // outputs of a panel; panels that a thread takes at once
constexpr size_t AHEAD = 2048;             // bytes to fetch ahead

// As many floats as one register holds. Wider vectors than that, the compiler moves through memory.
#if defined(__AVX512F__)
constexpr size_t WIDE = 16;
#elif defined(__AVX2__)
constexpr size_t WIDE = 8;
#else
constexpr size_t WIDE = 4;
#endif
constexpr size_t PASS = std::min(PANEL, 8 * WIDE);  // outputs whose sums fit into registers at once

typedef float Floats __attribute__((vector_size(4 * WIDE)));
typedef uint32_t Bits __attribute__((vector_size(4 * WIDE)));
typedef uint16_t Halves __attribute__((vector_size(2 * WIDE)));

INLINE Floats widened(const float* from) {
    Floats floats;
    std::memcpy(&floats, from, sizeof floats);
    return floats;
}

// float16 as float32, exactly.
INLINE Floats widened(const uint16_t* from) {
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__F16C__) && defined(__AVX2__)
    return (Floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from));
#else  // exponent and fraction moved to their places, then 2^112 for the two offsets of the exponent; no infinities
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    const Bits bits = __builtin_convertvector(halves, Bits);
    const Floats size = (Floats)((bits & 0x7fff) << 13) * 0x1p112f;
    return (Floats)((Bits)size | (bits & 0x8000) << 16);
#endif
}

// sums [64] = one panel times x.
template <class Value>
INLINE void run_panel(const Value* panel, const float* x, size_t inputs, float* sums) {
    for (size_t first = 0; first < PANEL; first += PASS) {
        Floats sum[PASS / WIDE] = {};
        const Value* weights = panel + first;
        for (size_t k = 0; k < inputs; k++, weights += PANEL) {
            for (size_t b = 0; b < PASS * sizeof *weights; b += 64)
                __builtin_prefetch((const char*)weights + AHEAD + b);
            for (size_t j = 0; j < PASS / WIDE; j++) sum[j] += widened(weights + WIDE * j) * x[k];
        }
        std::memcpy(sums + first, sum, sizeof sum);
    }
}

// What threads share out among them.
struct Dense {
    const Linear& linear;
    const float* x;
    float* y;
    std::atomic<size_t> next{0};
};

void run_dense(void* shared) {
    Dense& work = *(Dense*)shared;
    const Layer& layer = work.linear.layer;
    const size_t n_panels = (layer.outputs + PANEL - 1) / PANEL;
    for (size_t first; (first = work.next.fetch_add(AT_ONCE)) < n_panels;)
        for (size_t p = first; p < std::min(n_panels, first + AT_ONCE); p++) {
            float sums[PANEL];
            const size_t at = p * PANEL * layer.inputs, rows = std::min(PANEL, layer.outputs - p * PANEL);
            if (work.linear.half)
                run_panel(work.linear.half + at, work.x, layer.inputs, sums);
            else
                run_panel(work.linear.full + at, work.x, layer.inputs, sums);
            for (size_t n = 0; n < rows; n++)
                work.y[p * PANEL + n] = layer.bias ? sums[n] + layer.bias[p * PANEL + n] : sums[n];
        }
}

struct Product {
    const Linear& linear;
    float* y;
};

// Every y = W x: the ternary layers in one call of the kernel, so x is rounded once.
void multiply(const Model& model, size_t threads, const float* x, std::initializer_list<Product> products) {
    Layer layers[8];
    float* ys[8];
    size_t n = 0, ternary_work = 0;
    for (const Product& product : products) {
        const Layer& layer = product.linear.layer;
        const size_t work = layer.outputs * layer.inputs;
        if (layer.codes) {
            layers[n] = layer, ys[n++] = product.y, ternary_work += work;
        } else {
            Dense dense{product.linear, x, product.y};
            run_on(work < model.worth_threads ? 1 : threads, run_dense, &dense);
        }
    }
    if (n) model.kernel(layers, n, x, 1, ys, ternary_work < model.worth_threads ? 1 : threads, model.path);
}

}  // namespace
