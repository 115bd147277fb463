// Pairs of bfloat16 numbers as operands of products, whose sums are float.
#pragma once

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "simd-inl.h"

namespace {

// Two neighbouring elements of a product in bfloat16, the upper halves of their floats; the first
// is in the lower bits.
struct Pair {
  int32_t bits;
};

template <>
struct Simd<Pair> {
  using Int = int32_t;
  typedef Int Vector __attribute__((vector_size(JAXRNN_VECTOR_BYTES)));
  typedef Int IntVector __attribute__((vector_size(JAXRNN_VECTOR_BYTES)));
};

// The type of the sums of products of T.
template <class T>
using SumOf = typename std::conditional<std::is_same<T, Pair>::value, float, T>::type;

// sum + a * w, lane by lane.
template <class T>
JAXRNN_INLINE V<T> add_product(V<T> sum, T a, V<T> w) {
  return sum + a * w;
}

JAXRNN_INLINE V<float> upper(V<Pair> pairs) { return (V<float>)(pairs & -0x10000); }
JAXRNN_INLINE V<float> lower(V<Pair> pairs) { return (V<float>)(pairs << 16); }

JAXRNN_INLINE V<float> add_product(V<float> sum, Pair a, V<Pair> w) {
  const V<Pair> all = V<Pair>{} + a.bits;
#if defined(__AVX512BF16__) && JAXRNN_VECTOR_BYTES == 64
  return (V<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)all, (__m512bh)w);
#else
  return sum + lower(all) * lower(w) + upper(all) * upper(w);
#endif
}

// Each float rounded to bfloat16, in the upper half of its lane. NaN stays NaN.
JAXRNN_INLINE V<Pair> round_lanes(V<float> x) {
  const V<Pair> bits = (V<Pair>)x;
  const V<Pair> rounded = bits + 0x7FFF + ((bits >> 16) & 1);
  return (x == x ? rounded : bits | 0x400000) & -0x10000;
}

// Lane i holds a[i] and b[i].
JAXRNN_INLINE V<Pair> zip(V<float> a, V<float> b) {
#if defined(__AVX512BF16__) && JAXRNN_VECTOR_BYTES == 64
  typedef uint16_t Halves __attribute__((vector_size(JAXRNN_VECTOR_BYTES / 2)));
  const auto low = (Halves)_mm512_cvtneps_pbh((__m512)a),
             high = (Halves)_mm512_cvtneps_pbh((__m512)b);
  return __builtin_convertvector(low, V<Pair>) | __builtin_convertvector(high, V<Pair>) << 16;
#else
  typedef uint32_t Bits __attribute__((vector_size(JAXRNN_VECTOR_BYTES)));
  return (V<Pair>)((Bits)round_lanes(a) >> 16) | round_lanes(b);
#endif
}

}  // namespace
