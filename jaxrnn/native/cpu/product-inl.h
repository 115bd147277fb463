// Products of a few rows with packed weights, and the packing.
//
// The weights are packed into panels: the columns for one vector register of units, with all gates
// side by side, for every k. A block of up to JAXRNN_ROWS rows keeps one panel's products in
// registers. Rows are accessed through pointers, so blocks leave out rows that have ended.
#pragma once

#include "pair-inl.h"

namespace {

using namespace jaxrnn;

constexpr int kRows = JAXRNN_ROWS;

template <class T>
constexpr T min(T a, T b) {
  return a < b ? a : b;
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls f with the constant n, 1 <= n <= N.
template <int N, class F>
JAXRNN_INLINE void with_constant(int n, F&& f) {
  if constexpr (N > 1)
    if (n < N) return with_constant<N - 1>(n, f);
  f(std::integral_constant<int, N>());
}

// Cuts `count` rows into blocks of nearly equal size and calls f(rows, first) for each.
template <class F>
JAXRNN_INLINE void for_blocks(int64_t count, F&& f) {
  const int64_t blocks = ceil_div(count, kRows);
  for (int64_t i = 0, at = 0; i < blocks; ++i) {
    const int64_t n = (count - at) / (blocks - i) + ((count - at) % (blocks - i) != 0);
    f(int(n), at);
    at += n;
  }
}

// Number of vectors in a panel of plain columns, 4, 2 or 1. Wide panels use the registers best; in
// the last one, up to a ninth of all vectors may be empty for that.
template <class T>
int panel_vectors(int64_t columns) {
  const int64_t vectors = ceil_div(columns, kLanes<T>);
  const int64_t in_twos = ceil_div(vectors, 2) * 2, in_fours = ceil_div(vectors, 4) * 4;
  if (in_fours == in_twos || 8 * in_fours <= 9 * vectors) return vectors > 1 ? 4 : 1;
  return vectors > 1 ? 2 : 1;
}

template <class F>
JAXRNN_INLINE void with_vectors(int n, F&& f) {
  if (n == 4) return f(std::integral_constant<int, 4>());
  if (n == 2) return f(std::integral_constant<int, 2>());
  f(std::integral_constant<int, 1>());
}

// acc[r][first + v] += sum over k of rows[r][k] * panel[k][v], for N vectors. With few
// accumulators, each is split over k to shorten the chains of dependent additions.
template <class T, int N, int R, int A>
JAXRNN_INLINE void multiply(V<SumOf<T>> (&acc)[R][A], int first, const T* const (&rows)[R],
                            const T* panel, int64_t depth) {
  constexpr int L = kLanes<T>;
  constexpr int split = R * N >= 8 ? 1 : R * N >= 4 ? 2 : 4;
  int64_t k = 0;
  if constexpr (split > 1) {
    V<SumOf<T>> part[split][R][N] = {};
    for (; k + split <= depth; k += split)
#pragma GCC unroll 4
      for (int s = 0; s < split; ++s)
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) {
          const V<T> w = load(panel + ((k + s) * N + v) * L);
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) part[s][r][v] = add_product(part[s][r][v], rows[r][k + s], w);
        }
#pragma GCC unroll 4
    for (int s = 0; s < split; ++s)
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) acc[r][first + v] += part[s][r][v];
  }
  for (; k < depth; ++k)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      const V<T> w = load(panel + (k * N + v) * L);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) acc[r][first + v] = add_product(acc[r][first + v], rows[r][k], w);
    }
}

// sums[r][v] += the products of R rows with a panel of N vectors: one copy of the code for all
// callers, which reads and writes the sums once.
template <class T, int R, int N>
__attribute__((noinline)) void multiply_block(V<SumOf<T>>* sums, const T* const* from,
                                              const T* panel, int64_t depth) {
  const T* rows[R];
  V<SumOf<T>> acc[R][N];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    rows[r] = from[r];
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) acc[r][v] = sums[r * N + v];
  }
  multiply<T, N>(acc, 0, rows, panel, depth);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) sums[r * N + v] = acc[r][v];
}

// Panels have at most 4 vectors.
template <class T>
struct Products {
  void (*of[kRows * 4])(V<SumOf<T>>*, const T* const*, const T*, int64_t);
};

template <class T, int... I>
constexpr Products<T> products(std::integer_sequence<int, I...>) {
  return {{multiply_block<T, I / 4 + 1, I % 4 + 1>...}};
}

template <class T>
constexpr Products<T> kProducts = products<T>(std::make_integer_sequence<int, kRows * 4>());

template <class T>
JAXRNN_INLINE void multiply(V<SumOf<T>>* sums, const T* const* rows, int count, const T* panel,
                            int vectors, int64_t depth) {
  kProducts<T>.of[(count - 1) * 4 + vectors - 1](sums, rows, panel, depth);
}

// panel[k][lane] = w[lane][k], 0 beyond `lanes`, with `width` elements from one k to the next: a
// vector of columns of a transposed matrix.
template <class T>
__attribute__((noinline)) void pack_transposed(T* panel, const T* w, int64_t depth, int64_t width,
                                               int64_t lanes) {
  constexpr int L = kLanes<T>;
  const int64_t n = min<int64_t>(lanes, L);
  int64_t k = 0;
  for (; n == L && k + L <= depth; k += L) {
    V<T> square[L];
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) square[i] = load(w + i * depth + k);
    transpose<T>(square);
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) store(panel + (k + i) * width, square[i]);
  }
  for (; k < depth; ++k) {
    T* to = panel + k * width;
    for (int64_t i = 0; i < n; ++i) to[i] = w[i * depth + k];
    for (int64_t i = n < 0 ? 0 : n; i < L; ++i) to[i] = T{};
  }
}

// Packs one row of a panel: `width` columns, 0 beyond `valid`.
template <class T>
JAXRNN_INLINE void pack_row(T* to, const T* from, int64_t width, int64_t valid) {
  for (int64_t i = 0; i < width; i += kLanes<T>)
    store(to + i, i < valid ? load(from + i, valid - i) : V<T>{});
}

// Packs all panels of a (depth, columns) matrix without transposition; the members share the
// panels.
template <class T>
void pack_plain(T* panels, const T* w, int64_t depth, int64_t columns, int64_t width, int member,
                int members) {
  for (int64_t p = member; p * width < columns; p += members)
    for (int64_t k = 0; k < depth; ++k)
      pack_row(panels + (p * depth + k) * width, w + k * columns + p * width, width,
               columns - p * width);
}

}  // namespace
