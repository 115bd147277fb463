// Arguments of the kernels, and the table of kernels that each build of kernel.cc exports.
//
// Shapes, row-major: x (T, B, I), w_ih (G H, I), w_hh (G H, H), biases (G H), states (B, H),
// mask (T, B), ys (T, B, H). PyTorch's gate order. A null pointer stands for an absent array. With
// a projection w_hr (P, H), h and its outputs have P elements instead of H, and w_hh is (G H, P).
// A mask holds 0 for no step, 1 for a step, and `kReset` for a step that starts from h_initial and
// c_initial (B, H) instead of the step before.
#pragma once

#include <cstdint>

namespace jaxrnn {

constexpr uint8_t kReset = 2;

enum class CellKind : int32_t { rnn_tanh = 0, rnn_relu = 1, lstm = 2, gru = 3 };

// The recurrence runs over t = 0 .. T-1, or from the last to the first.
struct Shape {
  int64_t steps, batch, inputs, hidden;
  bool reverse = false;
  int64_t projected = 0;  // P, or 0 without a projection
  int64_t outputs() const { return projected ? projected : hidden; }     // size of h
  int64_t time(int64_t i) const { return reverse ? steps - 1 - i : i; }  // t of the i-th step
};

constexpr int64_t gates(CellKind cell) {
  return cell == CellKind::lstm ? 4 : cell == CellKind::gru ? 3 : 1;
}

// Gates of each step saved for the backward pass: the LSTM's i, f, g, o; the GRU's r, z, n and W_hn
// h + b_hn. The backward pass overwrites them with the cotangents of the projections.
constexpr int64_t saved_gates(CellKind cell) {
  return cell == CellKind::lstm || cell == CellKind::gru ? 4 : 1;
}

template <class T>
struct Forward {
  CellKind cell;
  Shape shape;
  const T *x, *w_ih, *w_hh, *b_ih, *b_hh, *h0, *c0;
  const uint8_t* mask;
  T *ys, *h_last, *c_last;
  T *saved, *cs;  // (T, B, 4 H) and (T, B, H); null in inference
  const T *h_initial = nullptr, *c_initial = nullptr, *w_hr = nullptr;
  bool narrow = false;  // products of values rounded to bfloat16, for float without a projection
};

template <class T>
struct Adjoint {
  CellKind cell;
  Shape shape;
  const T *x, *w_ih, *w_hh, *h0, *c0;
  const uint8_t* mask;
  const T *ys, *cs;
  const T *d_ys, *d_h, *d_c;
  T* gates;  // in: saved gates; out: cotangents of the projections
  // Null if not needed: dx, and all gradients of the weights together.
  T *dx, *dw_ih, *dw_hh, *db_ih, *db_hh, *dh0, *dc0;
  const T *h_initial = nullptr, *c_initial = nullptr;
  T *dh_initial = nullptr, *dc_initial = nullptr;
  // With a projection: the cotangents of each h (T, B, P), which may overwrite d_ys, and o tanh(c)
  // (T, B, H), which may overwrite cs.
  T *dh = nullptr, *m = nullptr;
  const T* w_hr = nullptr;
  T* dw_hr = nullptr;
  bool narrow = false;
};

// Weights (depth, columns), or transposed (columns, depth), packed for products: `packed_size`
// elements.
template <class T>
struct Packing {
  int64_t depth, columns;
  bool transposed;
  const T* w;
  T* panels;
};

// y (rows, columns) = a (rows, depth) times packed weights, plus the bias (columns) and x (rows,
// inputs) times other packed weights, where they are not null.
template <class T>
struct Matmul {
  int64_t rows, depth, columns;
  const T *a, *panels, *bias;
  T* y;
  int64_t inputs;
  const T *x, *input_panels;
};

// dw (features, columns) = a^T b, and db (features), the sum of a's rows, if it is not null; a has
// `rows` rows of `features`, b as many of `columns`.
template <class T>
struct OuterProducts {
  int64_t rows, features, columns;
  const T *a, *b;
  T *dw, *db;
};

// to = n elements rounded to bfloat16.
struct Rounding {
  int64_t n;
  const float* from;
  uint16_t* to;
};

// Elements of packed weights: the widest panel of every build has 64 columns.
constexpr int64_t packed_size(int64_t depth, int64_t columns) {
  return depth * ((columns + 63) / 64 * 64);
}

// Values of `Schedule::previous` that name a given state instead of a step.
constexpr int32_t kFromCarry = -1, kFromInitial = -2;

// Sizes of the first two caches of a core, at least on every processor with AVX2.
constexpr int64_t kFirstLevel = 32 << 10, kSecondLevel = 512 << 10;

// How `members` threads share the work. Either each walks every `members`-th of `groups` sets of
// rows, or up to `together` of them walk one set: each owns some of the units, and they wait for
// each other after every step; then there is only one set. The division of rows into groups and
// blocks, and that of units into panels, determine the rounding of sums, so neither may depend on
// the number of threads that arrived in time.
struct Plan {
  int groups, together;
  int members = 1;
  int parts() const { return members < together ? members : together; }
};

// The rows of the batch in the order of their groups and, with a mask, the steps that exist. A step
// has the index t B + b.
struct Schedule {
  const int32_t* order;     // (B)
  const int32_t* begin;     // groups + 1
  const int32_t* previous;  // (T B): the row's step before this one, or a negative kFrom...; null
                            // without a mask
  const int32_t* steps;     // the steps where the mask is true; null without a mask
  int64_t count;            // number of steps

  int64_t before(const Shape& s, int64_t at) const {
    if (previous) return previous[at];
    const int64_t other = s.reverse ? at + s.batch : at - s.batch;
    return other >= 0 && other < s.steps * s.batch ? other : kFromCarry;
  }

  // State that enters step `at` of row b: that of the step before, or a given one.
  template <class T>
  const T* entering(const Shape& s, int64_t at, int64_t b, int64_t size, const T* of_steps,
                    const T* carry, const T* initial) const {
    const int64_t from = before(s, at);
    if (from >= 0) return of_steps + from * size;
    return (from == kFromInitial ? initial : carry) + b * size;
  }
};

// Memory and barriers shared by the members of one call. They are out of line because kernel.cc is
// built for several instruction sets, which must not share inline functions.
class Workspace;
void* shared_memory(Workspace&, int slot);
void* private_memory(Workspace&, int member, int64_t bytes);  // 64-byte aligned
void wait_for_all(Workspace&);
void wait_for_group(Workspace&);  // for those that walk one set of rows together

constexpr int kSlots = 6;
constexpr int64_t kDirectRows = 32;  // T B up to which `direct` may be called

template <class T>
struct Kernels {
  // Bytes that each shared slot must have.
  void (*forward_memory)(const Forward<T>&, const Plan&, int64_t (&bytes)[kSlots]);
  void (*forward)(const Forward<T>&, const Plan&, const Schedule&, Workspace&, int member);
  // The forward pass of at most kDirectRows rows, without a mask, a projection or packed
  // weights.
  void (*direct)(const Forward<T>&, Workspace&, int member, int members);
  void (*adjoint_memory)(const Adjoint<T>&, const Plan&, int64_t (&bytes)[kSlots]);
  void (*adjoint)(const Adjoint<T>&, const Plan&, const Schedule&, Workspace&, int member);
  void (*pack)(const Packing<T>&);
  void (*matmul)(const Matmul<T>&, int member, int members);
  void (*outer)(const OuterProducts<T>&, Workspace&, int member, int members);
};

// The kernels for calls that are `narrow`, compiled for an instruction set of their own. It flushes
// subnormal numbers to 0.
struct NarrowKernels {
  void (*forward_memory)(const Forward<float>&, const Plan&, int64_t (&bytes)[kSlots]);
  void (*forward)(const Forward<float>&, const Plan&, const Schedule&, Workspace&, int member);
  void (*adjoint_memory)(const Adjoint<float>&, const Plan&, int64_t (&bytes)[kSlots]);
  void (*adjoint)(const Adjoint<float>&, const Plan&, const Schedule&, Workspace&, int member);
  void (*round)(const Rounding&);
};

// The table of a build is build_avx512, for example.
#define JAXRNN_TEXT(x) #x
#define JAXRNN_NAME(x) JAXRNN_TEXT(x)
#define JAXRNN_JOIN(a, b) a##b
#define JAXRNN_SYMBOL(name) JAXRNN_JOIN(build_, name)

struct Build {
  const char* name;
  int rows;  // rows in one block of the product
  Kernels<float> f32;
  Kernels<double> f64;
};

}  // namespace jaxrnn
