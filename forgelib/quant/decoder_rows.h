// Arithmetic on rows of floats that lies between the products: norms, exponentials, rotary positions, one token's
// attention. Loops without a sum are left to the compiler; sums have sixteen lanes of their own, so that every
// processor adds in the same order and all paths give the same bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "decoder_model.h"

#define INLINE inline __attribute__((always_inline))

namespace {

constexpr size_t LANES = 16;

// e^x to 2 units in the last place (Cephes): x = n ln 2 + r, a polynomial for e^r, 2^n put together from bits. Beyond
// -87 and 88 it stays at their values; NaN stays NaN.
INLINE float exponential(float x) {
    constexpr float SHIFT = 12582912.0f;  // 1.5 * 2^23: a float so large has no fraction, and n in its lowest bits
    x = std::min(std::max(x, -87.0f), 88.0f);
    const float shifted = x * 1.44269504f + SHIFT, n = shifted - SHIFT;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
        p = p * r + c;
    p = p * r * r + r + 1.0f;
    uint32_t bits;
    std::memcpy(&bits, &shifted, 4);
    bits = (bits - 0x4b400000u + 127u) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    return p * power;
}

INLINE float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }
INLINE float silu(float x) { return x / (1.0f + exponential(-x)); }

INLINE float sum_of_squares(const float* x, size_t n) {
    float lanes[LANES] = {}, sum = 0;
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t l = 0; l < LANES; l++) lanes[l] += x[i + l] * x[i + l];
    for (size_t l = 0; i < n; i++, l++) lanes[l] += x[i] * x[i];
    for (float lane : lanes) sum += lane;
    return sum;
}

// y = weight * x / sqrt(mean x^2 + epsilon); y may be x.
INLINE void rms_norm(const float* x, const float* weight, size_t n, float epsilon, float* y) {
    const float factor = 1.0f / std::sqrt(sum_of_squares(x, n) / (float)n + epsilon);
    for (size_t i = 0; i < n; i++) y[i] = x[i] * factor * weight[i];
}

INLINE void add(float* y, const float* x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] += x[i];
}

INLINE void add_multiple(float* y, float factor, const float* x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] += factor * x[i];
}

// cosines and sines [d / 2] of one position.
INLINE void angles(const Model& model, size_t position, float* cosines, float* sines) {
    for (size_t i = 0; i < model.head_width / 2; i++) {
        const float angle = (float)position * model.frequencies[i];
        cosines[i] = std::cos(angle) * model.rotary_scale, sines[i] = std::sin(angle) * model.rotary_scale;
    }
}

// Turns x [heads][d] in place.
INLINE void rotate(const Model& model, const float* cosines, const float* sines, size_t heads, float* x) {
    const size_t half = model.head_width / 2, apart = model.rotary_pairs ? 1 : half, next = model.rotary_pairs ? 2 : 1;
    for (size_t h = 0; h < heads; h++, x += model.head_width)
        for (size_t i = 0; i < half; i++) {
            float *a = x + i * next, *b = a + apart;
            const float turned = *a * cosines[i] - *b * sines[i];
            *b = *b * cosines[i] + *a * sines[i], *a = turned;
        }
}

// Puts a token's key and value [G][d] into its slot.
INLINE void store(const Model& model, const Attention& attention, size_t slot, const float* key, const float* value) {
    const size_t width = model.head_width, slots = model.slots;
    for (size_t g = 0; g < model.kv_heads; g++) {
        for (size_t i = 0; i < width; i++) attention.keys[(g * width + i) * slots + slot] = key[g * width + i];
        std::memcpy(attention.values + (g * slots + slot) * width, value + g * width, width * sizeof *value);
    }
}

// weights = softmax(weights) but for the factor that is returned.
INLINE float softmax(float* weights, size_t n) {
    float largest = weights[0], lanes[LANES] = {}, sum = 0;
    for (size_t s = 1; s < n; s++) largest = std::max(largest, weights[s]);
    for (size_t s = 0; s < n; s++) weights[s] = exponential(weights[s] - largest);
    size_t s = 0;
    for (; s + LANES <= n; s += LANES)
        for (size_t l = 0; l < LANES; l++) lanes[l] += weights[s + l];
    for (size_t l = 0; s < n; s++, l++) lanes[l] += weights[s];
    for (float lane : lanes) sum += lane;
    return 1.0f / sum;
}

// mixed [H][d] = softmax(q k^T / sqrt(d)) v over the first `count` slots, for query [H][d]. weights: room for S.
INLINE void attend(const Model& model, const Attention& attention, size_t count, const float* query, float* weights,
                   float* mixed) {
    const size_t width = model.head_width, slots = model.slots, sharing = model.heads / model.kv_heads;
    const float scale = 1.0f / std::sqrt((float)width);
    for (size_t h = 0; h < model.heads; h++, query += width, mixed += width) {
        const float* keys = attention.keys + h / sharing * width * slots;
        const float* values = attention.values + h / sharing * slots * width;
        std::fill(weights, weights + count, 0.0f);
        for (size_t i = 0; i < width; i++) add_multiple(weights, query[i] * scale, keys + i * slots, count);
        const float share = softmax(weights, count);
        std::fill(mixed, mixed + width, 0.0f);
        for (size_t s = 0; s < count; s++) add_multiple(mixed, weights[s], values + s * width, width);
        for (size_t i = 0; i < width; i++) mixed[i] *= share;
    }
}

}  // namespace
