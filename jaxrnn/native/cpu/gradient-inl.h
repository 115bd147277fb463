// Gradients of the weights from the cotangents of all projections.
#pragma once

#include "cell-inl.h"
#include "group-inl.h"
#include "narrow-inl.h"

namespace {

using namespace jaxrnn;

constexpr int64_t kDepth = 128;  // steps whose outer products are summed before they are stored

// out[r][columns of the panel] += sum over k of a[k][r] * panel[k], or = for the first sums. Its
// own loop, because the elements of a are adjacent.
template <class T, class P, int R, int N>
__attribute__((noinline)) void add_outer_products(T* out, int64_t stride, int64_t columns,
                                                  const P* a, const P* panel, int64_t depth,
                                                  bool first) {
  constexpr int L = kLanes<T>;
  V<T> sum[R][N] = {};
  for (int64_t k = 0; k < depth; ++k)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      const V<P> w = load(panel + (k * N + v) * L);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sum[r][v] = add_product(sum[r][v], a[k * R + r], w);
    }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      const int64_t n = columns - v * L;
      if (n <= 0) break;
      T* p = out + r * stride + v * L;
      store(p, first ? sum[r][v] : load(p, n) + sum[r][v], n);
    }
}

// Gradients of one weight matrix (G H rows, `columns` columns) and of its bias, for rows [m0, m1):
// the sum over all steps of column m of the cotangents times the input.
template <class T, class P = T>
struct WeightGradient {
  T *dw, *db;
  int64_t columns;
  P* panels;  // the inputs of kDepth steps; a pair is of neighbouring steps
};

template <class T, class P, class Source>
void pack_inputs(const WeightGradient<T, P>& g, int64_t count, Source source) {
  const int64_t width = panel_vectors<T>(g.columns) * kLanes<T>;
  if constexpr (kNarrow<P>) {
    for (int64_t k = 0; k < count; k += 2) {
      const T *from = source(k), *next = k + 1 < count ? source(k + 1) : nullptr;
      for (int64_t p = 0; p * width < g.columns; ++p)
        pack_pairs(g.panels + (p * kDepth + k) / 2 * width, from + p * width,
                   next ? next + p * width : nullptr, width, g.columns - p * width);
    }
  } else {
    for (int64_t k = 0; k < count; ++k) {
      const T* from = source(k);
      for (int64_t p = 0; p * width < g.columns; ++p)
        pack_row(g.panels + (p * kDepth + k) * width, from + p * width, width,
                 g.columns - p * width);
    }
  }
}

// Gathers R cotangents of each of `count` steps, and adds them to `total`.
template <class T, class P, int R, class Source>
JAXRNN_INLINE void gather_cotangents(P* a, T (&total)[R], int64_t count, Source cotangents) {
  if constexpr (kNarrow<P>) {
    constexpr T zeros[R] = {};
    for (int64_t k = 0; k < count; k += 2) {
      const T *from = cotangents(k), *next = k + 1 < count ? cotangents(k + 1) : zeros;
      zip_some(a + k / 2 * R, from, next, R);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) total[r] += from[r] + next[r];
    }
  } else {
    for (int64_t k = 0; k < count; ++k) {
      const T* from = cotangents(k);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) total[r] += a[k * R + r] = from[r];
    }
  }
}

template <class T, class P, int R, class Source>
void add_rows(const WeightGradient<T, P>& g, int64_t m, int64_t count, Source cotangents, P* a,
              bool first) {
  T total[R] = {};
  gather_cotangents<T, P, R>(a, total, count, cotangents);
  if (g.db)
    for (int r = 0; r < R; ++r) g.db[m + r] = first ? total[r] : g.db[m + r] + total[r];
  with_vectors(panel_vectors<T>(g.columns), [&](auto n) {
    const int64_t width = n() * kLanes<T>;
    for (int64_t p = 0; p * width < g.columns; ++p)
      add_outer_products<T, P, R, n()>(
          g.dw + m * g.columns + p * width, g.columns, g.columns - p * width, a,
          g.panels + p * row_size<P>(kDepth) * width, row_size<P>(count), first);
  });
}

// Rows [begin, end) of the gradient: the sum over `count` more steps.
template <class T, class P, class Source>
void add_steps(const WeightGradient<T, P>& g, int64_t begin, int64_t end, int64_t count,
               Source cotangents, P* a, bool first) {
  if (end <= begin) return;
  for_blocks(end - begin, [&](int rows, int64_t at) {
    const int64_t m = begin + at;
    with_constant<kRows>(rows, [&](auto r) {
      add_rows<T, P, r()>(g, m, count, [&](int64_t k) { return cotangents(k) + m; }, a, first);
    });
  });
}

// Sets rows [begin, end) of the gradient to zero.
template <class T, class P>
void clear(const WeightGradient<T, P>& g, int64_t begin, int64_t end) {
  copy<T>(g.dw + begin * g.columns, nullptr, (end - begin) * g.columns);
  if (g.db) copy<T>(g.db + begin, nullptr, end - begin);
}

template <class T>
constexpr int64_t outer_space(int64_t columns) {
  return kDepth * (columns + 4 * kLanes<T>);
}

// The members divide the rows of the gradient.
template <class T>
void run_outer(const OuterProducts<T>& p, Workspace& work, int member, int members) {
  const int64_t m0 = p.features * member / members, m1 = p.features * (member + 1) / members;
  auto space = [&](int64_t n) {
    return static_cast<T*>(private_memory(work, member, n * int64_t(sizeof(T))));
  };
  const WeightGradient<T> g{p.dw, p.db, p.columns, space(outer_space<T>(p.columns))};
  T* a = space(kDepth * kRows);
  if (p.rows == 0) clear(g, m0, m1);
  for (int64_t from = 0; from < p.rows; from += kDepth) {
    const int64_t count = min(kDepth, p.rows - from);
    pack_inputs(g, count, [&](int64_t k) { return p.b + (from + k) * p.columns; });
    add_steps(
        g, m0, m1, count, [&](int64_t k) { return p.a + (from + k) * p.features; }, a, from == 0);
  }
}

template <class T, class P>
void weight_gradients(const Adjoint<T>& f, const Plan& plan, const Schedule& schedule,
                      Workspace& work, int member) {
  const Shape& s = f.shape;
  const int64_t rows = gates(f.cell) * s.hidden, H = s.hidden, out = s.outputs();
  const int64_t saved = saved_gates(f.cell) * H;
  const int64_t m0 = rows * member / plan.members, m1 = rows * (member + 1) / plan.members;
  auto space = [&](int64_t n) {
    return static_cast<P*>(private_memory(work, member, n * int64_t(sizeof(P))));
  };
  const WeightGradient<T, P> ih{f.dw_ih, f.db_ih, s.inputs, space(outer_space<T>(s.inputs))};
  const WeightGradient<T, P> hh{f.dw_hh, f.db_hh, out, space(outer_space<T>(out))};
  const WeightGradient<T, P> hr{f.dw_hr, nullptr, H, space(f.dw_hr ? outer_space<T>(H) : 0)};
  const int64_t r0 = s.projected * member / plan.members,
                r1 = s.projected * (member + 1) / plan.members;
  P* a = space(kDepth * kRows);
  if (schedule.count == 0) {  // otherwise the first sums replace what is there
    clear(ih, m0, m1);
    clear(hh, m0, m1);
    if (f.dw_hr) clear(hr, r0, r1);
  }
  for (int64_t from = 0; from < schedule.count; from += kDepth) {
    const int64_t count = min(kDepth, schedule.count - from);
    auto step = [&](int64_t k) {
      return schedule.steps ? int64_t(schedule.steps[from + k]) : from + k;
    };
    pack_inputs(ih, count, [&](int64_t k) { return f.x + step(k) * s.inputs; });
    pack_inputs(hh, count, [&](int64_t k) {
      const int64_t at = step(k);
      return schedule.entering(s, at, at % s.batch, out, f.ys, f.h0, f.h_initial);
    });
    // The GRU's third gate has two cotangents: that of W_hn h + b_hn, then that of W_in x + b_in.
    const int64_t third = saved > rows ? 2 * H : rows;
    auto add = [&](const WeightGradient<T, P>& g, int64_t begin, int64_t end, const T* cotangents,
                   int64_t stride) {
      add_steps(
          g, begin, end, count, [&](int64_t k) { return cotangents + step(k) * stride; }, a,
          from == 0);
    };
    add(ih, m0, min(m1, third), f.gates, saved);
    add(ih, third > m0 ? third : m0, m1, f.gates + H, saved);
    add(hh, m0, m1, f.gates, saved);
    if (!f.dw_hr) continue;
    pack_inputs(hr, count, [&](int64_t k) { return f.m + step(k) * H; });
    add(hr, r0, r1, f.dh, out);
  }
}

}  // namespace
