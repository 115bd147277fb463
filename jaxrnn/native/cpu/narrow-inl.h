// Operands of products in bfloat16: pairs of neighbouring elements of a row of floats.
//
// The sums of the products, the states and everything that is stored remain float.
#pragma once

#include "product-inl.h"

namespace {

using namespace jaxrnn;

template <class P>
constexpr bool kNarrow = std::is_same<P, Pair>::value;

// Elements P of a row of n floats.
template <class P>
constexpr int64_t row_size(int64_t n) {
  return kNarrow<P> ? (n + 1) / 2 : n;
}

#if defined(__AVX512BF16__) && JAXRNN_VECTOR_BYTES == 64
JAXRNN_INLINE __mmask16 first_lanes(int64_t n) {
  return __mmask16(n >= 16 ? 0xFFFF : n <= 0 ? 0 : (1 << n) - 1);
}
#endif

// Rounds n floats to bfloat16; an odd one at the end makes a pair with 0.
JAXRNN_INLINE void narrow(Pair* to, const float* from, int64_t n) {
#if defined(__AVX512BF16__) && JAXRNN_VECTOR_BYTES == 64
  for (int64_t i = 0; i < n; i += 32) {
    const __m512 a = _mm512_maskz_loadu_ps(first_lanes(n - i), from + i);
    const __m512 b = _mm512_maskz_loadu_ps(first_lanes(n - i - 16), from + i + 16);
    _mm512_mask_storeu_epi32(to + i / 2, first_lanes((n - i + 1) / 2),
                             (__m512i)_mm512_cvtne2ps_pbh(b, a));
  }
#else
  constexpr int L = kLanes<float>;
  for (int64_t i = 0; i < n; i += L) {
    const V<Pair> rounded = round_lanes(load(from + i, n - i));
    for (int k = 0; k < L && i + k < n; k += 2)
      to[(i + k) / 2] = {rounded[k + 1] | int32_t(uint32_t(rounded[k]) >> 16)};
  }
#endif
}

// Element i of the result holds a[i] and b[i], for the first n <= kLanes.
JAXRNN_INLINE void zip_some(Pair* to, const float* a, const float* b, int64_t n) {
#if defined(__AVX512BF16__) && JAXRNN_VECTOR_BYTES == 64
  const __mmask16 lanes = first_lanes(n);
  const __m512 x = _mm512_maskz_loadu_ps(lanes, a), y = _mm512_maskz_loadu_ps(lanes, b);
  _mm512_mask_storeu_epi32(to, lanes, (__m512i)zip((V<float>)x, (V<float>)y));
#else
  store((int32_t*)to, (V<int32_t>)zip(load(a, n), load(b, n)), n);
#endif
}

// Packs a row of a panel from two neighbouring rows of a matrix; `width` columns, 0 beyond `valid`.
JAXRNN_INLINE void pack_pairs(Pair* to, const float* first, const float* second, int64_t width,
                              int64_t valid) {
  constexpr int L = kLanes<Pair>;
  for (int64_t i = 0; i < width; i += L) {
    const V<float> a = i < valid ? load(first + i, valid - i) : V<float>{};
    const V<float> b = i < valid && second ? load(second + i, valid - i) : V<float>{};
    store(to + i, zip(a, b));
  }
}

// As `pack_plain`, for a matrix of `parts` times `rows` rows, each part of which begins a pair.
inline void pack_plain_pairs(Pair* panels, const float* w, int64_t parts, int64_t rows,
                             int64_t columns, int64_t width, int member, int members) {
  const int64_t pairs = row_size<Pair>(rows);
  for (int64_t p = member; p * width < columns; p += members)
    for (int64_t i = 0; i < parts * pairs; ++i) {
      const int64_t k = i % pairs * 2;
      const float* from = w + (i / pairs * rows + k) * columns + p * width;
      pack_pairs(panels + (p * parts * pairs + i) * width, from,
                 k + 1 < rows ? from + columns : nullptr, width, columns - p * width);
    }
}

}  // namespace
