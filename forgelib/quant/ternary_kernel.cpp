// y = x W^T on the CPU for weights in {-1, 0, +1} packed at 2 bits and activations rounded to int8 token by token.
//
// Layout. 64 outputs (rows of W) make a panel; a panel is a run of 64-byte lines, one for every 4 inputs:
//
//     line g of a panel, byte 4*l + b          l = 0..15, b = 0..3
//     bits   7 6     5 4     3 2     1 0
//          [row 48+l|row 32+l|row 16+l|row l]   each field is the code w + 1 in {0, 1, 2} at input 4*g + b
//
// The trick. `vpdpbusd` multiplies 64 unsigned bytes with 64 signed ones and adds each four neighbours to one of 16
// int32 sums, so the four inputs of a line, repeated 16 times, meet 16 rows at once. No field is ever shifted out: the
// lowest 2, 4, 6 and 8 bits of a byte are fed as they are, giving for activations a
//
//     s0 = sum a c0    s1 = sum a (c0 + 4 c1)    s2 = sum a (c0 + 4 c1 + 16 c2)    s3 = sum a (... + 64 c3)
//
// and only at the end c1 = (s1 - s0) / 4, c2 = (s2 - s1) / 16, c3 = (s3 - s2) / 64, minus the sum of a (w = c - 1).
// For 256 weights: one load, three ANDs, four dot products. A byte is at most 170, so 2^31 / (128 * 127) = 132,104
// inputs fit; sums may wrap before, as their differences do not. AVX2 and the portable path shift and add in int16,
// which is emptied into int32 before it can overflow.
//
// All paths round, add and scale in one order, so they agree to the last bit. Compile with -ffp-contract=off.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "cpp_threads.h"

#define INLINE inline __attribute__((always_inline))

namespace {

constexpr size_t PANEL = 64, LINE = 64;     // outputs of a panel, bytes of a line
constexpr size_t MAX_TILE = 6;              // tokens that share one pass over a panel
constexpr size_t TOKENS_AT_ONCE = 240;      // tokens whose rounded activations are kept (in the second-level cache)
constexpr float SMALLEST = 1e-5f;           // an absmax below this counts as this

// One layer, as the caller keeps it. scales [outputs]; bias [outputs] or null; codes in the layout above.
struct Layer {
    const uint8_t* codes;
    const float* scales;
    const float* bias;
    size_t outputs, inputs;

    size_t lines() const { return (inputs + 3) / 4; }
    size_t panels() const { return (outputs + PANEL - 1) / PANEL; }
};

// Rounded activations of some tokens: q [tokens][stride] padded with zeros, what 1 stands for, and the sum of each row.
struct Tokens {
    const int8_t* q;
    const float* unit;
    const int32_t* total;
    size_t count, stride;
};

// A tile adds up code * activation: sums[token][row of the panel], for up to MAX_TILE tokens.
using Tile = void (*)(const uint8_t* panel, const int8_t* q, size_t stride, size_t lines, size_t tokens, int32_t* sums);

// q = round(x * (127 / absmax)), ties to even. A row with NaN or infinity gets zeros and the unit NaN.
INLINE void quantize_row(const float* x, size_t n, size_t stride, int8_t* q, float* unit, int32_t* total) {
    int32_t bits = 0, sum = 0;  // non-negative floats are ordered as their bit patterns are, NaN above infinity
    for (size_t k = 0; k < n; k++) {
        int32_t pattern;
        std::memcpy(&pattern, x + k, 4);
        bits = std::max(bits, pattern & 0x7fffffff);
    }
    float largest;
    std::memcpy(&largest, &bits, 4);
    if (bits >= 0x7f800000) {
        std::memset(q, 0, stride);
        *unit = NAN, *total = 0;
        return;
    }
    largest = std::max(largest, SMALLEST);
    const float scale = 127.0f / largest;
    for (size_t k = 0; k < n; k++) {
        int32_t rounded = (int32_t)std::nearbyint(x[k] * scale);
        q[k] = (int8_t)rounded;
        sum += rounded;
    }
    std::memset(q + n, 0, stride - n);
    *unit = largest / 127.0f, *total = sum;
}

// ---------------------------------------------------------------- portable: GCC's and clang's vectors, any processor
typedef uint8_t u8x16 __attribute__((vector_size(16)));
typedef int8_t i8x16 __attribute__((vector_size(16)));
typedef int32_t i32x4 __attribute__((vector_size(16)));
typedef int16_t i16x16 __attribute__((vector_size(32)));

void tile_portable(const uint8_t* panel, const int8_t* q, size_t stride, size_t lines, size_t tokens, int32_t* sums) {
    constexpr size_t FULL = 32767 / (2 * 127);  // lines that an int16 can hold
    std::memset(sums, 0, tokens * PANEL * sizeof *sums);
    for (size_t t = 0; t < tokens; t++, q += stride, sums += PANEL)
        for (size_t first = 0; first < lines; first += FULL)
            for (size_t part = 0; part < 4; part++) {  // 16 bytes of every line: 4 rows of each field
                i16x16 sum[4] = {};
                for (size_t g = first; g < std::min(lines, first + FULL); g++) {
                    u8x16 bytes;
                    int32_t four;
                    std::memcpy(&bytes, panel + LINE * g + 16 * part, 16);
                    std::memcpy(&four, q + 4 * g, 4);
                    const i16x16 a = __builtin_convertvector((i8x16)(i32x4{four, four, four, four}), i16x16);
                    const i16x16 codes = __builtin_convertvector(bytes, i16x16);
                    for (int j = 0; j < 4; j++) sum[j] += ((codes >> (2 * j)) & 3) * a;
                }
                for (size_t j = 0; j < 4; j++)
                    for (size_t i = 0; i < 16; i++) sums[16 * j + 4 * part + i / 4] += sum[j][i];
            }
}

#if defined(__x86_64__)
#define AVX2 __attribute__((target("avx2")))
#define VNNI __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")))

// ---------------------------------------------------------------------------------------------------------- AVX2
// Half a line at a time: c0 and 4 c1 from the byte, c2 and 4 c3 from the byte shifted by 4. Two neighbours of 4 c1 make
// at most 2 * 8 * 127 = 2032, and 16 lines of them 32,512, which an int16 still holds.
template <int TOKENS>
AVX2 void tile_avx2(const uint8_t* panel, const int8_t* q, size_t stride, size_t lines, int32_t* sums) {
    constexpr size_t FULL = 16;
    const __m256i low = _mm256_set1_epi8(0x03), high = _mm256_set1_epi8(0x0c), ones = _mm256_set1_epi16(1);
    for (int half = 0; half < 2; half++) {
        __m256i wide[TOKENS][4] = {};
        for (size_t first = 0; first < lines; first += FULL) {
            __m256i sum[TOKENS][4] = {};
            const size_t last = std::min(lines, first + FULL);
            for (size_t g = first; g < last; g++) {
                const __m256i r = _mm256_loadu_si256((const __m256i*)(panel + LINE * g + 32 * half));
                const __m256i s = _mm256_srli_epi16(r, 4);
                const __m256i codes[4] = {_mm256_and_si256(r, low), _mm256_and_si256(r, high),
                                          _mm256_and_si256(s, low), _mm256_and_si256(s, high)};
                for (int t = 0; t < TOKENS; t++) {
                    int32_t four;
                    std::memcpy(&four, q + t * stride + 4 * g, 4);
                    const __m256i a = _mm256_set1_epi32(four);
                    for (int j = 0; j < 4; j++)
                        sum[t][j] = _mm256_add_epi16(sum[t][j], _mm256_maddubs_epi16(codes[j], a));
                }
            }
            for (int t = 0; t < TOKENS; t++)
                for (int j = 0; j < 4; j++)
                    wide[t][j] = _mm256_add_epi32(wide[t][j], _mm256_madd_epi16(sum[t][j], ones));
        }
        for (int t = 0; t < TOKENS; t++)
            for (int j = 0; j < 4; j++) {
                const __m256i exact = j % 2 ? _mm256_srai_epi32(wide[t][j], 2) : wide[t][j];
                _mm256_storeu_si256((__m256i*)(sums + t * PANEL + 16 * j + 8 * half), exact);
            }
    }
}

AVX2 void tiles_avx2(const uint8_t* panel, const int8_t* q, size_t stride, size_t lines, size_t tokens, int32_t* sums) {
    size_t t = 0;
    for (; t + 2 <= tokens; t += 2) tile_avx2<2>(panel, q + t * stride, stride, lines, sums + t * PANEL);
    if (t < tokens) tile_avx2<1>(panel, q + t * stride, stride, lines, sums + t * PANEL);
}

// -------------------------------------------------------------------------------------------------- AVX-512 VNNI
struct Line { __m512i c0, c1, c2, c3; };     // what a line feeds: its lowest 2, 4, 6 and 8 bits
struct Sums { __m512i s0, s1, s2, s3; };     // of one token

// sum += codes * a, four bytes to an int32. The intrinsic makes GCC 12 move sums through memory, at half the speed.
VNNI INLINE void dot(__m512i& sum, __m512i codes, __m512i a) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(a));
}

// Every index is known when this is compiled, so all sums of all tokens stay in registers.
template <int TOKENS>
VNNI INLINE void add_line(Sums* sums, const Line& line, const int8_t* q, size_t stride) {
    if constexpr (TOKENS > 0) {
        add_line<TOKENS - 1>(sums, line, q, stride);
        int32_t four;
        std::memcpy(&four, q + (TOKENS - 1) * stride, 4);
        const __m512i a = _mm512_set1_epi32(four);
        Sums& sum = sums[TOKENS - 1];
        dot(sum.s0, line.c0, a), dot(sum.s1, line.c1, a), dot(sum.s2, line.c2, a), dot(sum.s3, line.c3, a);
    }
}

VNNI INLINE Line load_line(const uint8_t* line) {
    const __m512i bytes = _mm512_loadu_si512(line);
    return {_mm512_and_si512(bytes, _mm512_set1_epi8(0x03)), _mm512_and_si512(bytes, _mm512_set1_epi8(0x0f)),
            _mm512_and_si512(bytes, _mm512_set1_epi8(0x3f)), bytes};
}

VNNI INLINE void store(int32_t* sums, const Sums& s) {
    _mm512_storeu_si512(sums, s.s0);
    _mm512_storeu_si512(sums + 16, _mm512_srai_epi32(_mm512_sub_epi32(s.s1, s.s0), 2));
    _mm512_storeu_si512(sums + 32, _mm512_srai_epi32(_mm512_sub_epi32(s.s2, s.s1), 4));
    _mm512_storeu_si512(sums + 48, _mm512_srai_epi32(_mm512_sub_epi32(s.s3, s.s2), 6));
}

template <int TOKENS>
VNNI INLINE void store_all(int32_t* sums, const Sums* s) {
    if constexpr (TOKENS > 0) {
        store_all<TOKENS - 1>(sums, s);
        store(sums + (TOKENS - 1) * PANEL, s[TOKENS - 1]);
    }
}

template <int TOKENS>
VNNI INLINE void add_sums(Sums* to, const Sums* from) {
    if constexpr (TOKENS > 0) {
        add_sums<TOKENS - 1>(to, from);
        Sums& a = to[TOKENS - 1];
        const Sums& b = from[TOKENS - 1];
        a = {_mm512_add_epi32(a.s0, b.s0), _mm512_add_epi32(a.s1, b.s1), _mm512_add_epi32(a.s2, b.s2),
             _mm512_add_epi32(a.s3, b.s3)};
    }
}

// Even and odd lines have sums of their own while registers last (TOKENS <= 3): a dot product takes four cycles to
// arrive, and with few tokens there is nothing else to do meanwhile.
template <int TOKENS>
VNNI void tile_vnni(const uint8_t* panel, const int8_t* q, size_t stride, size_t lines, int32_t* out) {
    constexpr int AHEAD = 4096;  // bytes to fetch ahead; without, a sixth slower from the L3 cache
    Sums even[TOKENS] = {}, odd[TOKENS] = {};
    size_t g = 0;
    if constexpr (TOKENS <= 3)
        for (; g + 2 <= lines; g += 2) {
            const uint8_t* line = panel + LINE * g;
            _mm_prefetch((const char*)(line + AHEAD), _MM_HINT_T0);
            _mm_prefetch((const char*)(line + AHEAD + LINE), _MM_HINT_T0);
            add_line<TOKENS>(even, load_line(line), q + 4 * g, stride);
            add_line<TOKENS>(odd, load_line(line + LINE), q + 4 * g + 4, stride);
        }
    for (; g < lines; g++) add_line<TOKENS>(even, load_line(panel + LINE * g), q + 4 * g, stride);
    if constexpr (TOKENS <= 3) add_sums<TOKENS>(even, odd);
    store_all<TOKENS>(out, even);
}

VNNI void tiles_vnni(const uint8_t* panel, const int8_t* q, size_t stride, size_t lines, size_t tokens, int32_t* sums) {
    switch (tokens) {
        case 1: return tile_vnni<1>(panel, q, stride, lines, sums);
        case 2: return tile_vnni<2>(panel, q, stride, lines, sums);
        case 3: return tile_vnni<3>(panel, q, stride, lines, sums);
        case 4: return tile_vnni<4>(panel, q, stride, lines, sums);
        case 5: return tile_vnni<5>(panel, q, stride, lines, sums);
        default: return tile_vnni<6>(panel, q, stride, lines, sums);
    }
}
#endif

// One panel for all tokens: tiles of even size, then y = (sum - total) * (unit * scale) + bias.
INLINE void run_panel(const Layer& layer, const Tokens& tokens, size_t panel, float* y, Tile tile) {
    const size_t first = panel * PANEL, rows = std::min(PANEL, layer.outputs - first), lines = layer.lines();
    const float* scales = layer.scales + first;
    alignas(64) int32_t sums[MAX_TILE * PANEL];
    size_t tiles = (tokens.count + MAX_TILE - 1) / MAX_TILE;
    for (size_t t = 0; t < tokens.count; tiles--) {
        const size_t size = (tokens.count - t + tiles - 1) / tiles;
        tile(layer.codes + panel * lines * LINE, tokens.q + t * tokens.stride, tokens.stride, lines, size, sums);
        for (size_t i = 0; i < size; i++, t++) {
            const float unit = tokens.unit[t];
            const int32_t total = tokens.total[t];
            float* out = y + t * layer.outputs + first;
            for (size_t n = 0; n < rows; n++) out[n] = (float)(sums[i * PANEL + n] - total) * (unit * scales[n]);
            if (layer.bias)
                for (size_t n = 0; n < rows; n++) out[n] += layer.bias[first + n];
        }
    }
}

// What the threads share out among them: tokens to round, then panels of all layers to multiply.
struct Work {
    const Layer* layers;
    size_t n_layers, n_panels;
    const float* x;
    Tokens tokens;
    float* const* y;
    size_t first_token;
    std::atomic<size_t> next{0};
};

INLINE void quantize_all(Work& work) {
    const size_t n = work.layers[0].inputs, stride = work.tokens.stride;
    const float* x = work.x + work.first_token * n;
    for (size_t t; (t = work.next++) < work.tokens.count;)
        quantize_row(x + t * n, n, stride, (int8_t*)work.tokens.q + t * stride, (float*)work.tokens.unit + t,
                     (int32_t*)work.tokens.total + t);
}

INLINE void multiply_all(Work& work, Tile tile) {
    for (size_t p; (p = work.next++) < work.n_panels;) {
        size_t i = 0;
        for (; p >= work.layers[i].panels(); i++) p -= work.layers[i].panels();
        const Layer& layer = work.layers[i];
        run_panel(layer, work.tokens, p, work.y[i] + work.first_token * layer.outputs, tile);
    }
}

// The same code three times, so that the compiler may use each path's instructions for rounding and scaling, too.
void quantize_portable(void* work) { quantize_all(*(Work*)work); }
void multiply_portable(void* work) { multiply_all(*(Work*)work, tile_portable); }
#if defined(__x86_64__)
AVX2 void quantize_avx2(void* work) { quantize_all(*(Work*)work); }
AVX2 void multiply_avx2(void* work) { multiply_all(*(Work*)work, tiles_avx2); }
VNNI void quantize_vnni(void* work) { quantize_all(*(Work*)work); }
VNNI void multiply_vnni(void* work) { multiply_all(*(Work*)work, tiles_vnni); }
#endif

const struct {
    void (*quantize)(void*);
    void (*multiply)(void*);
} PATHS[] = {
    {quantize_portable, multiply_portable},
#if defined(__x86_64__)
    {quantize_avx2, multiply_avx2},
    {quantize_vnni, multiply_vnni},
#endif
};

}  // namespace

extern "C" {

// How many of the paths 0 portable, 1 AVX2, 2 AVX-512 VNNI this processor can run.
int ternary_paths() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2")) return 1;
    const bool vnni = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vnni");
    return vnni ? 3 : 2;
#else
    return 1;
#endif
}

// 1 where more than one thread can be had.
int ternary_threads() { return torchs_threads() != nullptr; }

// Layers of one width that read the same x [tokens][inputs]: y[i] [tokens][outputs of layer i], float32, contiguous.
// The caller has checked every size.
void ternary_linears(const Layer* layers, size_t n_layers, const float* x, size_t tokens, float* const* y,
                     size_t threads, int path) {
    static thread_local std::vector<int8_t> q;
    static thread_local std::vector<float> unit(TOKENS_AT_ONCE);
    static thread_local std::vector<int32_t> total(TOKENS_AT_ONCE);
    const size_t stride = (layers[0].inputs + 63) / 64 * 64;
    size_t n_panels = 0;
    for (size_t i = 0; i < n_layers; i++) n_panels += layers[i].panels();
    for (size_t first = 0; first < tokens; first += TOKENS_AT_ONCE) {
        const size_t count = std::min(TOKENS_AT_ONCE, tokens - first);
        if (q.size() < count * stride) q.resize(count * stride);
        Work work{layers, n_layers, n_panels, x, {q.data(), unit.data(), total.data(), count, stride}, y, first};
        run_on(count < 16 ? 1 : threads, PATHS[path].quantize, &work);
        work.next = 0;
        run_on(threads, PATHS[path].multiply, &work);
    }
}
}
