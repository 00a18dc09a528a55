// One token of the long-term memory, and the gate between it and attention. Per head, with memory M and momentum S
// kept transposed, so that row j belongs to part j of the key:
//
//     surprise = v - M k        S = eta S + theta surprise k^T        M = decay M + S        recalled = M q
#pragma once

#include "decoder_rows.h"

namespace {

// x / max(|x|, 1e-6), in place.
INLINE void normalise(float* x, size_t n) {
    const float size = std::max(std::sqrt(sum_of_squares(x, n)), 1e-6f);
    for (size_t i = 0; i < n; i++) x[i] /= size;
}

// mixed [3D] = silu(causal convolution of the projected tokens [3D]); the tail moves on by this token.
INLINE void convolve(const Memory& memory, const float* projected, size_t channels, float* mixed) {
    const size_t before = memory.conv_kernel - 1;
    const float* newest = memory.conv + before * channels;
    for (size_t c = 0; c < channels; c++) mixed[c] = newest[c] * projected[c];
    for (size_t t = 0; t < before; t++)
        for (size_t c = 0; c < channels; c++) mixed[c] += memory.conv[t * channels + c] * memory.tail[t * channels + c];
    for (size_t c = 0; c < channels; c++) mixed[c] = silu(mixed[c]);
    if (!before) return;
    std::memmove(memory.tail, memory.tail + channels, (before - 1) * channels * sizeof *projected);
    std::memcpy(memory.tail + (before - 1) * channels, projected, channels * sizeof *projected);
}

// recalled [D] of what the memory has learnt, this token included.
// Args: projected [3D] query, key, value; gates [3H] logits; room for 4D floats.
INLINE void remember(const Memory& memory, size_t width, const float* projected, const float* gates, float* room,
                     float* recalled) {
    const size_t heads = memory.heads, d = width / heads;
    float *mixed = room, *surprise = room + 3 * width;
    convolve(memory, projected, 3 * width, mixed);
    for (size_t h = 0; h < heads; h++) {
        float *q = mixed + h * d, *k = q + width, *v = k + width;
        normalise(q, d), normalise(k, d);
        const float e = gates[h], write = gates[heads + h], forget = gates[2 * heads + h];
        const float decay = memory.keeps * sigmoid(-forget);
        const float eta = decay * sigmoid(e) / 2, theta = decay * sigmoid(-e) * sigmoid(write);

        std::fill(surprise, surprise + d, 0.0f);
        for (size_t j = 0; j < d; j++) add_multiple(surprise, k[j], memory.memory + (h * d + j) * d, d);
        for (size_t i = 0; i < d; i++) surprise[i] = theta * (v[i] - surprise[i]);

        float* out = recalled + h * d;
        std::fill(out, out + d, 0.0f);
        for (size_t j = 0; j < d; j++) {
            float *M = memory.memory + (h * d + j) * d, *S = memory.momentum + (h * d + j) * d;
            for (size_t i = 0; i < d; i++) {
                S[i] = eta * S[i] + surprise[i] * k[j];
                M[i] = decay * M[i] + S[i];
                out[i] += M[i] * q[j];
            }
        }
    }
}

}  // namespace
