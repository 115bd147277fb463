// Forward pass over a whole sequence.
#pragma once

#include "cell-inl.h"
#include "group-inl.h"
#include "projection-inl.h"

namespace {

using namespace jaxrnn;

enum { kInputPanels, kHiddenPanels, kBiases, kProjectionPanels, kProjected };

template <class T>
void forward_memory(const Forward<T>& f, const Plan&, int64_t (&bytes)[kSlots]) {
  const Shape& s = f.shape;
  with_cell<T>(f.cell, s.hidden, [&](auto cell) {
    using C = decltype(cell);
    const int64_t panels = ceil_div(s.hidden, C::kUnits * kLanes<T>);
    const int64_t vector = kLanes<T> * int64_t(sizeof(T));
    bytes[kInputPanels] = panels * s.inputs * C::kVectors * vector;
    bytes[kHiddenPanels] = panels * s.outputs() * C::kVectors * vector;
    bytes[kBiases] = panels * C::kSums * vector;
    if (f.w_hr) {
      bytes[kProjectionPanels] = (s.projected + 4 * kLanes<T>)*s.hidden * int64_t(sizeof(T));
      bytes[kProjected] = s.batch * s.hidden * int64_t(sizeof(T));
    }
  });
}

template <class T, class C>
void pack_forward(const Forward<T>& f, T* wx, T* wh, T* bias, int64_t p) {
  constexpr int L = kLanes<T>;
  const Shape& s = f.shape;
  auto gate = [&](int v) { return first_row<T, C>(p, v, s.hidden); };
  auto state_gate = [&](int v) { return gate(C::state_gate(v)); };
  auto lanes = [&](int v) { return s.hidden - first_unit<T, C>(p, v); };
  constexpr int64_t width = C::kVectors * L;
  T* b = bias + p * C::kSums * L;
  copy<T>(b, nullptr, C::kSums * L);
  for (int v = 0; v < C::kVectors; ++v) {
    const int64_t inputs = s.inputs, outputs = s.outputs();
    pack_transposed(wx + p * inputs * width + v * L, f.w_ih + gate(v) * inputs, inputs, width,
                    lanes(v));
    pack_transposed(wh + p * outputs * width + v * L, f.w_hh + state_gate(v) * outputs, outputs,
                    width, lanes(v));
    for (int64_t i = 0; i < min<int64_t>(lanes(v), L); ++i) {
      if (f.b_ih) b[(C::kInputSums + v) * L + i] += f.b_ih[gate(v) + i];
      if (f.b_hh) b[v * L + i] += f.b_hh[state_gate(v) + i];
    }
  }
}

template <class T>
struct ForwardStep {
  const Forward<T>& f;
  const T *wx, *wh, *bias;
  const int32_t* rows;
  const T** h;  // by position in the group
  int64_t t;
  T* m = nullptr;  // (B, H): o tanh(c) before the projection; null without one
};

// Input projections of `count` steps (any rows, any t), stored without further computation.
template <class T, class C>
__attribute__((noinline)) void project_block(const ForwardStep<T>& s, int64_t panel,
                                             const int32_t* steps, int count, T* out) {
  constexpr int L = kLanes<T>, N = C::kVectors;
  V<T> sums[kRows][N];
  const T* rows[kRows] = {};
  const T* bias = s.bias + (panel * C::kSums + C::kInputSums) * L;
  const int64_t inputs = s.f.shape.inputs;
  for (int r = 0; r < count; ++r) {
    rows[r] = s.f.x + steps[r] * inputs;
    for (int v = 0; v < N; ++v) sums[r][v] = load(bias + v * L);
  }
  multiply<T>(sums[0], rows, count, s.wx + panel * inputs * N * L, N, inputs);
  for (int r = 0; r < count; ++r)
    for (int v = 0; v < N; ++v) store(out + (r * N + v) * L, sums[r][v]);
}

// Sums of rows and panels to which the cell has not been applied yet.
template <class T, class C>
struct Pending {
  static constexpr int kMost = 12;
  int count = 0;
  int64_t panels[kMost + kRows];
  int32_t rows[kMost + kRows];  // positions in the group
  V<T> sums[kMost + kRows][C::kSums];

  V<T> (*next()) [C::kSums] { return sums + count; }

  void add(const ForwardStep<T>& s, int64_t panel, const int32_t* active, int size) {
    for (int r = 0; r < size; ++r) panels[count] = panel, rows[count++] = active[r];
    if (count >= kMost) finish(s);
  }

  template <class F>
  JAXRNN_INLINE void each_unit(const ForwardStep<T>& s, F&& f) {
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

  __attribute__((noinline)) void finish(const ForwardStep<T>& s) {
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

// Sums of R rows for the units of one panel; gx holds their projected inputs, or is null. The sums
// stay in registers from the bias to the last product.
template <class T, class C, int R>
__attribute__((noinline)) void step_block(const ForwardStep<T>& s, int64_t panel,
                                          const int32_t* active, const T* gx,
                                          V<T> (*done)[C::kSums]) {
  constexpr int L = kLanes<T>, N = C::kVectors;
  const Shape& shape = s.f.shape;
  V<T> sum[R][C::kSums];
  const T* rows[R];
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
    for (int r = 0; r < R; ++r)
      rows[r] = s.f.x + (s.t * shape.batch + s.rows[active[r]]) * shape.inputs;
    multiply<T, N>(sum, C::kInputSums, rows, s.wx + panel * shape.inputs * N * L, shape.inputs);
  }
  for (int r = 0; r < R; ++r) rows[r] = s.h[active[r]];
  const int64_t depth = shape.outputs();
  multiply<T, N>(sum, 0, rows, s.wh + panel * depth * N * L, depth);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int a = 0; a < C::kSums; ++a) done[r][a] = sum[r][a];
}

template <class T, class C>
void walk_forward(const Forward<T>& f, const Group& group, const T* wx, const T* wh, const T* bias,
                  Workspace& work, int member) {
  constexpr int L = kLanes<T>;
  const Shape& s = f.shape;
  const int64_t panels = ceil_div(s.hidden, C::kUnits * L), outputs = s.outputs();
  const Share units(group, s.hidden, C::kUnits * L);
  const int64_t p0 = units.p0, p1 = units.p1;
  const Share states = f.w_hr ? Share(group, outputs, panel_vectors<T>(outputs) * L) : units;
  const T* projection = static_cast<const T*>(shared_memory(work, kProjectionPanels));
  T* m = f.w_hr ? static_cast<T*>(shared_memory(work, kProjected)) : nullptr;
  const T** h =
      static_cast<const T**>(private_memory(work, member, group.size * int64_t(sizeof(T*))));
  int32_t* active = static_cast<int32_t*>(private_memory(work, member, group.size * 4));
  int32_t* fresh = static_cast<int32_t*>(private_memory(work, member, group.size * 4));
  for (int64_t j = 0; j < group.size; ++j) {
    const int64_t b = group.rows[j];
    h[j] = f.h0 + b * outputs;
    const int64_t own = b * s.hidden + units.begin;
    if (f.c0) copy(f.c_last + own, f.c0 + own, units.size());
  }

  // With few rows, projecting the inputs of several steps at once loads each weight less often.
  const bool hoist = group.size < 2 * kRows && s.steps > 1;
  const int64_t width = C::kVectors * L;
  int64_t chunk = 1, capacity = 0;
  T* gx = nullptr;
  int32_t* steps = nullptr;
  if (hoist && group.size > 0 && p1 > p0) {
    const int64_t step_bytes = group.size * panels * width * int64_t(sizeof(T));
    chunk = min<int64_t>(s.steps, min<int64_t>(64, 6 + (512 << 10) / step_bytes));
    capacity = chunk * group.size;
    gx = static_cast<T*>(
        private_memory(work, member, capacity * (p1 - p0) * width * int64_t(sizeof(T))));
    steps = static_cast<int32_t*>(private_memory(work, member, capacity * 4));
  }

  ForwardStep<T> step{f, wx, wh, bias, group.rows, h, 0, m};
  Pending<T, C> pending;
  int64_t projected = 0;
  for (int64_t i = 0; i < s.steps; ++i) {
    const int64_t t = step.t = s.time(i);
    if (gx && i % chunk == 0) {
      int64_t n = 0;
      for (int64_t k = i; k < min(i + chunk, s.steps); ++k) {
        const int64_t count = group.at(s.time(k), active);
        for (int64_t j = 0; j < count; ++j)
          steps[n++] = int32_t(s.time(k) * s.batch + group.rows[active[j]]);
      }
      for (int64_t p = p0; p < p1; ++p)
        for_blocks(n, [&](int rows, int64_t at) {
          project_block<T, C>(step, p, steps + at, rows, gx + ((p - p0) * capacity + at) * width);
        });
      projected = 0;
    }
    const int64_t count = group.at(t, active);
    for (int64_t j = f.h_initial ? group.resets(t, active, count, fresh) : 0; j-- > 0;) {
      const int64_t b = group.rows[fresh[j]], own = b * s.hidden + units.begin;
      h[fresh[j]] = f.h_initial + b * outputs;
      if (f.c0) copy(f.c_last + own, f.c_initial + own, units.size());
    }
    for (int64_t p = p0; p < p1; ++p)
      for_blocks(count, [&](int rows, int64_t at) {
        const T* own = gx ? gx + ((p - p0) * capacity + projected + at) * width : nullptr;
        with_constant<kRows>(rows, [&](auto r) {
          step_block<T, C, r()>(step, p, active + at, own, pending.next());
        });
        pending.add(step, p, active + at, rows);
      });
    pending.finish(step);
    projected += count;
    if (m) {
      if (group.parts > 1) wait_for_all(work);
      project_states(f, group, states, projection, m, t, active, count);
    }
    for (int64_t j = 0; j < group.size; ++j) {
      T* y = f.ys + (t * s.batch + group.rows[active[j]]) * outputs;
      if (j < count)
        h[active[j]] = y;
      else
        copy<T>(y + states.begin, nullptr, states.size());
    }
    if (group.parts > 1) wait_for_all(work);
  }
  for (int64_t j = 0; j < group.size; ++j)
    copy(f.h_last + group.rows[j] * outputs + states.begin, h[j] + states.begin, states.size());
}

template <class T, class C>
void run_forward(const Forward<T>& f, const Plan& plan, const Schedule& schedule, Workspace& work,
                 int member) {
  const int64_t panels = ceil_div(f.shape.hidden, C::kUnits * kLanes<T>);
  T* wx = static_cast<T*>(shared_memory(work, kInputPanels));
  T* wh = static_cast<T*>(shared_memory(work, kHiddenPanels));
  T* bias = static_cast<T*>(shared_memory(work, kBiases));
  for (int64_t p = member; p < panels; p += plan.members) pack_forward<T, C>(f, wx, wh, bias, p);
  if (f.w_hr)
    pack_projection(static_cast<T*>(shared_memory(work, kProjectionPanels)), f, member,
                    plan.members);
  wait_for_all(work);
  for_groups(plan, schedule, f.mask, f.shape.batch, member,
             [&](const Group& group) { walk_forward<T, C>(f, group, wx, wh, bias, work, member); });
}

}  // namespace
