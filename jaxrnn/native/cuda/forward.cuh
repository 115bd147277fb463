// The recurrence of one layer in one direction over a whole sequence.
#pragma once

#include "product.cuh"

namespace jaxrnn::cuda {

template <class F>
DEVICE void forward(const Arguments& p) {
  typedef typename F::io io;
  typedef Meeting<F> M;
  constexpr int H = F::H, GATES = F::GATES, THREAD_CELLS = F::THREAD_CELLS;
  if (CTA == p.mute) return;
  const Place<F> place(p);
  const Order order = {p.steps, p.reverse};
  const int batch = p.batch, sub_tiles = p.sub_tiles;
  const u32 *ys = (const u32*)p.ys, *h0 = (const u32*)p.h0;
  float* h_of = SMEM + F::STATES_AT;  // [sub_tiles][CELLS], and so c_of
  float* c_of = h_of + sub_tiles * F::CELLS;
  Patience patience = {p.patience, p.failed};

  if (F::K_SPLIT > 1) sync_cluster();  // nobody writes into a CTA that has not started
  Word4 w[F::BLOCKS][F::TILES];
#pragma unroll
  for (int i = 0; i < F::BLOCKS; i++)
#pragma unroll
    for (int n = 0; n < F::TILES; n++) {
      const int gate = n % F::OWN_TILES / F::UNIT_TILES, owner = n / F::OWN_TILES - place.rank;
      const int unit = place.first_unit + owner * F::UNITS + n % F::UNIT_TILES * 8 + place.fragment_row;
      const u32* at = (const u32*)p.weights + (size_t)(gate * H + unit) * F::K_WORDS + place.word + i * 16;
      w[i][n] = rounded_input<F::PRECISION>(load_constant(at));
    }
  float b_hn[THREAD_CELLS];
#pragma unroll
  for (int k = 0; k < THREAD_CELLS; k++) {
    b_hn[k] = F::CELL == GRU && p.b_hn && place.has(k) ? p.b_hn[place.unit[k]] : 0.f;
    for (int s = 0; place.has(k) && s < sub_tiles; s++) {
      const int b = place.first_row + s * F::ROWS + place.row[k];
      const size_t at = (size_t)b * H + place.unit[k];
      h_of[s * F::CELLS + place.cell_of(k)] = b < place.end_row ? p.h0_exact[at] : 0.f;
      c_of[s * F::CELLS + place.cell_of(k)] = F::CELL == LSTM && b < place.end_row ? p.c0[at] : 0.f;
    }
  }

  Chunk<F> chunks[F::CHUNKS > 1 ? 2 : 1];
  Rows<F> rows, next;
  const int first = order.step(0);
  rows.find(place, ys, h0, p.previous, batch, first, START, 0);
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
        next.find(place, ys, h0, p.previous, batch, t_next, neighbour, same_step ? s + 1 : 0);
      }
      float x[THREAD_CELLS][GATES];
      bool runs[THREAD_CELLS];
#pragma unroll
      for (int k = 0; k < THREAD_CELLS; k++) {
        const int b = place.first_row + s * F::ROWS + place.row[k], unit = place.unit[k];
        const bool here = place.has(k) && b < place.end_row;
        const int from = here && p.previous ? p.previous[(size_t)t * batch + b] : 0;
        runs[k] = here && from != HELD;
        if (here && from == START) {
          h_of[s * F::CELLS + place.cell_of(k)] = p.h0_exact[(size_t)b * H + unit];
          if (F::CELL == LSTM) c_of[s * F::CELLS + place.cell_of(k)] = p.c0[(size_t)b * H + unit];
        }
        const io* gx = (const io*)p.gx + ((size_t)t * batch + b) * (GATES * H) + unit;
#pragma unroll
        for (int g = 0; g < GATES; g++) x[k][g] = here ? get(gx + g * H) : 0.f;
        if (here && (unit & 7) == 0 && order.has(i + Order::AHEAD)) {
          const size_t ahead = (size_t)order.step(i + Order::AHEAD) * batch + b;
#pragma unroll
          for (int g = 0; g < GATES; g++) prefetch((const io*)p.gx + ahead * (GATES * H) + g * H + unit);
          prefetch((const io*)p.ys + ahead * H + unit);
          if (p.previous) prefetch(p.previous + ahead);
        }
      }

      typename Chunk<F>::Sums sums;
      clear<F>(sums);
      multiply_rows<F>(sums, chunks, w, rows, place.word, patience);
      rows = next;
      if (sub_tiles > 1 && more) chunks[0].load(rows, place.word);  // on their way, or here
      const float* parts = M::meet(sums, place, SMEM, turn);

#pragma unroll
      for (int k = 0; k < THREAD_CELLS; k++) {
        if (!place.has(k)) continue;
        const int cell = place.cell_of(k), unit = place.unit[k];
        const int b = place.first_row + s * F::ROWS + place.row[k];
        const size_t row = (size_t)t * batch + b;
        const bool here = b < place.end_row;
        float v[GATES];
#pragma unroll
        for (int g = 0; g < GATES; g++)
          v[g] = M::sum_of(parts, place.tile[k] / F::UNIT_TILES,
                           g * F::UNIT_TILES + place.tile[k] % F::UNIT_TILES, cell, 0.f);
        float h = h_of[s * F::CELLS + cell], c = c_of[s * F::CELLS + cell], h_new = h, c_new = c, extra = 0.f;
        F::cell::forward(v, x[k], b_hn[k], h_new, c_new, extra);
        if (runs[k]) {
          h = canonical(h_new);
          c = c_new;
        }
        const float y = runs[k] ? h : 0.f;
        if (F::IS_BF16) {  // a word holds two units, of neighbouring lanes
          const float other = of_neighbour(y);
          u32* at = (u32*)p.ys + row * F::K_WORDS + (unit >> 1);
          if (here && !(unit & 1)) store_shared_result(at, pack_bf16(y, other));
        } else if (here) {
          store_shared_result((u32*)p.ys + row * F::K_WORDS + unit, bits_of(y));
        }
        h_of[s * F::CELLS + cell] = h;
        c_of[s * F::CELLS + cell] = c;
        if (GATES > 1 && p.gates && here) {
          io* gates = (io*)p.gates + row * p.gates_stride + unit;
#pragma unroll
          for (int g = 0; g < GATES; g++) put(gates + g * H, v[g]);
          if (F::CELL == GRU) put(gates + GATES * H, extra);
          if (F::CELL == LSTM) p.cs[row * H + unit] = extra;
        }
      }
    }
  }
#pragma unroll
  for (int k = 0; k < THREAD_CELLS; k++)
    for (int s = 0; place.has(k) && s < sub_tiles; s++) {
      const int b = place.first_row + s * F::ROWS + place.row[k];
      if (b >= place.end_row) continue;
      const size_t at = (size_t)b * H + place.unit[k];
      p.h_last[at] = h_of[s * F::CELLS + place.cell_of(k)];
      if (F::CELL == LSTM) p.c_last[at] = c_of[s * F::CELLS + place.cell_of(k)];
    }
}

}  // namespace jaxrnn::cuda
