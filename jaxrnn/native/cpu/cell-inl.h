// Cells: forward and backward step of one vector of units of one row.
#pragma once

#include "kernel.h"
#include "product-inl.h"

namespace {

using namespace jaxrnn;

// Operands and results of one vector of units of one row in a forward step. The first `n` lanes are
// valid.
template <class T>
struct ForwardUnit {
  const T* h;  // h_{t-1}
  T *c, *y, *saved, *cs;
  int64_t hidden, n;
  bool relu;
};

template <class T>
struct AdjointUnit {
  const T *h, *c, *c_previous, *y;
  T *gates, *carry, *dc, *m;  // carry is null and m = o tanh(c) is stored with a projection
  int64_t hidden, n;
  bool relu;
};

// kVectors: weight vectors per panel; kSums: accumulators per row; kUnits: unit vectors per panel.
// The products of the inputs go to the sums from kInputSums on, in the order of the gates, those of
// the states to the first sums, in the order of `state_gate`.
//
// The forward step is `gates`, then `output`. Each is a chain of dependent operations, so the
// caller runs one for several vectors before the other; values pass from one to the other in the
// sums.
struct Lstm {
  static constexpr int kGates = 4, kVectors = 4, kSums = 4, kUnits = 1, kSaved = 4;
  static constexpr int kInputSums = 0;
  static constexpr int state_gate(int v) { return v; }

  template <class T>
  JAXRNN_INLINE static void gates(V<T> (&sum)[kSums], const ForwardUnit<T>& u) {
    const V<T> i = sigmoid<T>(sum[0]), f = sigmoid<T>(sum[1]), g = tanh<T>(sum[2]),
               o = sigmoid<T>(sum[3]);
    const V<T> c = f * load(u.c, u.n) + i * g;
    store(u.c, c, u.n);
    sum[2] = c, sum[3] = o;
    if (u.saved) {
      store(u.saved, i, u.n);
      store(u.saved + u.hidden, f, u.n);
      store(u.saved + 2 * u.hidden, g, u.n);
      store(u.saved + 3 * u.hidden, o, u.n);
      store(u.cs, c, u.n);
    }
  }

  template <class T>
  JAXRNN_INLINE static void output(V<T> (&sum)[kSums], int, const ForwardUnit<T>& u) {
    store(u.y, sum[3] * tanh<T>(sum[2]), u.n);
  }

  template <class T>
  JAXRNN_INLINE static void adjoint(V<T> dh, const AdjointUnit<T>& u) {
    T *pi = u.gates, *pf = pi + u.hidden, *pg = pf + u.hidden, *po = pg + u.hidden;
    const V<T> i = load(pi, u.n), f = load(pf, u.n), g = load(pg, u.n), o = load(po, u.n);
    const V<T> tc = tanh<T>(load(u.c, u.n));
    const V<T> dc = load(u.dc, u.n) + dh * o * (T(1) - tc * tc);
    store(pi, dc * g * i * (T(1) - i), u.n);
    store(pf, dc * load(u.c_previous, u.n) * f * (T(1) - f), u.n);
    store(pg, dc * i * (T(1) - g * g), u.n);
    store(po, dh * tc * o * (T(1) - o), u.n);
    store(u.dc, dc * f, u.n);
    if (u.m)
      store(u.m, o * tc, u.n);
    else
      store(u.carry, V<T>{}, u.n);
  }
};

// Sums: W_hn h + b_hn, r, z, W_in x + b_in. The adjoint stores the cotangents of r, z, the first
// sum and the last one, in this order.
struct Gru {
  static constexpr int kGates = 3, kVectors = 3, kSums = 4, kUnits = 1, kSaved = 4;
  static constexpr int kInputSums = 1;
  static constexpr int state_gate(int v) { return (v + 2) % 3; }

  template <class T>
  JAXRNN_INLINE static void gates(V<T> (&sum)[kSums], const ForwardUnit<T>&) {
    sum[1] = sigmoid<T>(sum[1]), sum[2] = sigmoid<T>(sum[2]);
  }

  template <class T>
  JAXRNN_INLINE static void output(V<T> (&sum)[kSums], int, const ForwardUnit<T>& u) {
    const V<T> r = sum[1], z = sum[2], n = tanh<T>(sum[3] + r * sum[0]);
    store(u.y, (T(1) - z) * n + z * load(u.h, u.n), u.n);
    if (u.saved) {
      store(u.saved, r, u.n);
      store(u.saved + u.hidden, z, u.n);
      store(u.saved + 2 * u.hidden, n, u.n);
      store(u.saved + 3 * u.hidden, sum[0], u.n);
    }
  }

  template <class T>
  JAXRNN_INLINE static void adjoint(V<T> dh, const AdjointUnit<T>& u) {
    T *pr = u.gates, *pz = pr + u.hidden, *pn = pz + u.hidden, *pm = pn + u.hidden;
    const V<T> r = load(pr, u.n), z = load(pz, u.n), n = load(pn, u.n), m = load(pm, u.n);
    const V<T> dn = dh * (T(1) - z) * (T(1) - n * n);
    store(pr, dn * m * r * (T(1) - r), u.n);
    store(pz, dh * (load(u.h, u.n) - n) * z * (T(1) - z), u.n);
    store(pn, dn * r, u.n);
    store(pm, dn, u.n);
    store(u.carry, dh * z, u.n);
  }
};

template <int N>
struct Rnn {
  static constexpr int kGates = 1, kVectors = N, kSums = N, kUnits = N, kSaved = 1;
  static constexpr int kInputSums = 0;
  static constexpr int state_gate(int v) { return v; }

  template <class T>
  JAXRNN_INLINE static void gates(V<T> (&)[kSums], const ForwardUnit<T>&) {}

  template <class T>
  JAXRNN_INLINE static void output(V<T> (&sum)[kSums], int v, const ForwardUnit<T>& u) {
    const V<T> s = sum[v];
    store(u.y, u.relu ? (s <= V<T>{} ? V<T>{} : s) : tanh<T>(s), u.n);
  }

  template <class T>
  JAXRNN_INLINE static void adjoint(V<T> dh, const AdjointUnit<T>& u) {
    const V<T> y = load(u.y, u.n);
    store(u.gates, u.relu ? (y <= V<T>{} ? V<T>{} : dh) : dh * (T(1) - y * y), u.n);
    store(u.carry, V<T>{}, u.n);
  }
};

template <class T, class F>
JAXRNN_INLINE void with_cell(CellKind cell, int64_t hidden, F&& f) {
  if (cell == CellKind::lstm) return f(Lstm());
  if (cell == CellKind::gru) return f(Gru());
  with_vectors(panel_vectors<T>(hidden), [&](auto n) { f(Rnn<n()>()); });
}

// The backward pass handles one vector of units at a time, so every Rnn<N> would give the same
// code.
template <class F>
JAXRNN_INLINE void with_adjoint_cell(CellKind cell, F&& f) {
  if (cell == CellKind::lstm) return f(Lstm());
  if (cell == CellKind::gru) return f(Gru());
  f(Rnn<1>());
}

// First unit of vector v of a panel, and the weight row of that unit.
template <class T, class C>
JAXRNN_INLINE int64_t first_unit(int64_t panel, int v) {
  return (panel * C::kUnits + (C::kUnits > 1 ? v : 0)) * kLanes<T>;
}

template <class T, class C>
JAXRNN_INLINE int64_t first_row(int64_t panel, int v, int64_t hidden) {
  return (C::kUnits > 1 ? 0 : v) * hidden + first_unit<T, C>(panel, v);
}

}  // namespace
