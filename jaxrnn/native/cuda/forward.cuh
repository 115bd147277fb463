// The recurrence of one layer in one direction over a whole sequence.
#pragma once

#include "product.cuh"

namespace jaxrnn::cuda {

// What the cell of one turn needs besides the products, loaded a turn before.
template <class F>
struct Inputs {
  typedef typename F::io io;
  io x[F::GATES];
  int from;  // of a ragged batch: the step that the row continues, or one of Steps

  DEVICE void look_up(const Arguments& p, bool here, int row) {
    if (F::IS_RAGGED) from = here ? p.previous[row] : HELD;
  }
  DEVICE bool starts() const { return from == START || from == RESET; }
  DEVICE void load(const Arguments& p, bool here, int row, int unit) {
    const io* gx = row_of<F::GATES * F::H>((const io*)p.gx, row) + unit;
#pragma unroll
    for (int g = 0; g < F::GATES; g++) x[g] = here ? gx[g * F::H] : io(0);
  }
  static DEVICE void prefetch_row(const Arguments& p, int row, int unit) {
#pragma unroll
    for (int g = 0; g < F::GATES; g++) prefetch(row_of<F::GATES * F::H>((const io*)p.gx, row) + g * F::H + unit);
    prefetch(row_of<F::H>((const io*)p.ys, row) + unit);
    if (F::IS_RAGGED) prefetch(p.previous + row);
  }
};

template <class F>
DEVICE void forward(const Arguments& p) {
  typedef typename F::io io;
  typedef Meeting<F> M;
  constexpr int H = F::H, GATES = F::GATES, THREAD_CELLS = F::THREAD_CELLS;
  if (CTA == p.mute) return;
  const Place<F> place(p);
  const Order order = {p.steps, p.sub_tiles, p.reverse};
  const int batch = p.batch, sub_tiles = p.sub_tiles;
  const u32 *ys = (const u32*)p.ys, *h0 = (const u32*)p.h0;
  float* h_of = SMEM + F::STATES_AT;  // [sub_tiles][CELLS], and so c_of
  float* c_of = h_of + sub_tiles * F::CELLS;
  Patience patience = {p.patience, p.failed};

  if (F::K_SPLIT > 1) sync_cluster();  // nobody writes into a CTA that has not started
  Word4 w[F::BLOCKS][F::HELD];
  load_weights<F>(w, place, (const u32*)p.weights);
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
  Rows<F> rows;
  Inputs<F> inputs[THREAD_CELLS], ahead[THREAD_CELLS];  // of `ahead` the index alone
  const auto look_up = [&](Turn turn) {
    if (!F::IS_RAGGED || !order.has(turn.i)) return;
    const int t = order.step(turn.i);
    rows.look_up(place, p.previous, batch, t, turn.s);
#pragma unroll
    for (int k = 0; k < THREAD_CELLS; k++)
      ahead[k].look_up(p, place.is_here(k, turn.s), t * batch + place.row_of_batch(k, turn.s));
  };
  const auto load = [&](Turn turn) {
#pragma unroll
    for (int k = 0; k < THREAD_CELLS; k++) {
      const int b = place.row_of_batch(k, turn.s), unit = place.unit[k];
      const bool here = place.is_here(k, turn.s);
      inputs[k].load(p, here, order.step(turn.i) * batch + b, unit);
      if (F::IS_RAGGED) inputs[k].from = ahead[k].from;
      if (here && (unit & 7) == 0 && order.has(turn.i + Order::AHEAD))
        Inputs<F>::prefetch_row(p, order.step(turn.i + Order::AHEAD) * batch + b, unit);
      if (F::IS_RAGGED && inputs[k].starts()) {
        const int cell = turn.s * F::CELLS + place.cell_of(k), initial = initial_row(inputs[k].from, b, batch);
        h_of[cell] = row_of<H>(p.h0_exact, initial)[unit];
        if (F::CELL == LSTM) c_of[cell] = row_of<H>(p.c0, initial)[unit];
      }
    }
  };

  Turn now = {0, 0};
  look_up(now);
  rows.find(place, ys, h0, batch, START, 0);
  if (order.has(0)) load(now);
  look_up(order.after(now));
  if (sub_tiles > 1) chunks[0].load(rows, 0);
  for (int flip = 0; order.has(now.i); flip ^= 1) {
    // Nothing but the product stands between another CTA's result and this one's.
    if (sub_tiles == 1) chunks[0].load(rows, 0);
    typename Chunk<F>::Sums sums;
    clear<F>(sums);
    multiply_rows<F>(sums, chunks, w, rows, patience);
    const Turn next = order.after(now);
    const bool more = order.has(next.i);
    if (sub_tiles > 1 && more) {
      rows.find(place, ys, h0, batch, order.before(next.i), next.s);
      chunks[0].load(rows, 0);  // on their way, or here
    }
    const float* parts = M::meet(sums, place, SMEM, flip);

    const int t = order.step(now.i);
#pragma unroll
    for (int k = 0; k < THREAD_CELLS; k++) {
      if (!place.has(k)) {
        let_idle_warps_go<F>(true);
        continue;
      }
      const int cell = now.s * F::CELLS + place.cell_of(k), unit = place.unit[k];
      const int row = t * batch + place.row_of_batch(k, now.s);
      const bool here = place.is_here(k, now.s), runs = here && (!F::IS_RAGGED || inputs[k].from != HELD);
      float v[GATES], x[GATES];
#pragma unroll
      for (int g = 0; g < GATES; g++) {
        v[g] = M::sum_of(parts, place.tile[k] / F::UNIT_TILES,
                         g * F::UNIT_TILES + place.tile[k] % F::UNIT_TILES, place.cell_of(k), 0.f);
        x[g] = get(&inputs[k].x[g]);
      }
      float h = h_of[cell], c = c_of[cell], h_new = h, c_new = c, extra = 0.f;
      F::cell::forward(v, x, b_hn[k], h_new, c_new, extra);
      if (runs) {
        h = canonical(h_new);
        c = c_new;
      }
      const float y = runs ? h : 0.f;
      if (F::IS_BF16) {  // a word holds two units, of neighbouring lanes
        const float other = shuffle_xor(y, 1);
        u32* at = row_of<F::K_WORDS>((u32*)p.ys, row) + (unit >> 1);
        if (here && !(unit & 1)) store_shared_result(at, pack_bf16(y, other));
      } else if (here) {
        store_shared_result(row_of<F::K_WORDS>((u32*)p.ys, row) + unit, bits_of(y));
      }
      let_idle_warps_go<F>(false);
      h_of[cell] = h;
      c_of[cell] = c;
      if (GATES > 1 && p.gates && here) {
        io* gates = row_of<4 * H>((io*)p.gates, row) + unit;
#pragma unroll
        for (int g = 0; g < GATES; g++) put(gates + g * H, v[g]);
        if (F::CELL == GRU) put(gates + GATES * H, extra);
        if (F::CELL == LSTM) row_of<H>(p.cs, row)[unit] = extra;
      }
    }

    // While the results are on their way to the others: what the next turns need.
    if (more) {
      if (sub_tiles == 1) rows.find(place, ys, h0, batch, t, 0);
      load(next);
      look_up(order.after(next));
    }
    now = next;
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
