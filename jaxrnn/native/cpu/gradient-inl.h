// Gradients of the weights and the inputs from the cotangents of all projections.
#pragma once

#include "cell-inl.h"
#include "group-inl.h"

namespace {

using namespace jaxrnn;

enum { kBackPanels, kInputBackPanels, kProjectionBackPanels };

constexpr int64_t kDepth = 128;  // steps whose outer products are summed before they are stored

// out[r][columns of the panel] += sum over k of a[k][r] * panel[k], or = for the first sums. Its
// own loop, because the elements of a are adjacent.
template <class T, int R, int N>
__attribute__((noinline)) void add_outer_products(T* out, int64_t stride, int64_t columns,
                                                  const T* a, const T* panel, int64_t depth,
                                                  bool first) {
  constexpr int L = kLanes<T>;
  V<T> sum[R][N] = {};
  for (int64_t k = 0; k < depth; ++k)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      const V<T> w = load(panel + (k * N + v) * L);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) sum[r][v] += a[k * R + r] * w;
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
template <class T>
struct WeightGradient {
  T *dw, *db;
  int64_t columns;
  T* panels;  // the inputs of kDepth steps
};

template <class T, class Source>
void pack_inputs(const WeightGradient<T>& g, int64_t count, Source source) {
  const int64_t width = panel_vectors<T>(g.columns) * kLanes<T>;
  for (int64_t k = 0; k < count; ++k) {
    const T* from = source(k);
    for (int64_t p = 0; p * width < g.columns; ++p)
      pack_row(g.panels + (p * kDepth + k) * width, from + p * width, width, g.columns - p * width);
  }
}

template <class T, int R, class Source>
void add_rows(const WeightGradient<T>& g, int64_t m, int64_t count, Source cotangents, T* a,
              bool first) {
  T total[R] = {};
  for (int64_t k = 0; k < count; ++k) {
    const T* from = cotangents(k);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) total[r] += a[k * R + r] = from[r];
  }
  if (g.db)
    for (int r = 0; r < R; ++r) g.db[m + r] = first ? total[r] : g.db[m + r] + total[r];
  with_vectors(panel_vectors<T>(g.columns), [&](auto n) {
    const int64_t width = n() * kLanes<T>;
    for (int64_t p = 0; p * width < g.columns; ++p)
      add_outer_products<T, R, n()>(g.dw + m * g.columns + p * width, g.columns,
                                    g.columns - p * width, a, g.panels + p * kDepth * width, count,
                                    first);
  });
}

// Rows [begin, end) of the gradient: the sum over `count` more steps.
template <class T, class Source>
void add_steps(const WeightGradient<T>& g, int64_t begin, int64_t end, int64_t count,
               Source cotangents, T* a, bool first) {
  if (end <= begin) return;
  for_blocks(end - begin, [&](int rows, int64_t at) {
    const int64_t m = begin + at;
    with_constant<kRows>(rows, [&](auto r) {
      add_rows<T, r()>(g, m, count, [&](int64_t k) { return cotangents(k) + m; }, a, first);
    });
  });
}

// Sets rows [begin, end) of the gradient to zero.
template <class T>
void clear(const WeightGradient<T>& g, int64_t begin, int64_t end) {
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

template <class T>
void weight_gradients(const Adjoint<T>& f, const Plan& plan, const Schedule& schedule,
                      Workspace& work, int member) {
  const Shape& s = f.shape;
  const int64_t rows = gates(f.cell) * s.hidden, H = s.hidden, P = s.outputs();
  const int64_t saved = saved_gates(f.cell) * H;
  const int64_t m0 = rows * member / plan.members, m1 = rows * (member + 1) / plan.members;
  auto space = [&](int64_t n) {
    return static_cast<T*>(private_memory(work, member, n * int64_t(sizeof(T))));
  };
  const WeightGradient<T> ih{f.dw_ih, f.db_ih, s.inputs, space(outer_space<T>(s.inputs))};
  const WeightGradient<T> hh{f.dw_hh, f.db_hh, P, space(outer_space<T>(P))};
  const WeightGradient<T> hr{f.dw_hr, nullptr, H, space(f.dw_hr ? outer_space<T>(H) : 0)};
  const int64_t r0 = s.projected * member / plan.members,
                r1 = s.projected * (member + 1) / plan.members;
  T* a = space(kDepth * kRows);
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
      return schedule.entering(s, at, at % s.batch, P, f.ys, f.h0, f.h_initial);
    });
    // The GRU's third gate has two cotangents: that of W_hn h + b_hn, then that of W_in x + b_in.
    const int64_t third = saved > rows ? 2 * H : rows;
    auto add = [&](const WeightGradient<T>& g, int64_t begin, int64_t end, const T* cotangents,
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
    add(hr, r0, r1, f.dh, P);
  }
}

// Cotangents of the inputs of `block` steps, for the columns of one panel.
template <class T>
__attribute__((noinline)) void input_block(const Adjoint<T>& f, const T* panels, int64_t column,
                                           int vectors, const int64_t (&at)[kRows], int block) {
  constexpr int L = kLanes<T>;
  const int64_t H = f.shape.hidden, inputs = f.shape.inputs;
  const int64_t count = gates(f.cell) * H, saved = saved_gates(f.cell) * H;
  const T* own = panels + column * count;
  V<T> sums[kRows * 4];
  const T* rows[kRows] = {};
  for (int r = 0; r < block; ++r) rows[r] = f.gates + at[r] * saved;
  for (int i = 0; i < block * vectors; ++i) sums[i] = V<T>{};
  // The GRU's cotangents of W_in x + b_in are not adjacent to those of the first two gates.
  const int64_t first = saved > count ? 2 * H : count;
  for (int64_t done = 0, depth = first; done < count; done += depth, depth = count - first) {
    if (done > 0)
      for (int r = 0; r < block; ++r) rows[r] += 3 * H;
    multiply<T>(sums, rows, block, own + done * vectors * L, vectors, depth);
  }
  for (int r = 0; r < block; ++r)
    for (int v = 0; v < vectors; ++v) {
      const int64_t i = column + v * L;
      if (i < inputs) store(f.dx + at[r] * inputs + i, sums[r * vectors + v], inputs - i);
    }
}

template <class T>
void input_gradient(const Adjoint<T>& f, const Plan& plan, const Schedule& schedule,
                    Workspace& work, int member) {
  const Shape& s = f.shape;
  const T* panels = static_cast<const T*>(shared_memory(work, kInputBackPanels));
  const int64_t all = s.steps * s.batch, members = plan.members;
  if (f.mask)
    for (int64_t i = all * member / members; i < all * (member + 1) / members; ++i)
      if (!f.mask[i]) copy<T>(f.dx + i * s.inputs, nullptr, s.inputs);
  // The runs of steps are short enough that their cotangents stay in the cache for all panels.
  constexpr int64_t length = 4 * kRows;
  const int64_t runs = ceil_div(schedule.count, length);
  const int vectors = panel_vectors<T>(s.inputs);
  for (int64_t run = runs * member / members; run < runs * (member + 1) / members; ++run)
    for (int64_t column = 0; column < s.inputs; column += vectors * kLanes<T>)
      for_blocks(min(length, schedule.count - run * length), [&](int rows, int64_t at) {
        int64_t steps[kRows];
        for (int r = 0; r < rows; ++r) {
          const int64_t k = run * length + at + r;
          steps[r] = schedule.steps ? schedule.steps[k] : k;
        }
        input_block<T>(f, panels, column, vectors, steps, rows);
      });
}

}  // namespace
