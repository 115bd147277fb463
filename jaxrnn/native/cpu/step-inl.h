// One forward step of some rows: products with packed weights, then the cell.
#pragma once

#include "cell-inl.h"
#include "narrow-inl.h"

namespace {

using namespace jaxrnn;

// P is the type of the operands of the products: T, or Pair.
template <class T, class P = T>
struct ForwardStep {
  const Forward<T>& f;
  const P *wx, *wh;
  const T* bias;
  const int32_t* rows;
  const T** h;         // by position in the group
  const P** operands;  // of the products with W_hh: h, or h in bfloat16
  int64_t t;
  T* m = nullptr;  // (B, H): o tanh(c) before the projection; null without one
};

// Input projections of `count` steps (any rows, any t), stored without further computation.
template <class T, class P, class C>
__attribute__((noinline)) void project_block(const ForwardStep<T, P>& s, int64_t panel,
                                             const P* const* x, int count, T* out) {
  constexpr int L = kLanes<T>, N = C::kVectors;
  V<T> sums[kRows][N];
  const T* bias = s.bias + (panel * C::kSums + C::kInputSums) * L;
  const int64_t inputs = row_size<P>(s.f.shape.inputs);
  for (int r = 0; r < count; ++r)
    for (int v = 0; v < N; ++v) sums[r][v] = load(bias + v * L);
  multiply<P>(sums[0], x, count, s.wx + panel * inputs * N * L, N, inputs);
  for (int r = 0; r < count; ++r)
    for (int v = 0; v < N; ++v) store(out + (r * N + v) * L, sums[r][v]);
}

// Sums of rows and panels to which the cell has not been applied yet.
template <class T, class P, class C>
struct Pending {
  static constexpr int kMost = 12;
  int count = 0;
  int64_t panels[kMost + kRows];
  int32_t rows[kMost + kRows];  // positions in the group
  V<T> sums[kMost + kRows][C::kSums];

  V<T> (*next()) [C::kSums] { return sums + count; }

  void add(const ForwardStep<T, P>& s, int64_t panel, const int32_t* active, int size) {
    for (int r = 0; r < size; ++r) panels[count] = panel, rows[count++] = active[r];
    if (count >= kMost) finish(s);
  }

  template <class F>
  JAXRNN_INLINE void each_unit(const ForwardStep<T, P>& s, F&& f) {
    const int64_t hidden = s.f.shape.hidden, first = s.t * s.f.shape.batch * hidden;
    ForwardUnit<T> unit = {};
    unit.hidden = hidden;
    unit.relu = s.f.cell == CellKind::rnn_relu;
    for (int i = 0; i < count; ++i) {
      const int64_t row = s.rows[rows[i]] * hidden;
#pragma GCC unroll 4
      for (int v = 0; v < C::kUnits; ++v) {
        const int64_t u = first_unit<T, C>(panels[i], v), at = row + u;
        if (u >= hidden) break;
        unit.h = s.h[rows[i]] + u;
        unit.c = s.f.c_last + at;
        unit.y = s.m ? s.m + at : s.f.ys + first + at;
        if (s.f.saved) unit.saved = s.f.saved + C::kSaved * (first + row) + u;
        unit.cs = s.f.cs + first + at;
        unit.n = hidden - u;
        f(sums[i], v, unit);
      }
    }
  }

  __attribute__((noinline)) void finish(const ForwardStep<T, P>& s) {
    if (C::kUnits == 1)
      each_unit(s, [](V<T>(&sum)[C::kSums], int, const ForwardUnit<T>& unit) {
        C::template gates<T>(sum, unit);
      });
    each_unit(s, [](V<T>(&sum)[C::kSums], int v, const ForwardUnit<T>& unit) {
      C::template output<T>(sum, v, unit);
    });
    count = 0;
  }
};

// Sums of R rows for the units of one panel; gx holds their projected inputs, or is null and x
// their inputs. The sums stay in registers from the bias to the last product.
template <class T, class P, class C, int R>
__attribute__((noinline)) void step_block(const ForwardStep<T, P>& s, int64_t panel,
                                          const int32_t* active, const T* gx, const P* const* x,
                                          V<T> (*done)[C::kSums]) {
  constexpr int L = kLanes<T>, N = C::kVectors;
  const Shape& shape = s.f.shape;
  V<T> sum[R][C::kSums];
  const P* rows[R];
  const T* bias = s.bias + panel * C::kSums * L;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int a = 0; a < C::kSums; ++a) sum[r][a] = load(bias + a * L);
  if (gx) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) sum[r][C::kInputSums + v] = load(gx + (r * N + v) * L);
  } else {
    const int64_t inputs = row_size<P>(shape.inputs);
    for (int r = 0; r < R; ++r) rows[r] = x[r];
    multiply<P, N>(sum, C::kInputSums, rows, s.wx + panel * inputs * N * L, inputs);
  }
  for (int r = 0; r < R; ++r) rows[r] = s.operands[active[r]];
  const int64_t depth = row_size<P>(shape.outputs());
  multiply<P, N>(sum, 0, rows, s.wh + panel * depth * N * L, depth);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int a = 0; a < C::kSums; ++a) done[r][a] = sum[r][a];
}

}  // namespace
