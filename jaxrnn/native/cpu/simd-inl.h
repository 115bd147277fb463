// Vectors of the width that this file is compiled for, and the functions that a cell needs.
//
// Compiler vector extensions let one source serve AVX-512, AVX2 and any other machine. The file is
// compiled once for each, and these builds must not share code: everything is in an unnamed
// namespace, and no header with inline functions is included.
#pragma once

#include <stdint.h>

#include <type_traits>
#include <utility>

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

// Lanes of a and b in turns of H: the first H of every 2 H lanes of each (Second = 0), or the
// second.
template <class T, int H, int Second, int... Lane>
JAXRNN_INLINE V<T> merge(V<T> a, V<T> b, std::integer_sequence<int, Lane...>) {
#if defined(__clang__)
  return __builtin_shufflevector(
      a, b, (Lane / H % 2 * kLanes<T> + Lane / (2 * H) * 2 * H + Lane % H + Second * H)...);
#else
  return __builtin_shuffle(
      a, b, VI<T>{(Lane / H % 2 * kLanes<T> + Lane / (2 * H) * 2 * H + Lane % H + Second * H)...});
#endif
}

template <class T, int H, int Second>
JAXRNN_INLINE V<T> merge(V<T> a, V<T> b) {
  return merge<T, H, Second>(a, b, std::make_integer_sequence<int, kLanes<T>>());
}

// Transposes a square by exchanging blocks of half, a quarter, ... of its size.
template <class T, int H = kLanes<T> / 2>
JAXRNN_INLINE void transpose(V<T> (&rows)[kLanes<T>]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i)
    if (!(i & H)) {
      const V<T> a = rows[i], b = rows[i + H];
      rows[i] = merge<T, H, 0>(a, b);
      rows[i + H] = merge<T, H, 1>(a, b);
    }
  if constexpr (H > 1) transpose<T, H / 2>(rows);
}

// Lane i of the result is the sum of the lanes of v[i].
template <class T, int H = kLanes<T> / 2>
JAXRNN_INLINE V<T> sum_lanes(V<T> (&v)[kLanes<T>]) {
#pragma GCC unroll 8
  for (int i = 0; i < H; ++i)
    v[i] = merge<T, H, 0>(v[i], v[i + H]) + merge<T, H, 1>(v[i], v[i + H]);
  if constexpr (H > 1)
    return sum_lanes<T, H / 2>(v);
  else
    return v[0];
}

template <class T>
struct Constants;

// ln 2 = hi + lo, with n * hi exact for every exponent n. Adding `magic` rounds to an integer. The
// coefficients of (e^r - 1 - r) / r^2 leave an error in (e^r - 1) / r below a quarter of the last
// place for |r| <= ln(2) / 2: the best of that degree for float, 1 / k! for double.
template <>
struct Constants<float> {
  static constexpr float hi = 0x1.62ep-1f, lo = 0x1.0bfbe8p-15f, log2e = 0x1.715476p+0f;
  static constexpr float magic = 0x1.8p23f, largest = 88.f, saturated = 10.f;
  static constexpr int mantissa = 23, bias = 127;
  static constexpr int32_t magic_bits = 0x4B400000;
  static constexpr float series[] = {0x1p-1f, 0x1.5554bp-3f, 0x1.555486p-5f, 0x1.122838p-7f,
                                     0x1.6d995cp-10f};
};

template <>
struct Constants<double> {
  static constexpr double hi = 0x1.62e42feep-1, lo = 0x1.a39ef35793c76p-33,
                          log2e = 0x1.71547652b82fep+0;
  static constexpr double magic = 0x1.8p52, largest = 708., saturated = 20.;
  static constexpr int mantissa = 52, bias = 1023;
  static constexpr int64_t magic_bits = 0x4338000000000000;
  static constexpr double series[] = {
      1. / 2,         1. / 6,          1. / 24,         1. / 120,     1. / 720,
      1. / 5040,      1. / 40320,      1. / 362880,     1. / 3628800, 1. / 39916800,
      1. / 479001600, 1. / 6227020800, 1. / 87178291200};
};

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
  const V<T> r = (x - n * K::hi) - n * K::lo, square = r * r;
  const VI<T> exponent = ((VI<T>)shifted - K::magic_bits + K::bias) << K::mantissa;
  // In pairs, which halves the chain of dependent operations.
  constexpr int last = sizeof(K::series) / sizeof(T) - 1;
  static_assert(last % 2 == 0);
  V<T> sum = V<T>{} + K::series[last];
#pragma GCC unroll 8
  for (int k = last - 2; k >= 0; k -= 2) sum = sum * square + (r * K::series[k + 1] + K::series[k]);
  return {(V<T>)exponent, r + square * sum};
}

// The smaller or larger of x and a limit; keeps NaN. Compilers do not find the instruction.
template <class T>
JAXRNN_INLINE V<T> at_most(V<T> x, T limit) {
  const V<T> high = V<T>{} + limit;
#if defined(__AVX__) && JAXRNN_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4) return __builtin_ia32_minps256(high, x);
  if constexpr (sizeof(T) == 8) return __builtin_ia32_minpd256(high, x);
#endif
  return x > high ? high : x;
}

template <class T>
JAXRNN_INLINE V<T> at_least(V<T> x, T limit) {
  const V<T> low = V<T>{} + limit;
#if defined(__AVX__) && JAXRNN_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4) return __builtin_ia32_maxps256(low, x);
  if constexpr (sizeof(T) == 8) return __builtin_ia32_maxpd256(low, x);
#endif
  return x < low ? low : x;
}

template <class T>
JAXRNN_INLINE V<T> sigmoid(V<T> x) {
  const Exponential<T> e =
      exponential<T>(-at_least<T>(at_most<T>(x, Constants<T>::largest), -Constants<T>::largest));
  return T(1) / ((T(1) + e.scale) + e.scale * e.m);
}

// tanh |x| = (e^2|x| - 1) / (e^2|x| + 1), from e^y - 1 so that small x keep their relative
// accuracy.
template <class T>
JAXRNN_INLINE V<T> tanh(V<T> x) {
  const VI<T> sign = (VI<T>)(-V<T>{});
  const VI<T> bit = (VI<T>)x & sign;
  const V<T> a = at_most<T>((V<T>)((VI<T>)x ^ bit), Constants<T>::saturated);
  const Exponential<T> e = exponential<T>(a + a);
  const V<T> minus_one = (e.scale - T(1)) + e.scale * e.m;
  return (V<T>)((VI<T>)(minus_one / (minus_one + T(2))) | bit);
}

}  // namespace
