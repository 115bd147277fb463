// Vectors of the width that this file is compiled for, and the functions that a cell needs.
//
// Compiler vector extensions let one source serve AVX-512, AVX2 and any other machine. The file is
// compiled once for each, and these builds must not share code: everything is in an unnamed
// namespace, and no header with inline functions is included.
#pragma once

#include <stdint.h>

#include <type_traits>

namespace {

#define JAXRNN_INLINE __attribute__((always_inline)) inline

template <class T>
struct Simd {
  using Int = typename std::conditional<sizeof(T) == 4, int32_t, int64_t>::type;
  typedef T Vector __attribute__((vector_size(JAXRNN_VECTOR_BYTES)));
  typedef Int IntVector __attribute__((vector_size(JAXRNN_VECTOR_BYTES)));
};

template <class T>
using V = typename Simd<T>::Vector;
template <class T>
using VI = typename Simd<T>::IntVector;
template <class T>
constexpr int kLanes = JAXRNN_VECTOR_BYTES / sizeof(T);

template <class T>
JAXRNN_INLINE V<T> load(const T* p) {
  V<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
JAXRNN_INLINE void store(T* p, V<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// The first n lanes; the others read as 0 and are not written. Only the last vector of a row is
// cut.
template <class T>
__attribute__((noinline)) V<T> load_cut(const T* p, int64_t n) {
  V<T> v = {};
  for (int64_t i = 0; i < n; ++i) v[i] = p[i];
  return v;
}

template <class T>
__attribute__((noinline)) void store_cut(T* p, V<T> v, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = v[i];
}

template <class T>
JAXRNN_INLINE V<T> load(const T* p, int64_t n) {
  return __builtin_expect(n >= kLanes<T>, 1) ? load(p) : load_cut(p, n);
}

template <class T>
JAXRNN_INLINE void store(T* p, V<T> v, int64_t n) {
  if (__builtin_expect(n >= kLanes<T>, 1))
    store(p, v);
  else
    store_cut(p, v, n);
}

template <class T>
struct Constants;

// ln 2 = hi + lo, with n * hi exact for every exponent n. Adding `magic` rounds to an integer. The
// series of e^r - 1 is truncated where the remainder is below a quarter of the last place for |r|
// <= ln(2) / 2.
template <>
struct Constants<float> {
  static constexpr float hi = 0x1.62ep-1f, lo = 0x1.0bfbe8p-15f, log2e = 0x1.715476p+0f;
  static constexpr float magic = 0x1.8p23f, largest = 88.f, saturated = 10.f;
  static constexpr int terms = 8, mantissa = 23, bias = 127;
  static constexpr int32_t magic_bits = 0x4B400000;
};

template <>
struct Constants<double> {
  static constexpr double hi = 0x1.62e42feep-1, lo = 0x1.a39ef35793c76p-33,
                          log2e = 0x1.71547652b82fep+0;
  static constexpr double magic = 0x1.8p52, largest = 708., saturated = 20.;
  static constexpr int terms = 14, mantissa = 52, bias = 1023;
  static constexpr int64_t magic_bits = 0x4338000000000000;
};

template <class T>
struct Reciprocals {
  T factorial[Constants<T>::terms + 1] = {};
  constexpr Reciprocals() {
    double product = 1;
    for (int k = 1; k <= Constants<T>::terms; ++k) factorial[k] = T(1 / (product *= k));
  }
};
template <class T>
constexpr Reciprocals<T> kReciprocal;

// e^x = scale + scale * m with m = e^r - 1, x = n ln 2 + r and scale = 2^n, for |x| <= largest.
template <class T>
struct Exponential {
  V<T> scale, m;
};

template <class T>
JAXRNN_INLINE Exponential<T> exponential(V<T> x) {
  using K = Constants<T>;
  const V<T> shifted = x * K::log2e + K::magic;
  const V<T> n = shifted - K::magic;
  const V<T> r = (x - n * K::hi) - n * K::lo;
  const VI<T> exponent = ((VI<T>)shifted - K::magic_bits + K::bias) << K::mantissa;
  V<T> sum = V<T>{} + kReciprocal<T>.factorial[K::terms];
#pragma GCC unroll 16
  for (int k = K::terms - 1; k >= 2; --k) sum = sum * r + kReciprocal<T>.factorial[k];
  return {(V<T>)exponent, r + r * r * sum};
}

template <class T>
JAXRNN_INLINE V<T> clamp(V<T> x, T limit) {  // keeps NaN
  const V<T> high = V<T>{} + limit;
  x = x > high ? high : x;
  return x < -high ? -high : x;
}

template <class T>
JAXRNN_INLINE V<T> sigmoid(V<T> x) {
  const Exponential<T> e = exponential<T>(-clamp<T>(x, Constants<T>::largest));
  return T(1) / ((T(1) + e.scale) + e.scale * e.m);
}

// tanh |x| = (e^2|x| - 1) / (e^2|x| + 1), from e^y - 1 so that small x keep their relative
// accuracy.
template <class T>
JAXRNN_INLINE V<T> tanh(V<T> x) {
  const VI<T> sign = (VI<T>)(-V<T>{});
  const VI<T> bit = (VI<T>)x & sign;
  V<T> a = (V<T>)((VI<T>)x ^ bit);
  const V<T> high = V<T>{} + Constants<T>::saturated;
  a = a > high ? high : a;
  const Exponential<T> e = exponential<T>(a + a);
  const V<T> minus_one = (e.scale - T(1)) + e.scale * e.m;
  return (V<T>)((VI<T>)(minus_one / (minus_one + T(2))) | bit);
}

}  // namespace
