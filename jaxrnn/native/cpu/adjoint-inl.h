// Backward pass: the recurrence of the cotangents, then the gradients of weights and inputs.
#pragma once

#include "gradient-inl.h"
#include "input-gradient-inl.h"
#include "projection-inl.h"

namespace {

using namespace jaxrnn;

// Vectors in a panel of W_hh^T: fewer where some of those that walk together would get no panel.
// With a projection the panels of units and of states are different ones, and both stay wide.
template <class T>
int back_vectors(const Adjoint<T>& f, const Plan& plan) {
  const int64_t columns = f.shape.outputs();
  const int vectors = panel_vectors<T>(columns);
  const bool too_few = ceil_div(columns, vectors * kLanes<T>) < plan.together;
  return vectors == 4 && too_few && !f.w_hr ? 2 : vectors;
}

template <class T, class P = T>
void adjoint_memory(const Adjoint<T>& f, const Plan& plan, int64_t (&bytes)[kSlots]) {
  const Shape& s = f.shape;
  auto padded = [](int64_t n, int vectors) {
    return ceil_div(n, vectors * kLanes<T>) * vectors * kLanes<T>;
  };
  const int64_t depth = gates(f.cell) * row_size<P>(s.hidden);
  bytes[kBackPanels] = depth * padded(s.outputs(), back_vectors(f, plan)) * int64_t(sizeof(P));
  bytes[kInputBackPanels] =
      f.dx ? depth * padded(s.inputs, panel_vectors<T>(s.inputs)) * int64_t(sizeof(P)) : 0;
  bytes[kProjectionBackPanels] =
      s.projected * padded(s.hidden, panel_vectors<T>(s.hidden)) * int64_t(sizeof(T));
  if (kNarrow<P>) bytes[kRoundedCotangents] = 2 * s.batch * depth * int64_t(sizeof(P));
}

template <class T, class P>
struct AdjointStep {
  const Adjoint<T>& f;
  const Schedule& schedule;
  const P* panels;
  const int32_t* rows;
  const P** next;  // by position in the group: cotangents of the row's next step
  int64_t t;
};

// dh[r][v] of `count` rows for the units of one panel: the incoming cotangent plus W_hh^T times the
// next step's cotangents.
template <class T, class P>
__attribute__((noinline)) void back_product(const AdjointStep<T, P>& s, int64_t first, int vectors,
                                            const int32_t* active, int count, V<T>* dh) {
  constexpr int L = kLanes<T>;
  const Shape& shape = s.f.shape;
  const int64_t n = shape.outputs(), depth = gates(s.f.cell) * row_size<P>(shape.hidden);
  const P* rows[kRows] = {};
  for (int r = 0; r < count; ++r) {
    const int64_t b = s.rows[active[r]], at = s.t * shape.batch + b;
    rows[r] = s.next[active[r]];
    for (int v = 0; v < vectors; ++v) {
      const int64_t u = first + v * L;
      V<T> sum = u < n ? load(s.f.dh0 + b * n + u, n - u) : V<T>{};
      if (s.t >= 0 && u < n) sum += load(s.f.d_ys + at * n + u, n - u);
      dh[r * vectors + v] = sum;
    }
  }
  multiply<P>(dh, rows, count, s.panels + first * depth, vectors, depth);
}

// Stores dh of `count` rows: at t < 0 as the cotangent of the initial state, else for the adjoint
// of the projection.
template <class T, class P>
void store_block(const AdjointStep<T, P>& s, int64_t first, int vectors, const int32_t* active,
                 int count, const V<T>* dh) {
  const int64_t n = s.f.shape.outputs();
  for (int r = 0; r < count; ++r) {
    const int64_t b = s.rows[active[r]], at = s.t * s.f.shape.batch + b;
    for (int v = 0; v < vectors; ++v) {
      const int64_t u = first + v * kLanes<T>;
      if (u >= n) break;
      store(s.f.dh0 + b * n + u, s.t < 0 ? dh[r * vectors + v] : V<T>{}, n - u);
      if (s.t >= 0) store(s.f.dh + at * n + u, dh[r * vectors + v], n - u);
    }
  }
}

// Adjoint of the cell from dh of `count` rows, or from the cotangent of o tanh(c) with a
// projection.
template <class T, class P, class C>
__attribute__((noinline)) void adjoint_block(const AdjointStep<T, P>& s, int64_t first, int vectors,
                                             const int32_t* active, int count, const V<T>* dh) {
  const Shape& shape = s.f.shape;
  const int64_t H = shape.hidden;
  for (int r = 0; r < count; ++r) {
    const int64_t b = s.rows[active[r]], at = s.t * shape.batch + b;
    for (int v = 0; v < vectors; ++v) {
      const int64_t u = first + v * kLanes<T>;
      if (u >= H) break;
      AdjointUnit<T> unit = {};
      unit.n = H - u;
      if (s.f.w_hr) {
        unit.m = s.f.m + at * H + u;
      } else {
        unit.carry = s.f.dh0 + b * H + u;
        unit.h = s.schedule.entering(shape, at, b, H, s.f.ys, s.f.h0, s.f.h_initial) + u;
        unit.y = s.f.ys + at * H + u;
      }
      unit.gates = s.f.gates + at * C::kSaved * H + u;
      unit.hidden = H;
      unit.relu = s.f.cell == CellKind::rnn_relu;
      if (s.f.cs) {
        unit.c = s.f.cs + at * H + u;
        unit.c_previous = s.schedule.entering(shape, at, b, H, s.f.cs, s.f.c0, s.f.c_initial) + u;
        unit.dc = s.f.dc0 + b * H + u;
      }
      C::template adjoint<T>(dh[r * vectors + v], unit);
    }
  }
}

template <class T, class P, class C>
void walk_adjoint(const Adjoint<T>& f, const Schedule& schedule, const Group& group, int vectors,
                  const P* packed, Workspace& work, int member) {
  const Shape& s = f.shape;
  const int64_t part = row_size<P>(s.hidden), depth = C::kGates * part;
  const Share states(group, s.outputs(), vectors * kLanes<T>);
  const int unit_vectors = f.w_hr ? panel_vectors<T>(s.hidden) : vectors;
  const Share units(group, s.hidden, unit_vectors * kLanes<T>);
  const T* projection = static_cast<const T*>(shared_memory(work, kProjectionBackPanels));
  const P** next =
      static_cast<const P**>(private_memory(work, member, group.size * int64_t(sizeof(P*))));
  int32_t* active = static_cast<int32_t*>(private_memory(work, member, group.size * 4));
  int32_t* fresh = static_cast<int32_t*>(private_memory(work, member, group.size * 4));
  P* zeros = static_cast<P*>(private_memory(work, member, depth * int64_t(sizeof(P))));
  copy<P>(zeros, nullptr, depth);
  for (int64_t j = 0; j < group.size; ++j) {
    const int64_t b = group.rows[j];
    next[j] = zeros;
    const int64_t h = b * s.outputs() + states.begin, c = b * s.hidden + units.begin;
    copy(f.dh0 + h, f.d_h + h, states.size());
    if (f.dc0) copy(f.dc0 + c, f.d_c + c, units.size());
    if (f.dh_initial) copy<T>(f.dh_initial + h, nullptr, states.size());
    if (f.dc_initial) copy<T>(f.dc_initial + c, nullptr, units.size());
  }

  Places rounded{};
  if (kNarrow<P>) rounded = places(work, kRoundedCotangents, depth, group.rows, group.size, member);
  auto cotangents = [&](int64_t j, int64_t at) -> const P* {
    const T* from = f.gates + at * C::kSaved * s.hidden;
    if constexpr (kNarrow<P>) {
      P* to = rounded.other(j);
      for (int g = 0; g < C::kGates; ++g)
        narrow(to + g * part + units.begin / 2, from + g * s.hidden + units.begin, units.size());
      return to;
    } else {
      return from;
    }
  };

  AdjointStep<T, P> step{f, schedule, packed, group.rows, next, 0};
  auto run = [&](const int32_t* some, int64_t count) {
    V<T> dh[kRows * 4];
    for_panels(states, step.t, depth * states.width * int64_t(sizeof(P)), [&](int64_t p) {
      for_blocks(count, [&](int rows, int64_t at) {
        back_product<T, P>(step, p * states.width, vectors, some + at, rows, dh);
        if (f.w_hr || step.t < 0)
          store_block(step, p * states.width, vectors, some + at, rows, dh);
        else
          adjoint_block<T, P, C>(step, p * states.width, vectors, some + at, rows, dh);
      });
    });
    if (!f.w_hr || step.t < 0) return;
    if (group.parts > 1) wait_for_group(work);
    auto row = [&](int64_t k) {
      return f.dh + (step.t * s.batch + group.rows[some[k]]) * s.projected;
    };
    for_products<T>(units, projection, s.projected, count, row,
                    [&](int64_t first, int vectors, int64_t at, int rows, const V<T>* dm) {
                      adjoint_block<T, P, C>(step, first, vectors, some + at, rows, dm);
                    });
  };
  // At a reset, adds the cotangents of the member's units to those of the initial state, and clears
  // them.
  auto move = [](T* from, T* to, const Share& own, int64_t at) {
    for (int64_t u = at + own.begin; from && u < at + own.end; ++u) {
      to[u] += from[u];
      from[u] = T(0);
    }
  };
  for (int64_t i = s.steps - 1; i >= 0; --i) {
    const int64_t t = step.t = s.time(i);
    const int64_t count = group.at(t, active);
    run(active, count);
    for (int64_t j = 0; j < count; ++j)
      next[active[j]] = cotangents(active[j], t * s.batch + group.rows[active[j]]);
    if (group.parts > 1) wait_for_group(work);
    const int64_t resets = f.h_initial ? group.resets(t, active, count, fresh) : 0;
    if (resets == 0) continue;
    step.t = -1;
    run(fresh, resets);
    for (int64_t j = 0; j < resets; ++j) {
      const int64_t b = group.rows[fresh[j]];
      move(f.dh0, f.dh_initial, states, b * s.outputs());
      move(f.dc0, f.dc_initial, units, b * s.hidden);
      next[fresh[j]] = zeros;
    }
  }
  step.t = -1;
  for (int64_t j = 0; j < group.size; ++j) active[j] = int32_t(j);
  run(active, group.size);
}

template <class T, class P, class C>
void run_adjoint(const Adjoint<T>& f, const Plan& plan, const Schedule& schedule, Workspace& work,
                 int member) {
  const Shape& s = f.shape;
  auto width = [](int64_t columns) { return panel_vectors<T>(columns) * kLanes<T>; };
  const int vectors = back_vectors(f, plan);
  P* back = static_cast<P*>(shared_memory(work, kBackPanels));
  pack_gates(back, f.w_hh, C::kGates, s.hidden, s.outputs(), vectors * kLanes<T>, member,
             plan.members);
  if (f.w_hr)
    pack_plain(static_cast<T*>(shared_memory(work, kProjectionBackPanels)), f.w_hr, s.projected,
               s.hidden, width(s.hidden), member, plan.members);
  if (f.dx)
    pack_gates(static_cast<P*>(shared_memory(work, kInputBackPanels)), f.w_ih, C::kGates, s.hidden,
               s.inputs, width(s.inputs), member, plan.members);
  wait_for_all(work);
  for_groups(plan, schedule, f.mask, s.batch, member, [&](const Group& group) {
    walk_adjoint<T, P, C>(f, schedule, group, vectors, back, work, member);
  });
  if (!f.dw_hh && !f.dx) return;
  wait_for_all(work);
  if (f.dw_hh) weight_gradients<T, P>(f, plan, schedule, work, member);
  if (f.dx) input_gradient<T, P>(f, plan, schedule, work, member);
}

}  // namespace
