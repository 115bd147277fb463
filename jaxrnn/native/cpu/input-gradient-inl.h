// Gradient of the inputs from the cotangents of all projections.
#pragma once

#include "cell-inl.h"
#include "group-inl.h"
#include "narrow-inl.h"

namespace {

using namespace jaxrnn;

enum { kBackPanels, kInputBackPanels, kProjectionBackPanels, kRoundedCotangents };

// The cotangents of W_ih x + b_ih at a step, in bfloat16. The GRU's of the third gate are its
// fourth.
template <class T>
void copy_cotangents(const Adjoint<T>& f, int64_t at, Pair* to) {
  const int64_t H = f.shape.hidden, saved = saved_gates(f.cell), part = row_size<Pair>(H);
  for (int64_t g = 0; g < gates(f.cell); ++g) {
    const T* from = f.gates + (at * saved + (g == 2 && saved > gates(f.cell) ? 3 : g)) * H;
    narrow(to + g * part, from, H);
  }
}

// Cotangents of the inputs of `block` steps, for the columns of one panel; `cotangents` of the
// steps in bfloat16, or null.
template <class T, class P>
__attribute__((noinline)) void input_block(const Adjoint<T>& f, const P* panels, int64_t column,
                                           int vectors, const int64_t* at, int block,
                                           const P* cotangents) {
  constexpr int L = kLanes<T>;
  const int64_t H = f.shape.hidden, inputs = f.shape.inputs;
  const int64_t count = gates(f.cell) * row_size<P>(H), saved = saved_gates(f.cell) * H;
  const P* own = panels + column * count;
  V<T> sums[kRows * 4];
  const P* rows[kRows] = {};
  for (int i = 0; i < block * vectors; ++i) sums[i] = V<T>{};
  if constexpr (kNarrow<P>) {
    for (int r = 0; r < block; ++r) rows[r] = cotangents + r * count;
    multiply<P>(sums, rows, block, own, vectors, count);
  } else {
    for (int r = 0; r < block; ++r) rows[r] = f.gates + at[r] * saved;
    // The GRU's cotangents of W_in x + b_in are not adjacent to those of the first two gates.
    const int64_t first = saved > count ? 2 * H : count;
    for (int64_t done = 0, depth = first; done < count; done += depth, depth = count - first) {
      if (done > 0)
        for (int r = 0; r < block; ++r) rows[r] += 3 * H;
      multiply<P>(sums, rows, block, own + done * vectors * L, vectors, depth);
    }
  }
  for (int r = 0; r < block; ++r)
    for (int v = 0; v < vectors; ++v) {
      const int64_t i = column + v * L;
      if (i < inputs) store(f.dx + at[r] * inputs + i, sums[r * vectors + v], inputs - i);
    }
}

template <class T, class P>
void input_gradient(const Adjoint<T>& f, const Plan& plan, const Schedule& schedule,
                    Workspace& work, int member) {
  const Shape& s = f.shape;
  const P* panels = static_cast<const P*>(shared_memory(work, kInputBackPanels));
  const int64_t all = s.steps * s.batch, members = plan.members;
  if (f.mask)
    for (int64_t i = all * member / members; i < all * (member + 1) / members; ++i)
      if (!f.mask[i]) copy<T>(f.dx + i * s.inputs, nullptr, s.inputs);
  // The runs of steps are short enough that their cotangents stay in the cache for all panels.
  constexpr int64_t length = 4 * kRows;
  const int64_t runs = ceil_div(schedule.count, length),
                size = gates(f.cell) * row_size<P>(s.hidden);
  const int vectors = panel_vectors<T>(s.inputs);
  P* cotangents = nullptr;
  if constexpr (kNarrow<P>)
    cotangents = static_cast<P*>(private_memory(work, member, length * size * int64_t(sizeof(P))));
  for (int64_t run = runs * member / members; run < runs * (member + 1) / members; ++run) {
    const int64_t count = min(length, schedule.count - run * length);
    int64_t steps[length];
    for (int64_t i = 0; i < count; ++i) {
      const int64_t k = run * length + i;
      steps[i] = schedule.steps ? schedule.steps[k] : k;
      if constexpr (kNarrow<P>) copy_cotangents(f, steps[i], cotangents + i * size);
    }
    for (int64_t column = 0; column < s.inputs; column += vectors * kLanes<T>)
      for_blocks(count, [&](int rows, int64_t at) {
        input_block<T, P>(f, panels, column, vectors, steps + at, rows,
                          kNarrow<P> ? cotangents + at * size : nullptr);
      });
  }
}

}  // namespace
