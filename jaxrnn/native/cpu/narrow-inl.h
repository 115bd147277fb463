// Operands of products in bfloat16: pairs of neighbouring elements of a row of floats.
//
// The sums of the products, the states and everything that is stored remain float.
#pragma once

#include "kernel.h"
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

// Packs one vector of a panel from rows of `depth` elements; `rounded` is memory for kLanes rows of
// pairs.
template <class T, class P>
void pack_units(P* panel, const T* w, int64_t depth, int64_t width, int64_t lanes, P* rounded) {
  if constexpr (kNarrow<P>) {
    const int64_t pairs = row_size<P>(depth);
    for (int64_t i = 0; i < min<int64_t>(lanes, kLanes<P>); ++i)
      narrow(rounded + i * pairs, w + i * depth, depth);
    pack_transposed(panel, rounded, pairs, width, lanes);
  } else {
    pack_transposed(panel, w, depth, width, lanes);
  }
}

// Packs the rows of a weight matrix, a part for each gate.
template <class T, class P>
void pack_gates(P* panels, const T* w, int64_t parts, int64_t hidden, int64_t columns,
                int64_t width, int member, int members) {
  if constexpr (kNarrow<P>)
    pack_plain_pairs(panels, w, parts, hidden, columns, width, member, members);
  else
    pack_plain(panels, w, parts * hidden, columns, width, member, members);
}

// Rows in bfloat16 that change from step to step, by position in a group. Each has two places,
// since members of the group read the one while others write the other.
struct Places {
  Pair* at;  // (B, 2, size)
  int64_t size;
  const int32_t* rows;
  uint8_t* second;

  Pair* of(int64_t j) const { return at + (2 * rows[j] + second[j]) * size; }
  Pair* other(int64_t j) {
    second[j] ^= 1;
    return of(j);
  }
};

inline Places places(Workspace& work, int slot, int64_t size, const int32_t* rows, int64_t count,
                     int member) {
  auto* second = static_cast<uint8_t*>(private_memory(work, member, count));
  for (int64_t j = 0; j < count; ++j) second[j] = 0;
  return {static_cast<Pair*>(shared_memory(work, slot)), size, rows, second};
}

}  // namespace
