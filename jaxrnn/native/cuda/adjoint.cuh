// The adjoint of `forward`: from the cotangents of its results, those of W_hh h + b_hh at every step.
//
// Steps are taken in the opposite order. The cotangent of the state after a step comes from the step
// that continues it, through W_hh and past it; a step that starts from an initial state leaves its own
// part in d_h0 and d_c0. What comes to d_h0 through W_hh is a product over those steps, made outside.
#pragma once

#include "product.cuh"

namespace jaxrnn::cuda {

// What the cell of one turn needs of the forward pass, loaded a turn before.
template <class F>
struct Saved {
  typedef typename F::io io;
  static constexpr int H = F::H, WIDTH = F::GATES > 1 ? 4 * H : H;
  io gates[F::GATES], hidden[2], dy;  // hidden: the GRU's W_hn h + b_hn, and the h before
  float c, c_before;
  int from;  // the step that the row continues, or one of Steps

  DEVICE void look_up(const Arguments& p, bool here, int row) {
    if (F::IS_RAGGED) from = here ? p.previous[row] : HELD;
  }
  DEVICE void load(const Arguments& p, bool here, int t, int dense, int b, int unit) {
    const int row = t * p.batch + b;
    if (!F::IS_RAGGED) from = here ? dense : HELD;
    const bool runs = from != HELD;
    const io* saved = row_of<WIDTH>((const io*)p.gates, row) + unit;
#pragma unroll
    for (int g = 0; g < F::GATES; g++) gates[g] = runs ? saved[g * H] : io(0);
    dy = runs ? row_of<H>((const io*)p.d_ys, row)[unit] : io(0);
    const int row_before = from < 0 ? initial_row(from, b, p.batch) : from * p.batch + b;
    if (F::CELL == LSTM) {
      c = runs ? row_of<H>(p.cs, row)[unit] : 0.f;
      c_before = runs ? row_of<H>(from < 0 ? p.c0 : p.cs, row_before)[unit] : 0.f;
    } else if (F::CELL == GRU) {
      hidden[0] = runs ? saved[F::GATES * H] : io(0);
      hidden[1] = runs && from >= 0 ? row_of<H>((const io*)p.ys, row_before)[unit] : io(0);
      c_before = runs && from < 0 ? row_of<H>(p.h0_exact, row_before)[unit] : 0.f;
    }
  }
  DEVICE bool starts() const { return from == START || from == RESET; }
  DEVICE float extra() const { return F::CELL == LSTM ? c : F::CELL == GRU ? get(&hidden[0]) : 0.f; }
  DEVICE float before() const {
    return F::CELL == LSTM ? c_before : F::CELL == GRU ? get(&hidden[1]) + c_before : 0.f;
  }
  static DEVICE void prefetch_row(const Arguments& p, int row, int unit) {
#pragma unroll
    for (int g = 0; g < F::GATES; g++) {
      prefetch(row_of<WIDTH>((const io*)p.gates, row) + g * H + unit);
      prefetch(row_of<F::GATES * H>((const io*)p.dg, row) + g * H + unit);
    }
    prefetch(row_of<H>((const io*)p.d_ys, row) + unit);
    if (F::CELL == LSTM) prefetch(row_of<H>(p.cs, row) + unit);
    if (F::CELL == GRU) {
      prefetch(row_of<WIDTH>((const io*)p.gates, row) + F::GATES * H + unit);
      prefetch(row_of<H>((const io*)p.ys, row) + unit);
    }
    if (F::IS_RAGGED) {
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
  const Order order = {p.steps, p.sub_tiles, !p.reverse};
  const int batch = p.batch, sub_tiles = p.sub_tiles;
  const u32* dg = (const u32*)p.dg;
  float* pass_of = SMEM + F::STATES_AT;  // [sub_tiles][CELLS]: what of dh passes a step by; and so dc_of
  float* dc_of = pass_of + sub_tiles * F::CELLS;
  Patience patience = {p.patience, p.failed};

  if (F::K_SPLIT > 1) sync_cluster();  // nobody writes into a CTA that has not started
  Word4 w[F::BLOCKS][F::HELD];
  load_weights<F>(w, place, (const u32*)p.weights);
#pragma unroll
  for (int k = 0; k < THREAD_CELLS; k++)
    for (int s = 0; place.has(k) && s < sub_tiles; s++) {
      const int b = place.first_row + s * F::ROWS + place.row[k], cell = s * F::CELLS + place.cell_of(k);
      const size_t at = (size_t)b * H + place.unit[k];
      const bool here = b < place.end_row;
      pass_of[cell] = here ? p.d_h_last[at] : 0.f;
      dc_of[cell] = F::CELL == LSTM && here ? p.d_c_last[at] : 0.f;
      for (int row = b; here && row < p.initial_rows; row += batch) {
        row_of<H>(p.d_h0, row)[place.unit[k]] = 0.f;
        if (F::CELL == LSTM) row_of<H>(p.d_c0, row)[place.unit[k]] = 0.f;
      }
    }

  Chunk<F> chunks[F::CHUNKS > 1 ? 2 : 1];
  Rows<F> rows;
  Saved<F> saved[THREAD_CELLS], ahead[THREAD_CELLS];  // of `ahead` the index alone
  const auto look_up = [&](Turn turn) {
    if (!F::IS_RAGGED || !order.has(turn.i)) return;
    const int t = order.step(turn.i);
    rows.look_up(place, p.following, batch, t, turn.s);
#pragma unroll
    for (int k = 0; k < THREAD_CELLS; k++)
      ahead[k].look_up(p, place.is_here(k, turn.s), t * batch + place.row_of_batch(k, turn.s));
  };
  const auto load = [&](Turn turn) {
#pragma unroll
    for (int k = 0; k < THREAD_CELLS; k++) {
      const int b = place.row_of_batch(k, turn.s), unit = place.unit[k];
      const bool here = place.is_here(k, turn.s);
      if (F::IS_RAGGED) saved[k].from = ahead[k].from;
      saved[k].load(p, here, order.step(turn.i), order.following(turn.i), b, unit);
      if (here && (unit & 7) == 0 && order.has(turn.i + Order::AHEAD))
        Saved<F>::prefetch_row(p, order.step(turn.i + Order::AHEAD) * batch + b, unit);
    }
  };

  Turn now = {0, 0};
  look_up(now);
  rows.find(place, dg, nullptr, batch, START, 0);
  if (order.has(0)) load(now);
  look_up(order.after(now));
  if (sub_tiles > 1) chunks[0].load(rows, 0);
  for (int flip = 0; order.has(now.i); flip ^= 1) {
    // Nothing but the product stands between another CTA's result and this one's.
    if (sub_tiles == 1) chunks[0].load(rows, 0);
    typename Chunk<F>::Sums sums;
    clear<F>(sums);
    if (now.i > 0) multiply_rows<F>(sums, chunks, w, rows, patience);
    const Turn next = order.after(now);
    const bool more = order.has(next.i);
    if (sub_tiles > 1 && more) {
      rows.find(place, dg, nullptr, batch, order.before(next.i), next.s);
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
      const int b = place.row_of_batch(k, now.s), row = t * batch + b;
      const bool here = place.is_here(k, now.s), runs = saved[k].from != HELD;
      const float dh = M::sum_of(parts, place.tile[k] / F::UNIT_TILES, place.tile[k] % F::UNIT_TILES,
                                 place.cell_of(k), pass_of[cell]);
      float d[GATES], a[GATES], pass = dh, dc = dc_of[cell], d_gx_n = 0.f;
#pragma unroll
      for (int g = 0; g < GATES; g++) {
        d[g] = 0.f;
        a[g] = get(&saved[k].gates[g]);
      }
      if (runs) F::cell::adjoint(d, a, saved[k].extra(), saved[k].before(), dh + get(&saved[k].dy), dc, pass, d_gx_n);
      u32* to = row_of<F::K_WORDS>((u32*)p.dg, row);
#pragma unroll
      for (int g = 0; g < GATES; g++) {
        const float v = canonical(d[g]);
        if (F::IS_BF16) {  // a word holds two units, of neighbouring lanes, who share the gates' stores
          const float other = shuffle_xor(v, 1);
          const bool odd = unit & 1;
          if (here && odd == (g >= 2))
            store_shared_result(to + ((g * H + unit) >> 1), odd ? pack_bf16(other, v) : pack_bf16(v, other));
        } else if (here) {
          store_shared_result(to + g * H + unit, bits_of(v));
        }
      }
      let_idle_warps_go<F>(false);
      if (F::CELL == GRU && here) put(row_of<H>((io*)p.d_gx_n, row) + unit, d_gx_n);
      if (F::IS_RAGGED && saved[k].starts()) {
        const int initial = initial_row(saved[k].from, b, batch);
        row_of<H>(p.d_h0, initial)[unit] += pass;
        if (F::CELL == LSTM) row_of<H>(p.d_c0, initial)[unit] += dc;
        pass = dc = 0.f;
      }
      pass_of[cell] = pass;
      dc_of[cell] = dc;
    }

    // While the results are on their way to the others: what the next turns need.
    if (more) {
      if (sub_tiles == 1) rows.find(place, dg, nullptr, batch, t, 0);
      load(next);
      look_up(order.after(next));
    }
    now = next;
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
