// Forward pass over a whole sequence.
#pragma once

#include "group-inl.h"
#include "projection-inl.h"
#include "step-inl.h"

namespace {

using namespace jaxrnn;

enum { kInputPanels, kHiddenPanels, kBiases, kProjectionPanels, kProjected, kRounded };

template <class T, class P = T>
void forward_memory(const Forward<T>& f, const Plan&, int64_t (&bytes)[kSlots]) {
  const Shape& s = f.shape;
  with_cell<T>(f.cell, s.hidden, [&](auto cell) {
    using C = decltype(cell);
    const int64_t panels = ceil_div(s.hidden, C::kUnits * kLanes<T>);
    const int64_t vector = kLanes<T> * int64_t(sizeof(T));
    bytes[kInputPanels] = panels * row_size<P>(s.inputs) * C::kVectors * vector;
    bytes[kHiddenPanels] = panels * row_size<P>(s.outputs()) * C::kVectors * vector;
    bytes[kBiases] = panels * C::kSums * vector;
    if (f.w_hr) {
      bytes[kProjectionPanels] = (s.projected + 4 * kLanes<T>)*s.hidden * int64_t(sizeof(T));
      bytes[kProjected] = s.batch * s.hidden * int64_t(sizeof(T));
    }
    if (kNarrow<P>) bytes[kRounded] = 2 * s.batch * row_size<P>(s.outputs()) * int64_t(sizeof(P));
  });
}

template <class T, class P, class C>
void pack_forward(const Forward<T>& f, P* wx, P* wh, T* bias, int64_t p, P* rounded) {
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
    pack_units(wx + p * row_size<P>(inputs) * width + v * L, f.w_ih + gate(v) * inputs, inputs,
               width, lanes(v), rounded);
    pack_units(wh + p * row_size<P>(outputs) * width + v * L, f.w_hh + state_gate(v) * outputs,
               outputs, width, lanes(v), rounded);
    for (int64_t i = 0; i < min<int64_t>(lanes(v), L); ++i) {
      if (f.b_ih) b[(C::kInputSums + v) * L + i] += f.b_ih[gate(v) + i];
      if (f.b_hh) b[v * L + i] += f.b_hh[state_gate(v) + i];
    }
  }
}

template <class T, class P, class C>
void walk_forward(const Forward<T>& f, const Group& group, const P* wx, const P* wh, const T* bias,
                  Workspace& work, int member) {
  constexpr int L = kLanes<T>;
  const Shape& s = f.shape;
  const int64_t panels = ceil_div(s.hidden, C::kUnits * L), outputs = s.outputs();
  const Share units(group, s.hidden, C::kUnits * L);
  const int64_t p0 = units.p0, p1 = units.p1;
  const Share states = f.w_hr ? Share(group, outputs, panel_vectors<T>(outputs) * L) : units;
  const T* projection = static_cast<const T*>(shared_memory(work, kProjectionPanels));
  T* m = f.w_hr ? static_cast<T*>(shared_memory(work, kProjected)) : nullptr;
  auto space = [&](int64_t bytes) { return private_memory(work, member, bytes); };
  const T** h = static_cast<const T**>(space(group.size * int64_t(sizeof(T*))));
  int32_t* active = static_cast<int32_t*>(space(group.size * 4));
  int32_t* fresh = static_cast<int32_t*>(space(group.size * 4));
  for (int64_t j = 0; j < group.size; ++j) {
    const int64_t b = group.rows[j];
    h[j] = f.h0 + b * outputs;
    const int64_t own = b * s.hidden + units.begin;
    if (f.c0) copy(f.c_last + own, f.c0 + own, units.size());
  }
  const P** operands;
  Places rounded{};
  // Writes the member's units of h[j] in bfloat16, as the operands from now on.
  auto round_into = [&]([[maybe_unused]] Pair* to, [[maybe_unused]] int64_t j) {
    if constexpr (kNarrow<P>) {
      narrow(to + units.begin / 2, h[j] + units.begin, units.size());
      operands[j] = to;
    }
  };
  if constexpr (kNarrow<P>) {
    operands = static_cast<const P**>(space(group.size * int64_t(sizeof(P*))));
    rounded = places(work, kRounded, row_size<P>(outputs), group.rows, group.size, member);
    for (int64_t j = 0; j < group.size; ++j) round_into(rounded.of(j), j);
    if (group.parts > 1) wait_for_group(work);
  } else {
    operands = h;
  }

  // With few rows, projecting the inputs of several steps at once loads each weight less often.
  // Weights of few units stay in the first-level cache, and their products overlap with the cell's
  // latency.
  const int64_t width = C::kVectors * L, state = row_size<P>(outputs);
  const int64_t depth_bytes = width * int64_t(sizeof(P)), panel_bytes = state * depth_bytes;
  const bool few_units = (row_size<P>(s.inputs) + state) * panels * depth_bytes <= 12 << 10;
  const bool hoist = group.size < 2 * kRows && s.steps > 1 && !few_units;
  int64_t chunk = 1, capacity = group.size;
  T* gx = nullptr;
  if (hoist && group.size > 0 && p1 > p0) {
    const int64_t step_bytes = group.size * panels * width * int64_t(sizeof(T));
    chunk = min<int64_t>(s.steps, min<int64_t>(64, 6 + (512 << 10) / step_bytes));
    capacity = chunk * group.size;
    gx = static_cast<T*>(space(capacity * (p1 - p0) * width * int64_t(sizeof(T))));
  }
  // The inputs of all active rows of the steps of a chunk, one after another.
  const P** x = static_cast<const P**>(space(capacity * int64_t(sizeof(P*))));
  const int64_t inputs = row_size<P>(s.inputs);
  P* narrow_x =
      kNarrow<P> ? static_cast<P*>(space(capacity * inputs * int64_t(sizeof(P)))) : nullptr;
  auto gather = [&](int64_t n, int64_t t, int64_t count) {
    for (int64_t j = 0; j < count; ++j) {
      const T* from = f.x + (t * s.batch + group.rows[active[j]]) * s.inputs;
      if constexpr (kNarrow<P>) {
        narrow(narrow_x + (n + j) * inputs, from, s.inputs);
        x[n + j] = narrow_x + (n + j) * inputs;
      } else {
        x[n + j] = from;
      }
    }
    return n + count;
  };

  ForwardStep<T, P> step{f, wx, wh, bias, group.rows, h, operands, 0, m};
  Pending<T, P, C> pending;
  int64_t projected = 0;
  for (int64_t i = 0; i < s.steps; ++i) {
    const int64_t t = step.t = s.time(i);
    if (gx && i % chunk == 0) {
      int64_t n = 0;
      for (int64_t k = i; k < min(i + chunk, s.steps); ++k)
        n = gather(n, s.time(k), group.at(s.time(k), active));
      for (int64_t p = p0; p < p1; ++p)
        for_blocks(n, [&](int rows, int64_t at) {
          project_block<T, P, C>(step, p, x + at, rows, gx + ((p - p0) * capacity + at) * width);
        });
      projected = 0;
    }
    const int64_t count = group.at(t, active);
    const int64_t resets = f.h_initial ? group.resets(t, active, count, fresh) : 0;
    for (int64_t j = resets; j-- > 0;) {
      const int64_t b = group.rows[fresh[j]], own = b * s.hidden + units.begin;
      h[fresh[j]] = f.h_initial + b * outputs;
      if (f.c0) copy(f.c_last + own, f.c_initial + own, units.size());
      if (kNarrow<P>) round_into(rounded.of(fresh[j]), fresh[j]);
    }
    if (kNarrow<P> && resets > 0 && group.parts > 1) wait_for_group(work);
    if (!gx) gather(0, t, count);
    for_panels(units, i, panel_bytes, [&](int64_t p) {
      for_blocks(count, [&](int rows, int64_t at) {
        const T* own = gx ? gx + ((p - p0) * capacity + projected + at) * width : nullptr;
        with_constant<kRows>(rows, [&](auto r) {
          step_block<T, P, C, r()>(step, p, active + at, own, x + at, pending.next());
        });
        pending.add(step, p, active + at, rows);
      });
    });
    pending.finish(step);
    projected += count;
    if (m) {
      if (group.parts > 1) wait_for_group(work);
      project_states(f, group, states, projection, m, t, active, count);
    }
    for (int64_t j = 0; j < group.size; ++j) {
      T* y = f.ys + (t * s.batch + group.rows[active[j]]) * outputs;
      if (j < count) {
        h[active[j]] = y;
        if (kNarrow<P>) round_into(rounded.other(active[j]), active[j]);
      } else {
        copy<T>(y + states.begin, nullptr, states.size());
      }
    }
    if (group.parts > 1) wait_for_group(work);
  }
  for (int64_t j = 0; j < group.size; ++j)
    copy(f.h_last + group.rows[j] * outputs + states.begin, h[j] + states.begin, states.size());
}

template <class T, class P, class C>
void run_forward(const Forward<T>& f, const Plan& plan, const Schedule& schedule, Workspace& work,
                 int member) {
  const Shape& s = f.shape;
  const int64_t panels = ceil_div(s.hidden, C::kUnits * kLanes<T>);
  P* wx = static_cast<P*>(shared_memory(work, kInputPanels));
  P* wh = static_cast<P*>(shared_memory(work, kHiddenPanels));
  T* bias = static_cast<T*>(shared_memory(work, kBiases));
  P* rounded = nullptr;
  if constexpr (kNarrow<P>) {
    const int64_t most = s.inputs > s.outputs() ? s.inputs : s.outputs();
    rounded = static_cast<P*>(
        private_memory(work, member, kLanes<P> * row_size<P>(most) * int64_t(sizeof(P))));
  }
  for (int64_t p = member; p < panels; p += plan.members)
    pack_forward<T, P, C>(f, wx, wh, bias, p, rounded);
  if (f.w_hr)
    pack_projection(static_cast<T*>(shared_memory(work, kProjectionPanels)), f, member,
                    plan.members);
  wait_for_all(work);
  for_groups(plan, schedule, f.mask, s.batch, member, [&](const Group& group) {
    walk_forward<T, P, C>(f, group, wx, wh, bias, work, member);
  });
}

}  // namespace
