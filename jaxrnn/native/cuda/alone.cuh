// Few units: one CTA holds all weights and runs one row of the batch alone, on the float units.
//
// Nobody waits for another CTA. Neighbouring lanes have the same units and split K; their partial
// sums meet by shuffles. The vector that is multiplied next lies in shared memory, twice, in turns.
#pragma once

#include "adjoint.cuh"
#include "forward.cuh"

namespace jaxrnn::cuda {

template <int CELL_, int PRECISION_, int H_, bool IS_ADJOINT_, bool IS_RAGGED_>
struct AloneForm {
  typedef typename Io<PRECISION_>::type io;
  typedef Cell<CELL_, PRECISION_> cell;

  static constexpr int CELL = CELL_, PRECISION = PRECISION_, H = H_, GATES = cell::GATES;
  static constexpr bool IS_ADJOINT = IS_ADJOINT_, IS_RAGGED = IS_RAGGED_, IS_BF16 = PRECISION == BF16;

  // The lanes that split K for the same units: more of them read less of the adjoint's longer vector.
  static constexpr int THREADS = 256, LANES = IS_ADJOINT ? 16 : 8;
  static constexpr int UNITS = H * LANES / THREADS;  // whose sums a thread has a part of
  static constexpr int SUMS = IS_ADJOINT ? 1 : GATES;  // of a unit
  static constexpr int K = (IS_ADJOINT ? GATES : 1) * H;
  static constexpr int READS = K / LANES / 4;  // of four numbers of the vector
  // The weights that do not fit in the registers lie in shared memory, behind the vectors.
  static constexpr int MOST_READS = 192 / (4 * SUMS * UNITS);
  static constexpr int IN_REGISTERS = READS < MOST_READS ? READS : MOST_READS;
  static constexpr int WEIGHTS_AT = 2 * K;

  static_assert(UNITS >= 1 && LANES % UNITS == 0 && K % (4 * LANES) == 0, "the lanes split units and K evenly");
};

template <class F>
struct Alone {
  typedef typename F::io io;
  int part, first_unit;
  int unit;       // of its cell, which LANES / UNITS lanes compute
  bool writes;    // for them
  Word4 w[F::IN_REGISTERS][F::SUMS][F::UNITS];

  DEVICE Alone(const Arguments& p) {
    constexpr int SAME = F::LANES / F::UNITS;
    part = THREAD % F::LANES;
    first_unit = THREAD / F::LANES * F::UNITS;
    unit = first_unit + part / SAME;
    writes = part % SAME == 0;
#pragma unroll
    for (int i = 0; i < F::READS; i++)
#pragma unroll
      for (int g = 0; g < F::SUMS; g++)
#pragma unroll
        for (int u = 0; u < F::UNITS; u++) {
          const io* at = row_of<F::K>((const io*)p.weights, g * F::H + first_unit + u) + word(i);
          const Word4 four = {bits_of(get(at)), bits_of(get(at + 1)), bits_of(get(at + 2)), bits_of(get(at + 3))};
          if (i < F::IN_REGISTERS) w[i < F::IN_REGISTERS ? i : 0][g][u] = four;
          else store_smem(outside(i, g, u), float_of(four.x), float_of(four.y), float_of(four.z), float_of(four.w));
        }
  }
  DEVICE int word(int i) const { return (i * F::LANES + part) * 4; }
  static DEVICE float* outside(int i, int g, int u) {
    return SMEM + F::WEIGHTS_AT + ((((i - F::IN_REGISTERS) * F::SUMS + g) * F::UNITS + u) * F::THREADS + THREAD) * 4;
  }

  // Rounded as the operands of products are.
  static DEVICE float operand(float v) { return F::IS_BF16 ? float_of((u32)to_bf16(v) << 16) : v; }

  // The products of this thread's unit with the vector: one for each gate, or the adjoint's one.
  DEVICE void multiply(float (&sums)[F::SUMS], const float* vector) const {
    float parts[F::SUMS][F::UNITS];
#pragma unroll
    for (int g = 0; g < F::SUMS; g++)
#pragma unroll
      for (int u = 0; u < F::UNITS; u++) parts[g][u] = 0.f;
#pragma unroll
    for (int i = 0; i < F::READS; i++) {
      const Word4 v = load_smem(vector + word(i));
#pragma unroll
      for (int g = 0; g < F::SUMS; g++)
#pragma unroll
        for (int u = 0; u < F::UNITS; u++) {
          const Word4 a = i < F::IN_REGISTERS ? w[i < F::IN_REGISTERS ? i : 0][g][u] : load_smem(outside(i, g, u));
          float& sum = parts[g][u];
          sum += float_of(v.x) * float_of(a.x);
          sum += float_of(v.y) * float_of(a.y);
          sum += float_of(v.z) * float_of(a.z);
          sum += float_of(v.w) * float_of(a.w);
        }
    }
    meet(parts);
#pragma unroll
    for (int g = 0; g < F::SUMS; g++) sums[g] = parts[g][0];
  }

  // Sums over the lanes. While a lane has several units, it gives away half of them.
  DEVICE void meet(float (&v)[F::SUMS][F::UNITS]) const {
#pragma unroll
    for (int mask = F::LANES / 2, units = F::UNITS; mask > 0; mask /= 2, units = units > 1 ? units / 2 : 1) {
      const u32 upper = add_anew(part & mask ? 0xFFFFFFFFu : 0u, 0u);  // the compiler would branch on it
      const int half = units / 2;
#pragma unroll
      for (int g = 0; g < F::SUMS; g++) {
        if (half == 0) v[g][0] += shuffle_xor(v[g][0], mask);
#pragma unroll
        for (int u = 0; u < F::UNITS / 2; u++)
          if (u < half) {
            const float given = pick(upper, v[g][u], v[g][u + half]);
            v[g][u] = pick(upper, v[g][u + half], v[g][u]) + shuffle_xor(given, mask);
          }
      }
    }
  }
  // a where the bits are set, else b: lanes that branched would shuffle one after the other.
  static DEVICE float pick(u32 bits, float a, float b) { return float_of((bits_of(a) & bits) | (bits_of(b) & ~bits)); }
};

template <class F>
DEVICE void forward_alone(const Arguments& p) {
  typedef typename F::io io;
  constexpr int H = F::H, GATES = F::GATES;
  const Alone<F> own(p);
  const Order order = {p.steps, 1, p.reverse};
  const int batch = p.batch, b = CTA, unit = own.unit;
  const float b_hn = F::CELL == GRU && p.b_hn ? p.b_hn[unit] : 0.f;
  float h, c = 0.f;
  const auto start = [&](int initial, float* vector) {
    h = row_of<H>(p.h0_exact, initial)[unit];
    if (F::CELL == LSTM) c = row_of<H>(p.c0, initial)[unit];
    if (own.writes) vector[unit] = get(row_of<H>((const io*)p.h0, initial) + unit);
    sync_cta();
  };
  start(b, SMEM);

  Inputs<F> inputs;
  int from = START;
  if (order.has(0)) inputs.look_up(p, true, order.step(0) * batch + b);
  int flip = 0;
  for (int i = 0; order.has(i); i++) {
    const int row = order.step(i) * batch + b;
    if (F::IS_RAGGED) {
      from = inputs.from;
      if (order.has(i + 1)) inputs.look_up(p, true, order.step(i + 1) * batch + b);
      if (from == HELD) {
        if (own.writes) put(row_of<H>((io*)p.ys, row) + unit, 0.f);
        continue;
      }
      if (from < 0) start(initial_row(from, b, batch), SMEM + flip * F::K);
    }
    inputs.load(p, true, row, unit);
    if (own.writes && (unit & 7) == 0 && order.has(i + Order::AHEAD))
      Inputs<F>::prefetch_row(p, order.step(i + Order::AHEAD) * batch + b, unit);
    float v[GATES], x[GATES], extra = 0.f;
    own.multiply(v, SMEM + flip * F::K);
    flip ^= 1;
#pragma unroll
    for (int g = 0; g < GATES; g++) x[g] = get(&inputs.x[g]);
    F::cell::forward(v, x, b_hn, h, c, extra);
    if (own.writes) {
      SMEM[flip * F::K + unit] = own.operand(h);
      put(row_of<H>((io*)p.ys, row) + unit, h);
      if (GATES > 1 && p.gates) {
        io* gates = row_of<4 * H>((io*)p.gates, row) + unit;
#pragma unroll
        for (int g = 0; g < GATES; g++) put(gates + g * H, v[g]);
        if (F::CELL == GRU) put(gates + GATES * H, extra);
        if (F::CELL == LSTM) row_of<H>(p.cs, row)[unit] = extra;
      }
    }
    sync_cta();
  }
  if (!own.writes) return;
  row_of<H>(p.h_last, b)[unit] = h;
  if (F::CELL == LSTM) row_of<H>(p.c_last, b)[unit] = c;
}

template <class F>
DEVICE void adjoint_alone(const Arguments& p) {
  typedef typename F::io io;
  constexpr int H = F::H, GATES = F::GATES;
  const Alone<F> own(p);
  const Order order = {p.steps, 1, !p.reverse};
  const int batch = p.batch, b = CTA, unit = own.unit;
  float pass = row_of<H>(p.d_h_last, b)[unit], dc = F::CELL == LSTM ? row_of<H>(p.d_c_last, b)[unit] : 0.f;
  const auto add_to_initial = [&](int initial, bool is_first) {
    if (!own.writes) return;
    float* d_h0 = row_of<H>(p.d_h0, initial) + unit;
    *d_h0 = is_first ? 0.f : *d_h0 + pass;
    if (F::CELL != LSTM) return;
    float* d_c0 = row_of<H>(p.d_c0, initial) + unit;
    *d_c0 = is_first ? 0.f : *d_c0 + dc;
  };
  for (int row = b; row < p.initial_rows; row += batch) add_to_initial(row, true);
  for (int k = THREAD; k < F::K; k += F::THREADS) SMEM[k] = 0.f;
  sync_cta();

  Saved<F> saved;
  int ahead = START, flip = 0;
  if (F::IS_RAGGED && order.has(0)) ahead = p.previous[order.step(0) * batch + b];
  for (int i = 0; order.has(i); i++) {
    const int t = order.step(i), row = t * batch + b;
    io* dg = row_of<GATES * H>((io*)p.dg, row) + unit;
    if (F::IS_RAGGED) {
      saved.from = ahead;
      if (order.has(i + 1)) ahead = p.previous[order.step(i + 1) * batch + b];
      if (saved.from == HELD) {
        if (!own.writes) continue;
#pragma unroll
        for (int g = 0; g < GATES; g++) put(dg + g * H, 0.f);
        if (F::CELL == GRU) put(row_of<H>((io*)p.d_gx_n, row) + unit, 0.f);
        continue;
      }
    }
    saved.load(p, true, t, order.following(i), b, unit);
    if (own.writes && (unit & 7) == 0 && order.has(i + Order::AHEAD))
      Saved<F>::prefetch_row(p, order.step(i + Order::AHEAD) * batch + b, unit);
    float product[1], d[GATES], a[GATES], d_gx_n = 0.f;
    own.multiply(product, SMEM + flip * F::K);
    flip ^= 1;
    const float dh = product[0] + pass;
#pragma unroll
    for (int g = 0; g < GATES; g++) a[g] = get(&saved.gates[g]);
    F::cell::adjoint(d, a, saved.extra(), saved.before(), dh + get(&saved.dy), dc, pass, d_gx_n);
    const bool starts = F::IS_RAGGED && saved.starts();
    if (own.writes) {
#pragma unroll
      for (int g = 0; g < GATES; g++) {
        SMEM[flip * F::K + g * H + unit] = starts ? 0.f : own.operand(d[g]);
        put(dg + g * H, d[g]);
      }
      if (F::CELL == GRU) put(row_of<H>((io*)p.d_gx_n, row) + unit, d_gx_n);
    }
    if (starts) {
      add_to_initial(initial_row(saved.from, b, batch), false);
      pass = dc = 0.f;
    }
    sync_cta();
  }
  add_to_initial(b, false);
}

}  // namespace jaxrnn::cuda
