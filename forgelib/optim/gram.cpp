// X X^T + d I for a stack of bfloat16 matrices, at a little more than half of the work of a product: it is symmetric, so only
// the tiles on and below the diagonal are computed, and mirrored. Needs AVX-512 BF16.
//
//   vdpbf16ps adds two products at a time to a float32 sum: 32 bits of X hold the numbers k and k+1 of one row, a "pair".
//
//     x       [rows][pairs]                 one row's pairs in a line: 8 rows give the left side, pair by pair
//     panel   [rows / 32][pairs][32]        the pairs k of 32 rows in a line: the right side, two registers a pair
//
//     y tile  8 x 32  =  sum over k of    x[i..i+8][k]  (each spread over a register)  *  panel[j / 32][k][0..32]
//
// Sums run in the order of k, and those of more than 512 products in parts of 512 that are added, as oneDNN has them: up
// to 768 columns the result was torch.bmm's, bit for bit; with 1,056 one number in ten thousand was rounded otherwise.
// Where X comes transposed (a tall matrix, [columns][rows] in memory) both layouts are made from it.

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpp_threads.h"

namespace {

constexpr size_t WIDE = 32, HIGH = 8, PART = 256;

float widened(uint16_t number) { return _mm512_cvtss_f32(_mm512_castsi512_ps(_mm512_set1_epi32(number << 16))); }

uint16_t rounded(float number) {
    return (uint16_t)_mm256_extract_epi16((__m256i)_mm512_cvtneps_pbh(_mm512_set1_ps(number)), 0);
}

struct Work {  // one matrix
    const uint16_t* x;
    size_t rows, pairs;
    bool transposed;
    uint16_t diagonal;
    uint32_t *left, *panels;  // left is made where x is transposed, else it is x
    uint16_t* y;
    std::atomic<size_t> next{0};
};

// to[c][r] = from[r][c], 16 x 16 words
void transpose16(const uint32_t* from, size_t from_stride, uint32_t* to, size_t to_stride) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i++) a[i] = _mm512_loadu_si512(from + i * from_stride);
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
        b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
        b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
        b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        a[i] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88);
        a[i + 8] = _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd);
        a[i + 4] = _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0x88);
        a[i + 12] = _mm512_shuffle_i32x4(b[i + 4], b[i + 12], 0xdd);
    }
    for (int i = 0; i < 16; i++) _mm512_storeu_si512(to + i * to_stride, a[i]);
}

// to[c][r] = from[r][c], 8 x 8 bfloat16 numbers
void transpose8(const uint16_t* from, uint16_t* to, size_t stride) {
    __m128i a[8], b[8];
    for (int i = 0; i < 8; i++) a[i] = _mm_loadu_si128((const __m128i*)(from + i * stride));
    for (int i = 0; i < 8; i += 2) {
        b[i] = _mm_unpacklo_epi16(a[i], a[i + 1]);
        b[i + 1] = _mm_unpackhi_epi16(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        a[i] = _mm_unpacklo_epi32(b[i], b[i + 2]);
        a[i + 1] = _mm_unpackhi_epi32(b[i], b[i + 2]);
        a[i + 2] = _mm_unpacklo_epi32(b[i + 1], b[i + 3]);
        a[i + 3] = _mm_unpackhi_epi32(b[i + 1], b[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        _mm_storeu_si128((__m128i*)(to + 2 * i * stride), _mm_unpacklo_epi64(a[i], a[i + 4]));
        _mm_storeu_si128((__m128i*)(to + (2 * i + 1) * stride), _mm_unpackhi_epi64(a[i], a[i + 4]));
    }
}

// The panel of a transposed X: columns k and k+1 of 32 rows lie in two lines, their pairs in one.
void interleave(const uint16_t* from, size_t stride, uint32_t* to) {
    const __m512i a = _mm512_loadu_si512(from), b = _mm512_loadu_si512(from + stride);
    const __m512i low = _mm512_unpacklo_epi16(a, b), high = _mm512_unpackhi_epi16(a, b);
    const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), last = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    _mm512_storeu_si512(to, _mm512_permutex2var_epi64(low, first, high));
    _mm512_storeu_si512(to + 16, _mm512_permutex2var_epi64(low, last, high));
}

void make_panel(Work& work, size_t row) {
    const size_t pairs = work.pairs;
    uint32_t *panel = work.panels + row * pairs, *left = work.left + row * pairs;
    if (work.transposed)
        for (size_t k = 0; k < pairs; k++)
            interleave(work.x + row + 2 * k * work.rows, work.rows, panel + k * WIDE);
    for (size_t i = 0; i < WIDE; i += 16)
        for (size_t k = 0; k < pairs; k += 16)
            if (work.transposed)
                transpose16(panel + k * WIDE + i, WIDE, left + i * pairs + k, pairs);
            else
                transpose16(left + i * pairs + k, pairs, panel + k * WIDE + i, WIDE);
}

// 8 rows of y, 32 columns of a panel or, with 1 for WIDTH, the first 16 of them.
template <size_t WIDTH>
void tile(const uint32_t* left, const uint32_t* panel, size_t pairs, uint16_t* y, size_t stride) {
    __m512 sum[HIGH][WIDTH], kept[HIGH][WIDTH];
    for (size_t begin = 0; begin < pairs; begin += PART) {
        const size_t end = std::min(begin + PART, pairs);
        for (auto& row : sum)
            for (auto& columns : row) columns = _mm512_setzero_ps();
        for (size_t k = begin; k < end; k++) {
            __m512bh right[WIDTH];
            for (size_t c = 0; c < WIDTH; c++) right[c] = (__m512bh)_mm512_loadu_si512(panel + k * WIDE + 16 * c);
#pragma GCC unroll 8
            for (size_t i = 0; i < HIGH; i++) {
                const auto x = (__m512bh)_mm512_set1_epi32(left[i * pairs + k]);
                for (size_t c = 0; c < WIDTH; c++) sum[i][c] = _mm512_dpbf16_ps(sum[i][c], x, right[c]);
            }
        }
        for (size_t i = 0; i < HIGH; i++)
            for (size_t c = 0; c < WIDTH; c++) {
                if (begin) sum[i][c] = _mm512_add_ps(kept[i][c], sum[i][c]);
                kept[i][c] = sum[i][c];
            }
    }
    for (size_t i = 0; i < HIGH; i++)
        for (size_t c = 0; c < WIDTH; c++)
            _mm256_storeu_si256((__m256i*)(y + i * stride + 16 * c), (__m256i)_mm512_cvtneps_pbh(sum[i][c]));
}

// The 32 columns j.. of y from the diagonal down, and their mirror image. On the diagonal blocks of 16 x 16 are whole.
void multiply_panel(Work& work, size_t j) {
    const size_t rows = work.rows, pairs = work.pairs;
    uint16_t* y = work.y;
    for (size_t i = j; i < rows; i += HIGH) {
        const auto compute = i < j + WIDE / 2 ? tile<1> : tile<2>;
        compute(work.left + i * pairs, work.panels + j * pairs, pairs, y + i * rows + j, rows);
        for (size_t c = j; c < std::min(j + WIDE, i / 16 * 16); c += 8) transpose8(y + i * rows + c, y + c * rows + i, rows);
    }
    for (size_t i = j; i < j + WIDE; i++) y[i * rows + i] = rounded(widened(y[i * rows + i]) + widened(work.diagonal));
}

// What the threads share out among them; the longest columns come first.
template <void (*OF_PANEL)(Work&, size_t)>
void all(void* data) {
    Work& work = *(Work*)data;
    for (size_t row; (row = WIDE * work.next++) < work.rows;) OF_PANEL(work, row);
}

}  // namespace

// y [n][rows][rows] = x x^T + diagonal I for x [n][rows][columns], or [n][columns][rows] where `transposed`; rows and columns are
// multiples of 32. The caller has checked them.
extern "C" void gram(const uint16_t* x, size_t n, size_t rows, size_t columns, bool transposed, float diagonal,
                     uint16_t* y, size_t threads) {
    static thread_local std::vector<uint32_t> panels, made;
    const size_t words = rows * columns / 2;
    if (panels.size() < words) panels.resize(words);
    if (transposed && made.size() < words) made.resize(words);
    for (size_t i = 0; i < n; i++) {  // one after the other, so that all of it stays in the cache
        const uint16_t* from = x + 2 * i * words;
        Work work{from, rows, columns / 2, transposed, rounded(diagonal), transposed ? made.data() : (uint32_t*)from, panels.data(), y + i * rows * rows};
        run_on(threads, all<make_panel>, &work);
        work.next = 0;
        run_on(threads, all<multiply_panel>, &work);
    }
}
