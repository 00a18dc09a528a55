// What the decoder is told about a model: addresses and sizes. decoder.py writes these structs, field for field, and
// keeps every tensor alive. Shape legend: D width, H heads, G heads of keys and values, d width of a head, S slots.
#pragma once

#include <cstddef>
#include <cstdint>

namespace {

// A layer as ternary_kernel.cpp reads it.
struct Layer {
    const uint8_t* codes;
    const float *scales, *bias;
    size_t outputs, inputs;
};
using Kernel = void (*)(const Layer*, size_t, const float*, size_t, float* const*, size_t threads, int path);

// A linear layer that is ternary (layer.codes), or dense in panels (decoder_dense.h) of float16 or of float32.
struct Linear {
    Layer layer;
    const uint16_t* half;
    const float* full;
};

// Attention over S slots; a token takes the slot position % S.
//     keys [G][d][S]: one multiple of a row is added for each of the d parts of a query, for all slots at once
//     values [G][S][d]: one multiple of a row is added for each slot
struct Attention {
    Linear query, key, value, out;
    float *keys, *values;
};

struct FeedForward {
    Linear gate, up, down;
};

// Long-term memory and its gate. Channels run along the rows, so that vectors do:
//     conv [C][3D] weights, oldest token first     tail [C - 1][3D] the projected tokens before
//     memory, momentum [H][dk][dv]: row j is what key j adds to the answer
struct Memory {
    Linear query, key, value, gates, mix;
    const float *conv, *y_norm, *m_norm;
    float *tail, *memory, *momentum;
    size_t heads, conv_kernel;
    float keeps;  // 1 - 1 / horizon
    int on;
};

// Of the backbone: norm before attention and feed-forward. Of the recursion: after them, and no memory.
struct Block {
    const float* norm;
    Attention attention;
    const float* feed_norm;
    FeedForward feed;
    const Memory* memory;
};

struct Model {
    size_t width, heads, kv_heads, head_width, slots;
    float epsilon;
    const float* frequencies;  // [d / 2], radians a token
    float rotary_scale;
    int rotary_pairs;  // neighbours 2i, 2i + 1 turn together; else i, i + d / 2
    const float* embedding;  // [V][D]
    const Block* blocks;
    size_t n_blocks;
    const float* norm;  // of what the blocks give
    const Block* recursion;  // n_recursion is 0 where there is none
    size_t n_recursion;
    const float* first_latent;
    Linear halting;
    size_t micro_steps, max_cycles;
    float threshold;
    Linear head;
    Kernel kernel;
    int path;
    size_t worth_threads;
};

}  // namespace
