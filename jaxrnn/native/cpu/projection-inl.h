// Projected LSTM (PyTorch's proj_size): h = W_hr m with m = o tanh(c).
//
// Each step has a second product, which needs all units of a row. Members that divide the units
// wait for each other between the two products.
#pragma once

#include "group-inl.h"
#include "product-inl.h"

namespace {

using namespace jaxrnn;

// out[r][v] = products of R rows with one panel.
template <class T, int R, int N>
__attribute__((noinline)) void multiply_block(const T* const (&rows)[R], const T* panel,
                                              int64_t depth, V<T>* out) {
  V<T> sum[R][N] = {};
  multiply<T, R, N, N>(sum, rows, panel, depth, Same());
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) out[r * N + v] = sum[r][v];
}

// Multiplies the rows `row(k)`, k < count, with the panels of a share, and calls
// f(first column, vectors, first k, rows, products) for each block.
template <class T, class Row, class F>
void for_products(const Share& share, const T* panels, int64_t depth, int64_t count, Row row,
                  F&& f) {
  with_vectors(int(share.width / kLanes<T>), [&](auto n) {
    V<T> out[kRows * n()];
    for (int64_t p = share.p0; p < share.p1; ++p)
      for_blocks(count, [&](auto r, int64_t at) {
        const T* rows[r()];
        for (int i = 0; i < r(); ++i) rows[i] = row(at + i);
        multiply_block<T, r(), n()>(rows, panels + p * depth * share.width, depth, out);
        f(p * share.width, n(), at, r(), out);
      });
  });
}

// Packs W_hr (P, H) for products with m.
template <class T>
void pack_projection(T* panels, const Forward<T>& f, int member, int members) {
  const int64_t P = f.shape.projected, H = f.shape.hidden;
  with_vectors(panel_vectors<T>(P), [&](auto n) {
    constexpr int L = kLanes<T>, N = n();
    for (int64_t p = member; p * N * L < P; p += members) {
      auto first = [&](int v) { return (p * N + v) * L; };
      pack_transposed<T, N>(panels + p * H * N * L, f.w_hr, H, first,
                            [&](int v) { return P - first(v); });
    }
  });
}

// The share's part of h = W_hr m, for the active rows of a step.
template <class T>
void project_states(const Forward<T>& f, const Group& group, const Share& share, const T* panels,
                    const T* m, int64_t t, const int32_t* active, int64_t count) {
  const int64_t P = f.shape.projected, H = f.shape.hidden;
  auto row = [&](int64_t k) { return m + group.rows[active[k]] * H; };
  for_products<T>(share, panels, H, count, row,
                  [&](int64_t first, int vectors, int64_t at, int rows, const V<T>* h) {
                    for (int r = 0; r < rows; ++r) {
                      T* y = f.ys + (t * f.shape.batch + group.rows[active[at + r]]) * P;
                      for (int v = 0; v < vectors; ++v) {
                        const int64_t u = first + v * kLanes<T>;
                        if (u < P) store(y + u, h[r * vectors + v], P - u);
                      }
                    }
                  });
}

}  // namespace
