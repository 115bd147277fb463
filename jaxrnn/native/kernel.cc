// The recurrence over a whole sequence, forward and backward, for one instruction set.
//
// Built once for each set, with JAXRNN_BUILD (its name), JAXRNN_VECTOR_BYTES and JAXRNN_ROWS.
//
// The weights are packed into panels: the columns that one vector register of units needs, all its
// gates side by side, for every k. A block of up to JAXRNN_ROWS rows keeps one panel's products in
// registers, and the cell is applied to them before anything is stored. Rows are reached through
// pointers, so a row that has ended simply is not in any block.
#include "kernel.h"

#include "simd.h"

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

// Cuts `count` rows into blocks of nearly equal size.
template <class F>
JAXRNN_INLINE void for_blocks(int64_t count, F&& f) {
  const int64_t blocks = ceil_div(count, kRows);
  for (int64_t i = 0, at = 0; i < blocks; ++i) {
    const int64_t n = (count - at) / (blocks - i) + ((count - at) % (blocks - i) != 0);
    with_constant<kRows>(int(n), [&](auto rows) { f(rows, at); });
    at += n;
  }
}

// How many vectors make a panel of plain columns: as many of 4, 2, 1 as divide the columns.
template <class T>
int panel_vectors(int64_t columns) {
  const int64_t vectors = ceil_div(columns, kLanes<T>);
  return vectors % 4 == 0 ? 4 : vectors % 2 == 0 ? 2 : 1;
}

template <class F>
JAXRNN_INLINE void with_vectors(int n, F&& f) {
  if (n == 4) return f(std::integral_constant<int, 4>());
  if (n == 2) return f(std::integral_constant<int, 2>());
  f(std::integral_constant<int, 1>());
}

// ------------------------------------------------------------------------------------------------
// Products
// ------------------------------------------------------------------------------------------------

// acc[r][Map(v)] += sum over k of rows[r][k] * panel[k][v]. Few accumulators are split over k, so
// that no sum waits for the one before it.
template <class T, int R, int A, int N, class Map>
JAXRNN_INLINE void multiply(V<T> (&acc)[R][A], const T* const (&rows)[R], const T* panel, int64_t depth,
                            Map map) {
  constexpr int L = kLanes<T>;
  constexpr int split = R * N >= 8 ? 1 : R * N >= 4 ? 2 : 4;
  int64_t k = 0;
  if constexpr (split > 1) {
    V<T> part[split][R][N] = {};
    for (; k + split <= depth; k += split)
#pragma GCC unroll 4
      for (int s = 0; s < split; ++s)
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) {
          const V<T> w = load(panel + ((k + s) * N + v) * L);
#pragma GCC unroll 8
          for (int r = 0; r < R; ++r) part[s][r][v] += rows[r][k + s] * w;
        }
#pragma GCC unroll 4
    for (int s = 0; s < split; ++s)
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) acc[r][map(v)] += part[s][r][v];
  }
  for (; k < depth; ++k)
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      const V<T> w = load(panel + (k * N + v) * L);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) acc[r][map(v)] += rows[r][k] * w;
    }
}

struct Same {
  constexpr int operator()(int v) const { return v; }
};

// panel[k][v][lane] = w[first(v) + lane][k], 0 beyond `lanes(v)`: the columns of a transposed matrix.
template <class T, int N, class First, class Lanes>
void pack_transposed(T* panel, const T* w, int64_t depth, First first, Lanes lanes) {
  constexpr int L = kLanes<T>;
  for (int v = 0; v < N; ++v) {
    const int64_t n = min<int64_t>(lanes(v), L);
    const T* from = w + first(v) * depth;
    for (int64_t k = 0; k < depth; ++k) {
      T* to = panel + (k * N + v) * L;
      for (int64_t i = 0; i < n; ++i) to[i] = from[i * depth + k];
      for (int64_t i = n < 0 ? 0 : n; i < L; ++i) to[i] = 0;
    }
  }
}

// One row of a panel: `width` columns of it, 0 beyond `valid`.
template <class T>
JAXRNN_INLINE void pack_row(T* to, const T* from, int64_t width, int64_t valid) {
  for (int64_t i = 0; i < width; i += kLanes<T>)
    store(to + i, i < valid ? load(from + i, valid - i) : V<T>{});
}

// All panels of a (depth, columns) matrix as it lies; panel by panel over the members.
template <class T>
void pack_plain(T* panels, const T* w, int64_t depth, int64_t columns, int64_t width, int member,
                int members) {
  for (int64_t p = member; p * width < columns; p += members)
    for (int64_t k = 0; k < depth; ++k)
      pack_row(panels + (p * depth + k) * width, w + k * columns + p * width, width, columns - p * width);
}

// ------------------------------------------------------------------------------------------------
// Cells
// ------------------------------------------------------------------------------------------------

// Where one vector of units of one row reads and writes in a forward step. `n` lanes of it count.
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
  T *gates, *carry, *dc;
  int64_t hidden, n;
  bool relu;
};

// kVectors: weight vectors a panel; kSums: accumulators a row; kUnits: vectors of units a panel.
struct Lstm {
  static constexpr int kGates = 4, kVectors = 4, kSums = 4, kUnits = 1, kSaved = 4;
  static constexpr Same x_sum{}, h_sum{};

  template <class T>
  JAXRNN_INLINE static void finish(V<T> (&sum)[kSums], int, const ForwardUnit<T>& u) {
    const V<T> i = sigmoid<T>(sum[0]), f = sigmoid<T>(sum[1]), g = tanh<T>(sum[2]), o = sigmoid<T>(sum[3]);
    const V<T> c = f * load(u.c, u.n) + i * g;
    store(u.c, c, u.n);
    store(u.y, o * tanh<T>(c), u.n);
    if (u.saved) {
      store(u.saved, i, u.n);
      store(u.saved + u.hidden, f, u.n);
      store(u.saved + 2 * u.hidden, g, u.n);
      store(u.saved + 3 * u.hidden, o, u.n);
      store(u.cs, c, u.n);
    }
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
    store(u.carry, V<T>{}, u.n);
  }
};

// Sums: r, z, W_hn h + b_hn, W_in x + b_in. The adjoint leaves the cotangents of r, z and of the
// last two, in this order.
struct Gru {
  static constexpr int kGates = 3, kVectors = 3, kSums = 4, kUnits = 1, kSaved = 4;
  struct Input {
    constexpr int operator()(int v) const { return v == 2 ? 3 : v; }
  };
  static constexpr Input x_sum{};
  static constexpr Same h_sum{};

  template <class T>
  JAXRNN_INLINE static void finish(V<T> (&sum)[kSums], int, const ForwardUnit<T>& u) {
    const V<T> r = sigmoid<T>(sum[0]), z = sigmoid<T>(sum[1]);
    const V<T> n = tanh<T>(sum[3] + r * sum[2]);
    store(u.y, (T(1) - z) * n + z * load(u.h, u.n), u.n);
    if (u.saved) {
      store(u.saved, r, u.n);
      store(u.saved + u.hidden, z, u.n);
      store(u.saved + 2 * u.hidden, n, u.n);
      store(u.saved + 3 * u.hidden, sum[2], u.n);
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
  static constexpr Same x_sum{}, h_sum{};

  template <class T>
  JAXRNN_INLINE static void finish(V<T> (&sum)[kSums], int v, const ForwardUnit<T>& u) {
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

// The weight row from which vector v of a panel takes its lanes, and how many there are.
template <class T, class C>
JAXRNN_INLINE int64_t first_unit(int64_t panel, int v) {
  return (panel * C::kUnits + (C::kUnits > 1 ? v : 0)) * kLanes<T>;
}

template <class T, class C>
JAXRNN_INLINE int64_t first_row(int64_t panel, int v, int64_t hidden) {
  return (C::kUnits > 1 ? 0 : v) * hidden + first_unit<T, C>(panel, v);
}

// The rows of a group, which of them have a step at t, and which share of the units a member has.
struct Group {
  const int32_t* rows;
  int64_t size;
  const uint8_t* mask;
  int64_t batch;
  int part, parts;

  // Positions in `rows`, in `active`; those without a step in `idle`, from its end.
  int64_t at(int64_t t, int32_t* active) const {
    int64_t n = 0, end = size;
    for (int64_t j = 0; j < size; ++j) {
      if (!mask || mask[t * batch + rows[j]])
        active[n++] = int32_t(j);
      else
        active[--end] = int32_t(j);
    }
    return n;
  }
};

// Calls f for each group that a member walks, or helps to walk.
template <class F>
void for_groups(const Plan& plan, const Schedule& schedule, const uint8_t* mask, int64_t batch, int member,
                F&& f) {
  const int parts = plan.parts();
  for (int g = member / parts; g < plan.groups; g += plan.members / parts)
    f(Group{schedule.order + schedule.begin[g], schedule.begin[g + 1] - schedule.begin[g], mask, batch,
            member % parts, parts});
}

template <class T>
void copy(T* to, const T* from, int64_t n) {
  if (from)
    __builtin_memcpy(to, from, n * sizeof(T));
  else
    __builtin_memset(to, 0, n * sizeof(T));
}

// ------------------------------------------------------------------------------------------------
// Forward
// ------------------------------------------------------------------------------------------------

enum { kInputPanels, kHiddenPanels, kBiases };

template <class T>
void forward_memory(const Forward<T>& f, const Plan&, int64_t (&bytes)[kSlots]) {
  const Shape& s = f.shape;
  with_cell<T>(f.cell, s.hidden, [&](auto cell) {
    using C = decltype(cell);
    const int64_t panels = ceil_div(s.hidden, C::kUnits * kLanes<T>);
    const int64_t vector = kLanes<T> * int64_t(sizeof(T));
    bytes[kInputPanels] = panels * s.inputs * C::kVectors * vector;
    bytes[kHiddenPanels] = panels * s.hidden * C::kVectors * vector;
    bytes[kBiases] = panels * C::kSums * vector;
  });
}

template <class T, class C>
void pack_forward(const Forward<T>& f, T* wx, T* wh, T* bias, int64_t p) {
  constexpr int L = kLanes<T>;
  const Shape& s = f.shape;
  auto first = [&](int v) { return first_row<T, C>(p, v, s.hidden); };
  auto lanes = [&](int v) { return s.hidden - first_unit<T, C>(p, v); };
  pack_transposed<T, C::kVectors>(wx + p * s.inputs * C::kVectors * L, f.w_ih, s.inputs, first, lanes);
  pack_transposed<T, C::kVectors>(wh + p * s.hidden * C::kVectors * L, f.w_hh, s.hidden, first, lanes);
  T* b = bias + p * C::kSums * L;
  copy<T>(b, nullptr, C::kSums * L);
  for (int v = 0; v < C::kVectors; ++v)
    for (int64_t i = 0; i < min<int64_t>(lanes(v), L); ++i) {
      if (f.b_ih) b[C::x_sum(v) * L + i] += f.b_ih[first(v) + i];
      if (f.b_hh) b[C::h_sum(v) * L + i] += f.b_hh[first(v) + i];
    }
}

template <class T>
struct ForwardStep {
  const Forward<T>& f;
  const T *wx, *wh, *bias;
  const int32_t* rows;
  const T** h;  // by position in the group
  int64_t t;
};

// The products with the inputs of R steps (any rows, any t), stored as they are.
template <class T, class C, int R>
__attribute__((noinline)) void project_block(const ForwardStep<T>& s, int64_t panel, const int32_t* steps,
                                             T* out) {
  constexpr int L = kLanes<T>;
  V<T> sum[R][C::kSums];
  const T* rows[R];
  const T* bias = s.bias + panel * C::kSums * L;
  for (int r = 0; r < R; ++r) {
    rows[r] = s.f.x + steps[r] * s.f.shape.inputs;
    for (int a = 0; a < C::kSums; ++a) sum[r][a] = load(bias + a * L);
  }
  multiply<T, R, C::kSums, C::kVectors>(sum, rows, s.wx + panel * s.f.shape.inputs * C::kVectors * L,
                                        s.f.shape.inputs, C::x_sum);
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < C::kVectors; ++v) store(out + (r * C::kVectors + v) * L, sum[r][C::x_sum(v)]);
}

// One step of R rows for the units of one panel; gx holds their projected inputs, or is null.
template <class T, class C, int R>
__attribute__((noinline)) void step_block(const ForwardStep<T>& s, int64_t panel, const int32_t* active,
                                          const T* gx) {
  constexpr int L = kLanes<T>;
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
      for (int v = 0; v < C::kVectors; ++v) sum[r][C::x_sum(v)] = load(gx + (r * C::kVectors + v) * L);
  } else {
    for (int r = 0; r < R; ++r) rows[r] = s.f.x + (s.t * shape.batch + s.rows[active[r]]) * shape.inputs;
    multiply<T, R, C::kSums, C::kVectors>(sum, rows, s.wx + panel * shape.inputs * C::kVectors * L,
                                          shape.inputs, C::x_sum);
  }
  for (int r = 0; r < R; ++r) rows[r] = s.h[active[r]];
  multiply<T, R, C::kSums, C::kVectors>(sum, rows, s.wh + panel * shape.hidden * C::kVectors * L,
                                        shape.hidden, C::h_sum);
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const int64_t b = s.rows[active[r]], at = s.t * shape.batch + b;
#pragma GCC unroll 4
    for (int v = 0; v < C::kUnits; ++v) {
      const int64_t u = first_unit<T, C>(panel, v);
      if (u >= shape.hidden) break;
      ForwardUnit<T> unit = {};
      unit.h = rows[r] + u;
      unit.c = s.f.c_last + b * shape.hidden + u;
      unit.y = s.f.ys + at * shape.hidden + u;
      unit.saved = s.f.saved ? s.f.saved + at * C::kSaved * shape.hidden + u : nullptr;
      unit.cs = s.f.cs + at * shape.hidden + u;
      unit.hidden = shape.hidden;
      unit.n = shape.hidden - u;
      unit.relu = s.f.cell == CellKind::rnn_relu;
      C::template finish<T>(sum[r], v, unit);
    }
  }
}

template <class T, class C>
void walk_forward(const Forward<T>& f, const Group& group, const T* wx, const T* wh, const T* bias,
                  Workspace& work, int member) {
  constexpr int L = kLanes<T>;
  const Shape& s = f.shape;
  const int64_t panels = ceil_div(s.hidden, C::kUnits * L);
  const int64_t p0 = panels * group.part / group.parts, p1 = panels * (group.part + 1) / group.parts;
  const int64_t u0 = min(p0 * C::kUnits * L, s.hidden), u1 = min(p1 * C::kUnits * L, s.hidden);
  const T** h = static_cast<const T**>(private_memory(work, member, group.size * int64_t(sizeof(T*))));
  int32_t* active = static_cast<int32_t*>(private_memory(work, member, group.size * 4));
  for (int64_t j = 0; j < group.size; ++j) {
    const int64_t b = group.rows[j];
    h[j] = f.h0 + b * s.hidden;
    if (f.c0) copy(f.c_last + b * s.hidden + u0, f.c0 + b * s.hidden + u0, u1 - u0);
  }

  // With few rows a product with the inputs of several steps at once loads each weight less often.
  const bool hoist = group.size < 2 * kRows && s.steps > 1;
  const int64_t width = C::kVectors * L;
  int64_t chunk = 1, capacity = 0;
  T* gx = nullptr;
  int32_t* steps = nullptr;
  if (hoist && group.size > 0 && p1 > p0) {
    const int64_t step_bytes = group.size * panels * width * int64_t(sizeof(T));
    chunk = min<int64_t>(s.steps, min<int64_t>(64, 6 + (512 << 10) / step_bytes));
    capacity = chunk * group.size;
    gx = static_cast<T*>(private_memory(work, member, capacity * (p1 - p0) * width * int64_t(sizeof(T))));
    steps = static_cast<int32_t*>(private_memory(work, member, capacity * 4));
  }

  ForwardStep<T> step{f, wx, wh, bias, group.rows, h, 0};
  int64_t projected = 0;
  for (int64_t i = 0; i < s.steps; ++i) {
    const int64_t t = step.t = s.time(i);
    if (gx && i % chunk == 0) {
      int64_t n = 0;
      for (int64_t k = i; k < min(i + chunk, s.steps); ++k) {
        const int64_t count = group.at(s.time(k), active);
        for (int64_t j = 0; j < count; ++j) steps[n++] = int32_t(s.time(k) * s.batch + group.rows[active[j]]);
      }
      for (int64_t p = p0; p < p1; ++p)
        for_blocks(n, [&](auto r, int64_t at) {
          project_block<T, C, r()>(step, p, steps + at, gx + ((p - p0) * capacity + at) * width);
        });
      projected = 0;
    }
    const int64_t count = group.at(t, active);
    for (int64_t p = p0; p < p1; ++p)
      for_blocks(count, [&](auto r, int64_t at) {
        const T* own = gx ? gx + ((p - p0) * capacity + projected + at) * width : nullptr;
        step_block<T, C, r()>(step, p, active + at, own);
      });
    projected += count;
    for (int64_t j = 0; j < group.size; ++j) {
      T* y = f.ys + (t * s.batch + group.rows[active[j]]) * s.hidden;
      if (j < count)
        h[active[j]] = y;
      else
        copy<T>(y + u0, nullptr, u1 - u0);
    }
    if (group.parts > 1) wait_for_all(work);
  }
  for (int64_t j = 0; j < group.size; ++j)
    copy(f.h_last + group.rows[j] * s.hidden + u0, h[j] + u0, u1 - u0);
}

template <class T, class C>
void run_forward(const Forward<T>& f, const Plan& plan, const Schedule& schedule, Workspace& work,
                 int member) {
  const int64_t panels = ceil_div(f.shape.hidden, C::kUnits * kLanes<T>);
  T* wx = static_cast<T*>(shared_memory(work, kInputPanels));
  T* wh = static_cast<T*>(shared_memory(work, kHiddenPanels));
  T* bias = static_cast<T*>(shared_memory(work, kBiases));
  for (int64_t p = member; p < panels; p += plan.members) pack_forward<T, C>(f, wx, wh, bias, p);
  wait_for_all(work);
  for_groups(plan, schedule, f.mask, f.shape.batch, member, [&](const Group& group) {
    walk_forward<T, C>(f, group, wx, wh, bias, work, member);
  });
}

// ------------------------------------------------------------------------------------------------
// Adjoint
// ------------------------------------------------------------------------------------------------

enum { kBackPanels, kInputBackPanels };

template <class T>
void adjoint_memory(const Adjoint<T>& f, const Plan&, int64_t (&bytes)[kSlots]) {
  const Shape& s = f.shape;
  auto padded = [](int64_t n) { return ceil_div(n, panel_vectors<T>(n) * kLanes<T>) * panel_vectors<T>(n) * kLanes<T>; };
  bytes[kBackPanels] = gates(f.cell) * s.hidden * padded(s.hidden) * int64_t(sizeof(T));
  bytes[kInputBackPanels] = f.dx ? gates(f.cell) * s.hidden * padded(s.inputs) * int64_t(sizeof(T)) : 0;
}

template <class T>
struct AdjointStep {
  const Adjoint<T>& f;
  const Schedule& schedule;
  const T* panels;
  const int32_t* rows;
  const T** next;  // by position in the group: the cotangents of the row's next step
  int64_t t;
};

// dh of R rows for the units of one panel: what comes from outside, plus W_hh^T times the next
// step's cotangents. At t < 0 that is the cotangent of the initial state; else the cell follows.
template <class T, class C, int R, int N>
__attribute__((noinline)) void adjoint_block(const AdjointStep<T>& s, int64_t panel, const int32_t* active) {
  constexpr int L = kLanes<T>;
  const Shape& shape = s.f.shape;
  const int64_t H = shape.hidden, depth = C::kGates * H;
  V<T> dh[R][N];
  const T* rows[R];
  for (int r = 0; r < R; ++r) {
    const int64_t b = s.rows[active[r]], at = s.t * shape.batch + b;
    rows[r] = s.next[active[r]];
    for (int v = 0; v < N; ++v) {
      const int64_t u = (panel * N + v) * L;
      dh[r][v] = u < H ? load(s.f.dh0 + b * H + u, H - u) : V<T>{};
      if (s.t >= 0 && u < H) dh[r][v] += load(s.f.d_ys + at * H + u, H - u);
    }
  }
  multiply<T, R, N, N>(dh, rows, s.panels + panel * depth * N * L, depth, Same());
  for (int r = 0; r < R; ++r) {
    const int64_t b = s.rows[active[r]], at = s.t * shape.batch + b;
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) {
      const int64_t u = (panel * N + v) * L;
      if (u >= H) break;
      AdjointUnit<T> unit = {};
      unit.carry = s.f.dh0 + b * H + u;
      unit.n = H - u;
      if (s.t < 0) {
        store(unit.carry, dh[r][v], unit.n);
        continue;
      }
      const int64_t before = s.schedule.before(shape, at);
      unit.h = (before < 0 ? s.f.h0 + b * H : s.f.ys + before * H) + u;
      unit.y = s.f.ys + at * H + u;
      unit.gates = s.f.gates + at * C::kSaved * H + u;
      unit.hidden = H;
      unit.relu = s.f.cell == CellKind::rnn_relu;
      if (s.f.cs) {
        unit.c = s.f.cs + at * H + u;
        unit.c_previous = (before < 0 ? s.f.c0 + b * H : s.f.cs + before * H) + u;
        unit.dc = s.f.dc0 + b * H + u;
      }
      C::template adjoint<T>(dh[r][v], unit);
    }
  }
}

template <class T, class C, int N>
void walk_adjoint(const Adjoint<T>& f, const Schedule& schedule, const Group& group, const T* packed,
                  Workspace& work, int member) {
  const Shape& s = f.shape;
  const int64_t depth = C::kGates * s.hidden, width = N * kLanes<T>;
  const int64_t panels = ceil_div(s.hidden, width);
  const int64_t p0 = panels * group.part / group.parts, p1 = panels * (group.part + 1) / group.parts;
  const int64_t u0 = min(p0 * width, s.hidden), u1 = min(p1 * width, s.hidden);
  const T** next = static_cast<const T**>(private_memory(work, member, group.size * int64_t(sizeof(T*))));
  int32_t* active = static_cast<int32_t*>(private_memory(work, member, group.size * 4));
  T* zeros = static_cast<T*>(private_memory(work, member, depth * int64_t(sizeof(T))));
  copy<T>(zeros, nullptr, depth);
  for (int64_t j = 0; j < group.size; ++j) {
    const int64_t b = group.rows[j];
    next[j] = zeros;
    copy(f.dh0 + b * s.hidden + u0, f.d_h + b * s.hidden + u0, u1 - u0);
    if (f.dc0) copy(f.dc0 + b * s.hidden + u0, f.d_c + b * s.hidden + u0, u1 - u0);
  }

  AdjointStep<T> step{f, schedule, packed, group.rows, next, 0};
  auto run = [&](int64_t count) {
    for (int64_t p = p0; p < p1; ++p)
      for_blocks(count, [&](auto r, int64_t at) { adjoint_block<T, C, r(), N>(step, p, active + at); });
  };
  for (int64_t i = s.steps - 1; i >= 0; --i) {
    const int64_t t = step.t = s.time(i);
    const int64_t count = group.at(t, active);
    run(count);
    for (int64_t j = 0; j < count; ++j)
      next[active[j]] = f.gates + (t * s.batch + group.rows[active[j]]) * C::kSaved * s.hidden;
    if (group.parts > 1) wait_for_all(work);
  }
  step.t = -1;
  for (int64_t j = 0; j < group.size; ++j) active[j] = int32_t(j);
  run(group.size);
}

// out[r][columns of the panel] += sum over k of a[k][r] * panel[k].
template <class T, int R, int N>
__attribute__((noinline)) void add_outer_products(T* out, int64_t stride, int64_t columns, const T* a,
                                                  const T* panel, int64_t depth) {
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
      store(p, load(p, n) + sum[r][v], n);
    }
}

constexpr int64_t kDepth = 128;  // steps whose outer products are summed before they are stored

// Gradients of one weight matrix (rows 0 .. G H, `columns` of them) and of its bias, for the rows
// [m0, m1): the sum over all steps of the cotangents' column m (from `offset` on) times the input.
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
void add_rows(const WeightGradient<T>& g, int64_t m, int64_t count, Source cotangents, T* a) {
  T total[R] = {};
  for (int64_t k = 0; k < count; ++k) {
    const T* from = cotangents(k);
    for (int r = 0; r < R; ++r) total[r] += a[k * R + r] = from[r];
  }
  if (g.db)
    for (int r = 0; r < R; ++r) g.db[m + r] += total[r];
  with_vectors(panel_vectors<T>(g.columns), [&](auto n) {
    const int64_t width = n() * kLanes<T>;
    for (int64_t p = 0; p * width < g.columns; ++p)
      add_outer_products<T, R, n()>(g.dw + m * g.columns + p * width, g.columns, g.columns - p * width, a,
                                    g.panels + p * kDepth * width, count);
  });
}

template <class T, class C>
void weight_gradients(const Adjoint<T>& f, const Plan& plan, const Schedule& schedule, Workspace& work,
                      int member) {
  const Shape& s = f.shape;
  const int64_t rows = C::kGates * s.hidden, H = s.hidden;
  const int64_t m0 = rows * member / plan.members, m1 = rows * (member + 1) / plan.members;
  auto padded = [](int64_t n) { return n + 4 * kLanes<T>; };
  auto space = [&](int64_t n) {
    return static_cast<T*>(private_memory(work, member, n * int64_t(sizeof(T))));
  };
  const WeightGradient<T> ih{f.dw_ih, f.db_ih, s.inputs, space(kDepth * padded(s.inputs))};
  const WeightGradient<T> hh{f.dw_hh, f.db_hh, H, space(kDepth * padded(H))};
  T* a = space(kDepth * kRows);
  const WeightGradient<T>* both[] = {&ih, &hh};
  for (const WeightGradient<T>* g : both) {
    copy<T>(g->dw + m0 * g->columns, nullptr, (m1 - m0) * g->columns);
    if (g->db) copy<T>(g->db + m0, nullptr, m1 - m0);
  }
  for (int64_t from = 0; from < schedule.count; from += kDepth) {
    const int64_t count = min(kDepth, schedule.count - from);
    auto step = [&](int64_t k) { return schedule.steps ? int64_t(schedule.steps[from + k]) : from + k; };
    pack_inputs(ih, count, [&](int64_t k) { return f.x + step(k) * s.inputs; });
    pack_inputs(hh, count, [&](int64_t k) {
      const int64_t at = step(k), before = schedule.before(s, at);
      return before < 0 ? f.h0 + at % s.batch * H : f.ys + before * H;
    });
    // The GRU's third gate has two cotangents: of W_hn h + b_hn, and after it of W_in x + b_in.
    const int64_t third = C::kSaved > C::kGates ? 2 * H : rows;
    auto add = [&](const WeightGradient<T>& g, int64_t begin, int64_t end, int64_t shift) {
      if (end <= begin) return;
      for_blocks(end - begin, [&](auto r, int64_t at) {
        const int64_t m = begin + at;
        add_rows<T, r()>(g, m, count, [&](int64_t k) { return f.gates + step(k) * C::kSaved * H + m + shift; }, a);
      });
    };
    add(ih, m0, min(m1, third), 0);
    add(ih, third > m0 ? third : m0, m1, H);
    add(hh, m0, m1, 0);
  }
}

template <class T, class C, int N, int R>
__attribute__((noinline)) void input_block(const Adjoint<T>& f, const T* panels, int64_t panel,
                                           const int64_t (&at)[kRows]) {
  constexpr int L = kLanes<T>;
  const int64_t H = f.shape.hidden, inputs = f.shape.inputs;
  const int64_t first = C::kSaved > C::kGates ? 2 * H : C::kGates * H;
  const T* own = panels + panel * C::kGates * H * N * L;
  V<T> sum[R][N] = {};
  const T* rows[R];
  for (int r = 0; r < R; ++r) rows[r] = f.gates + at[r] * C::kSaved * H;
  multiply<T, R, N, N>(sum, rows, own, first, Same());
  if constexpr (C::kSaved > C::kGates) {
    for (int r = 0; r < R; ++r) rows[r] += 3 * H;
    multiply<T, R, N, N>(sum, rows, own + first * N * L, H, Same());
  }
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < N; ++v) {
      const int64_t i = (panel * N + v) * L;
      if (i < inputs) store(f.dx + at[r] * inputs + i, sum[r][v], inputs - i);
    }
}

template <class T, class C>
void input_gradient(const Adjoint<T>& f, const Plan& plan, const Schedule& schedule, Workspace& work,
                    int member) {
  const Shape& s = f.shape;
  const T* panels = static_cast<const T*>(shared_memory(work, kInputBackPanels));
  const int64_t all = s.steps * s.batch, members = plan.members;
  if (f.mask)
    for (int64_t i = all * member / members; i < all * (member + 1) / members; ++i)
      if (!f.mask[i]) copy<T>(f.dx + i * s.inputs, nullptr, s.inputs);
  // Runs of steps small enough that their cotangents stay in the cache while the panels pass.
  constexpr int64_t length = 4 * kRows;
  const int64_t runs = ceil_div(schedule.count, length);
  with_vectors(panel_vectors<T>(s.inputs), [&](auto n) {
    constexpr int N = n();
    const int64_t count = ceil_div(s.inputs, N * kLanes<T>);
    for (int64_t run = runs * member / members; run < runs * (member + 1) / members; ++run)
      for (int64_t p = 0; p < count; ++p)
        for_blocks(min(length, schedule.count - run * length), [&](auto r, int64_t at) {
          int64_t steps[kRows];
          for (int i = 0; i < r(); ++i) {
            const int64_t k = run * length + at + i;
            steps[i] = schedule.steps ? schedule.steps[k] : k;
          }
          input_block<T, C, N, r()>(f, panels, p, steps);
        });
  });
}

template <class T, class C>
void run_adjoint(const Adjoint<T>& f, const Plan& plan, const Schedule& schedule, Workspace& work,
                 int member) {
  const Shape& s = f.shape;
  const int64_t depth = C::kGates * s.hidden;
  auto width = [](int64_t columns) { return panel_vectors<T>(columns) * kLanes<T>; };
  T* back = static_cast<T*>(shared_memory(work, kBackPanels));
  pack_plain(back, f.w_hh, depth, s.hidden, width(s.hidden), member, plan.members);
  if (f.dx)
    pack_plain(static_cast<T*>(shared_memory(work, kInputBackPanels)), f.w_ih, depth, s.inputs,
               width(s.inputs), member, plan.members);
  wait_for_all(work);
  with_vectors(panel_vectors<T>(s.hidden), [&](auto n) {
    for_groups(plan, schedule, f.mask, s.batch, member, [&](const Group& group) {
      walk_adjoint<T, C, n()>(f, schedule, group, back, work, member);
    });
  });
  if (!f.dw_hh && !f.dx) return;
  wait_for_all(work);
  if (f.dw_hh) weight_gradients<T, C>(f, plan, schedule, work, member);
  if (f.dx) input_gradient<T, C>(f, plan, schedule, work, member);
}

// ------------------------------------------------------------------------------------------------
// The table
// ------------------------------------------------------------------------------------------------

template <class T>
void forward(const Forward<T>& f, const Plan& plan, const Schedule& schedule, Workspace& work, int member) {
  with_cell<T>(f.cell, f.shape.hidden,
               [&](auto cell) { run_forward<T, decltype(cell)>(f, plan, schedule, work, member); });
}

template <class T>
void adjoint(const Adjoint<T>& f, const Plan& plan, const Schedule& schedule, Workspace& work, int member) {
  with_cell<T>(f.cell, f.shape.hidden,
               [&](auto cell) { run_adjoint<T, decltype(cell)>(f, plan, schedule, work, member); });
}

template <class T>
constexpr Kernels<T> kTable = {forward_memory<T>, forward<T>, adjoint_memory<T>, adjoint<T>};

}  // namespace

#define JAXRNN_TEXT(x) #x
#define JAXRNN_NAME(x) JAXRNN_TEXT(x)
#define JAXRNN_JOIN(a, b) a##b
#define JAXRNN_SYMBOL(name) JAXRNN_JOIN(build_, name)

namespace jaxrnn {
extern const Build JAXRNN_SYMBOL(JAXRNN_BUILD);
const Build JAXRNN_SYMBOL(JAXRNN_BUILD) = {JAXRNN_NAME(JAXRNN_BUILD), kRows, kTable<float>, kTable<double>};
}  // namespace jaxrnn
