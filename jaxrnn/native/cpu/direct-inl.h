// Forward pass of a few rows over a few steps, which reads the weights where they are.
//
// Packing costs as much as several products of one row. Here the vectors run over k: a block of
// rows keeps one accumulator for each row and unit, and their lanes are summed at the end.
#pragma once

#include "forward-inl.h"

namespace {

using namespace jaxrnn;

template <class T>
struct Lanes {
  typename Simd<T>::Int last[2 * kLanes<T>] = {};  // all bits set in the second half
  constexpr Lanes() {
    for (int i = kLanes<T>; i < 2 * kLanes<T>; ++i) last[i] = -1;
  }
};
template <class T>
constexpr Lanes<T> kLanesFrom;

// Units whose accumulators fit the registers, beside one vector of each row and one of weights.
constexpr int units_at_once(int rows, int lanes) {
  const int most = JAXRNN_VECTOR_BYTES == 64 ? 24 : 12;
  while (lanes * rows > most) lanes /= 2;
  return lanes;
}

// acc[r][u] += rows[r] * w[u], lane by lane, over all k.
template <class T, int R, int U>
JAXRNN_INLINE void add_lanes(V<T> (&acc)[R][U], const T* const (&rows)[R], const T* const (&w)[U],
                             int64_t depth) {
  constexpr int L = kLanes<T>;
  auto add = [&](auto read) __attribute__((always_inline)) {
    V<T> x[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) x[r] = read(rows[r]);
#pragma GCC unroll 16
    for (int u = 0; u < U; ++u) {
      const V<T> y = read(w[u]);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) acc[r][u] += x[r] * y;
    }
  };
  int64_t k = 0;
  for (; k + L <= depth; k += L) add([&](const T* p) { return load(p + k); });
  const int64_t rest = depth - k;
  if (rest > 0 && k > 0) {  // the last full vector again, without the lanes that were added
    VI<T> mask;
    __builtin_memcpy(&mask, kLanesFrom<T>.last + rest, sizeof mask);
    add([&](const T* p) { return (V<T>)((VI<T>)load(p + depth - L) & mask); });
  } else if (rest > 0) {
    add([&](const T* p) { return load_cut(p, rest); });
  }
}

// sums[r][lane] = bias[lane] + rows[r] * w[lane] for the first `units` of a vector's lanes.
template <class T, int R>
__attribute__((noinline)) void direct_products(V<T>* sums, const T* const* from, const T* w,
                                               const T* bias, int64_t depth, int64_t units) {
  constexpr int L = kLanes<T>, U = units_at_once(R, L);
  const T* rows[R];
  for (int r = 0; r < R; ++r) rows[r] = from[r];
  V<T> lanes[R][L];
  for (int from = 0; from < L; from += U) {
    const T* own[U];
    for (int u = 0; u < U; ++u) own[u] = w + min<int64_t>(from + u, units - 1) * depth;
    V<T> acc[R][U] = {};
    add_lanes<T, R, U>(acc, rows, own, depth);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int u = 0; u < U; ++u) lanes[r][from + u] = acc[r][u];
  }
  const V<T> start = bias ? load(bias, units) : V<T>{};
  for (int r = 0; r < R; ++r) sums[r] = start + sum_lanes<T>(lanes[r]);
}

// Sums of R rows for the units of one panel.
template <class T, class C, int R>
__attribute__((noinline)) void direct_block(const ForwardStep<T>& s, int64_t panel,
                                            const int32_t* active, V<T> (*sums)[C::kSums]) {
  const Shape& shape = s.f.shape;
  const T *x[R], *h[R];
  for (int r = 0; r < R; ++r) {
    x[r] = s.f.x + (s.t * shape.batch + active[r]) * shape.inputs;
    h[r] = s.h[active[r]];
    for (int a = 0; a < C::kSums; ++a) sums[r][a] = V<T>{};
  }
  for (int v = 0; v < C::kVectors; ++v)
    for (bool recurrent : {false, true}) {
      const int64_t row = first_row<T, C>(panel, recurrent ? C::state_gate(v) : v, shape.hidden);
      const T* b = recurrent ? s.f.b_hh : s.f.b_ih;
      const T* w = recurrent ? s.f.w_hh : s.f.w_ih;
      const int64_t depth = recurrent ? shape.hidden : shape.inputs;
      V<T> added[R];
      direct_products<T, R>(added, recurrent ? h : x, w + row * depth, b ? b + row : nullptr, depth,
                            shape.hidden - first_unit<T, C>(panel, v));
      for (int r = 0; r < R; ++r) sums[r][recurrent ? v : C::kInputSums + v] += added[r];
    }
}

// The members divide the units and wait for each other after every step but the last.
template <class T, class C>
void run_direct(const Forward<T>& f, Workspace& work, int member, int members) {
  const Shape& s = f.shape;
  const int64_t panels = ceil_div(s.hidden, C::kUnits * kLanes<T>);
  const int64_t p0 = panels * member / members, p1 = panels * (member + 1) / members;
  const int64_t u0 = min(p0 * C::kUnits * kLanes<T>, s.hidden);
  const int64_t u1 = min(p1 * C::kUnits * kLanes<T>, s.hidden);
  int32_t rows[kDirectRows];
  const T* h[kDirectRows];
  for (int32_t b = 0; b < s.batch; ++b) {
    rows[b] = b, h[b] = f.h0 + b * s.hidden;
    if (f.c0) copy(f.c_last + b * s.hidden + u0, f.c0 + b * s.hidden + u0, u1 - u0);
  }
  Pending<T, T, C> pending;
  ForwardStep<T> step{f, nullptr, nullptr, nullptr, rows, h, h, 0};
  for (int64_t i = 0; i < s.steps; ++i) {
    step.t = s.time(i);
    for (int64_t p = p0; p < p1; ++p)
      for_blocks(s.batch, [&](int count, int64_t at) {
        with_constant<kRows>(
            count, [&](auto r) { direct_block<T, C, r()>(step, p, rows + at, pending.next()); });
        pending.add(step, p, rows + at, count);
      });
    pending.finish(step);
    for (int64_t b = 0; b < s.batch; ++b) h[b] = f.ys + (step.t * s.batch + b) * s.hidden;
    if (members > 1 && i + 1 < s.steps) wait_for_all(work);
  }
  for (int64_t b = 0; b < s.batch; ++b) copy(f.h_last + b * s.hidden + u0, h[b] + u0, u1 - u0);
}

}  // namespace
