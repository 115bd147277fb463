// Numbers in memory and in the products, and the activations.
#pragma once

#include "arguments.cuh"
#include "words.cuh"

namespace jaxrnn::cuda {

template <int PRECISION>
struct Io {
  typedef float type;
};
template <>
struct Io<BF16> {
  typedef u16 type;
};

DEVICE float get(const u16* p) { return float_of((u32)*p << 16); }
DEVICE float get(const float* p) { return *p; }
DEVICE void put(u16* p, float v) { *p = to_bf16(v); }
DEVICE void put(float* p, float v) { *p = v; }

// What the shared results are filled with before a launch. A NaN, but never one that is computed:
// those are made `canonical` first, or a reader would wait for them for ever.
constexpr u32 POISON = 0xFFFFFFFFu;
constexpr u32 CANONICAL_NAN = 0x7FC00000u;
DEVICE float canonical(float v) { return v != v ? float_of(CANONICAL_NAN) : v; }
// A word of NaNs of either type.
template <int PRECISION>
constexpr u32 NAN_WORD = PRECISION == BF16 ? 0x7FC07FC0u : CANONICAL_NAN;

// Round to TF32. The tensor cores truncate; adding half a unit first rounds to nearest. It would wrap
// NaNs of CUDA's own kind, 0x7FFFFFFF, to -0.
template <int PRECISION>
DEVICE u32 rounded(u32 x) {
  return PRECISION == TF32 ? x + 0x1000u : x;
}
template <int PRECISION>
DEVICE Word4 rounded(Word4 v) {
  Word4 r = {rounded<PRECISION>(v.x), rounded<PRECISION>(v.y), rounded<PRECISION>(v.z), rounded<PRECISION>(v.w)};
  return r;
}
template <int PRECISION>
DEVICE u32 rounded_input(u32 x) {
  return PRECISION != TF32 ? x : float_of(x) != float_of(x) ? CANONICAL_NAN : x + 0x1000u;
}
template <int PRECISION>
DEVICE Word4 rounded_input(Word4 v) {
  Word4 r = {rounded_input<PRECISION>(v.x), rounded_input<PRECISION>(v.y), rounded_input<PRECISION>(v.z),
             rounded_input<PRECISION>(v.w)};
  return r;
}

// x = high + low, both TF32 numbers but for 2^-22 of x, which the tensor cores cut off `low`. With ANEW
// the compiler does not keep the parts of a weight from step to step, where registers are short.
template <bool ANEW>
DEVICE void split(u32 x, u32& high, u32& low) {
  const u32 up = ANEW ? add_anew(x, 0x1000u) : x + 0x1000u;
  high = up & 0xFFFFE000u;
  low = bits_of(float_of(x) - float_of(high));
}

// e^x. With EXACT the rounding of x log2(e), which grows with x, is made good; the bounds keep what is
// infinite out of that, and let a NaN pass.
template <bool EXACT>
DEVICE float exp_of(float x) {
  constexpr float LOG2_E = 1.4426950408889634f, LOG2_E_REST = 1.9259629911e-8f, LN_2 = 0.6931471805599453f;
  if (!EXACT) return exp2_fast(LOG2_E * x);
  x = x > 88.f ? 88.f : x < -88.f ? -88.f : x;
  const float t = LOG2_E * x, rest = fmaf(x, LOG2_E, -t) + LOG2_E_REST * x, y = exp2_fast(t);
  return fmaf(LN_2 * rest, y, y);
}

template <bool EXACT>
DEVICE float sigmoid(float x) {
  return reciprocal(1.f + exp_of<EXACT>(-x));
}

// 1 - 2 / (1 + exp(2x)). It cancels near 0, where with EXACT a polynomial of x^2 stands in for it, and it
// is less exact for x < 0.
template <bool EXACT>
DEVICE float tanh_of(float x) {
  const float size = EXACT && x < 0.f ? -x : x;
  const float y = 1.f - 2.f * reciprocal(1.f + exp_of<EXACT>(2.f * size));
  if (!EXACT) return y;
  const float z = x * x;
  const float p =
      (((-5.70498872745e-3f * z + 2.06390887954e-2f) * z - 5.37397155531e-2f) * z + 1.33314422036e-1f) * z;
  const float small = (p - 3.33332819422e-1f) * z * x + x;
  return x > -0.625f && x < 0.625f ? small : x < 0.f ? -y : y;
}

}  // namespace jaxrnn::cuda
