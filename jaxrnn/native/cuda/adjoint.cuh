// The adjoint of `forward`: from the cotangents of its results, those of W_hh h + b_hh at every step.
//
// Steps are taken in the opposite order. The cotangent of the state after a step comes from the step
// that continues it, through W_hh and past it; a step that starts from the initial state leaves its own
// part in d_h0 and d_c0. What comes to d_h0 through W_hh is a product over those steps, made outside.
#pragma once

#include "product.cuh"

namespace jaxrnn::cuda {

// What the cell of one step needs of the forward pass.
template <class F>
struct Saved {
  float gates[F::GATES], extra, before, dy;
  bool runs, starts;

  DEVICE void load(const Arguments& p, bool here, int t, int before_dense, int b, int unit) {
    typedef typename F::io io;
    constexpr int H = F::H;
    const size_t row = (size_t)t * p.batch + b;
    const int from = !here ? HELD : p.previous ? p.previous[row] : before_dense;
    runs = from != HELD;
    starts = from == START && p.previous;
    const io* saved = (const io*)p.gates + row * p.gates_stride + unit;
#pragma unroll
    for (int g = 0; g < F::GATES; g++) gates[g] = runs ? get(saved + g * H) : 0.f;
    dy = runs ? get((const io*)p.d_ys + row * H + unit) : 0.f;
    extra = before = 0.f;
    const size_t at_start = (size_t)b * H + unit, at_before = ((size_t)from * p.batch + b) * H + unit;
    if (F::CELL == LSTM) {
      extra = runs ? p.cs[row * H + unit] : 0.f;
      before = !runs ? 0.f : from == START ? p.c0[at_start] : p.cs[at_before];
    } else if (F::CELL == GRU) {
      extra = runs ? get(saved + F::GATES * H) : 0.f;
      before = !runs ? 0.f : from == START ? p.h0_exact[at_start] : get((const io*)p.ys + at_before);
    }
  }
  static DEVICE void prefetch_row(const Arguments& p, size_t row, int unit) {
    typedef typename F::io io;
    constexpr int H = F::H;
#pragma unroll
    for (int g = 0; g < F::GATES; g++) {
      prefetch((const io*)p.gates + row * p.gates_stride + g * H + unit);
      prefetch((const io*)p.dg + row * (F::GATES * H) + g * H + unit);
    }
    prefetch((const io*)p.d_ys + row * H + unit);
    if (F::CELL == LSTM) prefetch(p.cs + row * H + unit);
    if (F::CELL == GRU) {
      prefetch((const io*)p.gates + row * p.gates_stride + F::GATES * H + unit);
      prefetch((const io*)p.ys + row * H + unit);
    }
    if (p.previous) {
      prefetch(p.previous + row);
      prefetch(p.following + row);
    }
  }
};

template <class F>
DEVICE void adjoint(const Arguments& p) {
  typedef typename F::io io;
  typedef Meeting<F> M;
  constexpr int H = F::H, GATES = F::GATES, THREAD_CELLS = F::THREAD_CELLS;
  if (CTA == p.mute) return;
  const Place<F> place(p);
  const Order order = {p.steps, !p.reverse};
  const int batch = p.batch, sub_tiles = p.sub_tiles;
  const u32* dg = (const u32*)p.dg;
  float* pass_of = SMEM + F::STATES_AT;  // [sub_tiles][CELLS]: what of dh passes a step by; and so dc_of
  float* dc_of = pass_of + sub_tiles * F::CELLS;
  Patience patience = {p.patience, p.failed};

  if (F::K_SPLIT > 1) sync_cluster();  // nobody writes into a CTA that has not started
  Word4 w[F::BLOCKS][F::TILES];
#pragma unroll
  for (int i = 0; i < F::BLOCKS; i++)
#pragma unroll
    for (int n = 0; n < F::TILES; n++) {
      const int owner = n / F::OWN_TILES - place.rank;
      const int unit = place.first_unit + owner * F::UNITS + n % F::OWN_TILES * 8 + place.fragment_row;
      const u32* at = (const u32*)p.weights + (size_t)unit * F::K_WORDS + place.word + i * 16;
      w[i][n] = rounded_input<F::PRECISION>(load_constant(at));
    }
#pragma unroll
  for (int k = 0; k < THREAD_CELLS; k++)
    for (int s = 0; place.has(k) && s < sub_tiles; s++) {
      const int b = place.first_row + s * F::ROWS + place.row[k], cell = s * F::CELLS + place.cell_of(k);
      const size_t at = (size_t)b * H + place.unit[k];
      const bool here = b < place.end_row;
      pass_of[cell] = here ? p.d_h_last[at] : 0.f;
      dc_of[cell] = F::CELL == LSTM && here ? p.d_c_last[at] : 0.f;
      if (here) p.d_h0[at] = 0.f;
      if (F::CELL == LSTM && here) p.d_c0[at] = 0.f;
    }

  Chunk<F> chunks[F::CHUNKS > 1 ? 2 : 1];
  Rows<F> rows, next;
  rows.find(place, dg, nullptr, p.following, batch, order.step(0), START, 0);
  if (sub_tiles > 1) chunks[0].load(rows, place.word);
  int turn = 0;
  for (int i = 0; order.has(i); i++) {
    const int t = order.step(i);
    for (int s = 0; s < sub_tiles; s++, turn ^= 1) {
      if (sub_tiles == 1) chunks[0].load(rows, place.word);

      // While these come: where the next rows are, and what the cells need of this step.
      const bool same_step = s + 1 < sub_tiles, more = same_step || order.has(i + 1);
      if (more) {
        const int t_next = same_step ? t : order.step(i + 1);
        const int neighbour = !same_step ? t : i > 0 ? order.step(i - 1) : START;
        next.find(place, dg, nullptr, p.following, batch, t_next, neighbour, same_step ? s + 1 : 0);
      }
      Saved<F> saved[THREAD_CELLS];
#pragma unroll
      for (int k = 0; k < THREAD_CELLS; k++) {
        const int b = place.first_row + s * F::ROWS + place.row[k], unit = place.unit[k];
        const bool here = place.has(k) && b < place.end_row;
        saved[k].load(p, here, t, order.has(i + 1) ? order.step(i + 1) : START, b, unit);
        if (here && (unit & 7) == 0 && order.has(i + Order::AHEAD))
          Saved<F>::prefetch_row(p, (size_t)order.step(i + Order::AHEAD) * batch + b, unit);
      }

      typename Chunk<F>::Sums sums;
      clear<F>(sums);
      if (i > 0) multiply_rows<F>(sums, chunks, w, rows, place.word, patience);
      rows = next;
      if (sub_tiles > 1 && more) chunks[0].load(rows, place.word);  // on their way, or here
      const float* parts = M::meet(sums, place, SMEM, turn);

#pragma unroll
      for (int k = 0; k < THREAD_CELLS; k++) {
        if (!place.has(k)) continue;
        const int cell = place.cell_of(k), unit = place.unit[k];
        const int b = place.first_row + s * F::ROWS + place.row[k];
        const size_t row = (size_t)t * batch + b, at = (size_t)b * H + unit;
        const bool here = b < place.end_row;
        float& pass_here = pass_of[s * F::CELLS + cell];
        float& dc_here = dc_of[s * F::CELLS + cell];
        const float dh =
            M::sum_of(parts, place.tile[k] / F::UNIT_TILES, place.tile[k] % F::UNIT_TILES, cell, pass_here);
        float d[GATES], pass = dh, dc = dc_here, d_gx_n = 0.f;
#pragma unroll
        for (int g = 0; g < GATES; g++) d[g] = 0.f;
        if (saved[k].runs)
          F::cell::adjoint(d, saved[k].gates, saved[k].extra, saved[k].before, dh + saved[k].dy, dc, pass, d_gx_n);
#pragma unroll
        for (int g = 0; g < GATES; g++) {
          const float v = canonical(d[g]);
          u32* to = (u32*)p.dg + row * F::K_WORDS;
          if (F::IS_BF16) {  // a word holds two units, of neighbouring lanes, who share the gates' stores
            const float other = of_neighbour(v);
            const bool odd = unit & 1;
            if (here && odd == (g >= 2))
              store_shared_result(to + ((g * H + unit) >> 1), odd ? pack_bf16(other, v) : pack_bf16(v, other));
          } else if (here) {
            store_shared_result(to + g * H + unit, bits_of(v));
          }
        }
        if (F::CELL == GRU && here) put((io*)p.d_gx_n + row * H + unit, d_gx_n);
        if (saved[k].starts) {
          p.d_h0[at] += pass;
          if (F::CELL == LSTM) p.d_c0[at] += dc;
          pass = dc = 0.f;
        }
        pass_here = pass;
        dc_here = dc;
      }
    }
  }
#pragma unroll
  for (int k = 0; k < THREAD_CELLS; k++)
    for (int s = 0; place.has(k) && s < sub_tiles; s++) {
      const int b = place.first_row + s * F::ROWS + place.row[k], cell = s * F::CELLS + place.cell_of(k);
      if (b >= place.end_row) continue;
      const size_t at = (size_t)b * H + place.unit[k];
      p.d_h0[at] += pass_of[cell];
      if (F::CELL == LSTM) p.d_c0[at] += dc_of[cell];
    }
}

}  // namespace jaxrnn::cuda
