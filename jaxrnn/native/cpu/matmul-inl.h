// One product with weights that were packed before, for loops whose other parts XLA compiles.
#pragma once

#include "product-inl.h"

namespace {

using namespace jaxrnn;

template <class T>
void pack_weights(const Packing<T>& p) {
  const int64_t width = panel_vectors<T>(p.columns) * kLanes<T>;
  const int64_t used = ceil_div(p.columns, width) * width * p.depth;
  copy<T>(p.panels + used, nullptr, packed_size(p.depth, p.columns) - used);
  if (!p.transposed) return pack_plain(p.panels, p.w, p.depth, p.columns, width, 0, 1);
  for (int64_t first = 0; first < p.columns; first += width)
    for (int64_t at = 0; at < width; at += kLanes<T>)
      pack_transposed(p.panels + first * p.depth + at, p.w + (first + at) * p.depth, p.depth, width,
                      p.columns - first - at);
}

// Adds the products of `depth` features from `k` on to a block of one panel's columns, or begins
// with them, the products of x and the bias.
template <class T, int N>
__attribute__((noinline)) void matmul_block(const Matmul<T>& p, int64_t panel, int64_t row,
                                            int count, int64_t k, int64_t depth) {
  constexpr int L = kLanes<T>;
  T* y = p.y + row * p.columns + panel * N * L;
  const int64_t columns = p.columns - panel * N * L;
  const T *rows[kRows] = {}, *inputs[kRows] = {};
  V<T> sums[kRows][N];
  for (int r = 0; r < count; ++r) {
    rows[r] = p.a + (row + r) * p.depth + k;
    inputs[r] = p.x + (row + r) * p.inputs;
    for (int v = 0; v < N; ++v) sums[r][v] = V<T>{};
    // The rows of y are far from each other; without this, each store waits for its line.
    for (int v = 0; v < N && v * L < columns; ++v) __builtin_prefetch(y + r * p.columns + v * L, 1);
  }
  if (p.x && k == 0)
    multiply<T>(sums[0], inputs, count, p.input_panels + panel * p.inputs * N * L, N, p.inputs);
  multiply<T>(sums[0], rows, count, p.panels + (panel * p.depth + k) * N * L, N, depth);
#pragma GCC unroll 4
  for (int v = 0; v < N; ++v) {
    const int64_t left = columns - v * L;
    if (left <= 0) break;
    const V<T> bias = p.bias && k == 0 ? load(p.bias + (p.columns - left), left) : V<T>{};
    for (int r = 0; r < count; ++r) {
      T* to = y + r * p.columns + v * L;
      store(to, sums[r][v] + (k > 0 ? load(to, left) : bias), left);
    }
  }
}

// Runs of rows, and parts of a panel of 64 kB: shorter parts would write y more often. The members
// divide the blocks: each has some of the runs, or of a single run some of the panels, so that it
// reads its own part of the weights.
template <class T>
void run_matmul(const Matmul<T>& p, int member, int members) {
  constexpr int64_t length = 8 * kRows;
  with_vectors(panel_vectors<T>(p.columns), [&](auto n) {
    constexpr int N = n();
    constexpr int64_t most = (64 << 10) / (N * JAXRNN_VECTOR_BYTES);
    const int64_t runs = ceil_div(p.rows, length), panels = ceil_div(p.columns, N * kLanes<T>);
    const int64_t begin = runs * panels * member / members;
    const int64_t end = runs * panels * (member + 1) / members;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t run = i / panels, first = p.rows * run / runs;
      for (int64_t k = 0; k < p.depth; k += most)
        for_blocks(p.rows * (run + 1) / runs - first, [&](int count, int64_t at) {
          matmul_block<T, N>(p, i % panels, first + at, count, k, min(most, p.depth - k));
        });
    }
  });
}

}  // namespace
