// Projected LSTM (PyTorch's proj_size): h = W_hr m with m = o tanh(c).
//
// Each step has a second product, which needs all units of a row. Members that divide the units
// wait for each other between the two products.
#pragma once

#include "group-inl.h"
#include "product-inl.h"

namespace {

using namespace jaxrnn;

// Multiplies the rows `row(k)`, k < count, with the panels of a share, and calls
// f(first column, vectors, first k, rows, products) for each block.
template <class T, class Row, class F>
void for_products(const Share& share, const T* panels, int64_t depth, int64_t count, Row row,
                  F&& f) {
  const int vectors = int(share.width / kLanes<T>);
  for (int64_t p = share.p0; p < share.p1; ++p)
    for_blocks(count, [&](int n, int64_t at) {
      const T* rows[kRows] = {};
      V<T> sums[kRows * 4];
      for (int r = 0; r < n; ++r) rows[r] = row(at + r);
      for (int i = 0; i < n * vectors; ++i) sums[i] = V<T>{};
      multiply<T>(sums, rows, n, panels + p * depth * share.width, vectors, depth);
      f(p * share.width, vectors, at, n, sums);
    });
}

// Packs W_hr (P, H) for products with m.
template <class T>
void pack_projection(T* panels, const Forward<T>& f, int member, int members) {
  const int64_t P = f.shape.projected, H = f.shape.hidden;
  const int64_t width = panel_vectors<T>(P) * kLanes<T>;
  for (int64_t p = member; p * width < P; p += members)
    for (int64_t at = 0; at < width; at += kLanes<T>)
      pack_transposed(panels + p * width * H + at, f.w_hr + (p * width + at) * H, H, width,
                      P - p * width - at);
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
