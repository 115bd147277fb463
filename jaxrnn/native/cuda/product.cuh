// The product of a step: rows that other CTAs are still writing, times the weights in registers.
//
// There is no barrier between CTAs. What they exchange is the result itself, filled with POISON before
// the launch: a reader loads its words again until none of them is the poison.
#pragma once

#include "form.cuh"

namespace jaxrnn::cuda {

DEVICE bool is_poisoned(const Word4& v) {
  return v.x == POISON || v.y == POISON || v.z == POISON || v.w == POISON;
}

// How long a reader waits. A reader that gives up raises the flag, goes on with NaN and never waits
// again, so that every CTA runs to its end, and the results and the flag tell of the failure.
struct Patience {
  int polls;
  unsigned* failed;

  DEVICE void give_up() {
    polls = 0;
    raise_flag(failed);
  }
};

// The weights of block i and tile n that this thread has in shared memory.
template <class F>
DEVICE float* outside(int i, int n) {
  return SMEM + F::WEIGHTS_AT + ((i * (F::TILES - F::HELD) + n - F::HELD) * F::THREADS + THREAD) * 4;
}

// CHUNK blocks of the rows' operand: loaded early, settled and multiplied later.
template <class F>
struct Chunk {
  Word4 a[F::CHUNK][F::ROW_TILES][2];

  template <class Body>
  DEVICE void each(Body&& body) {
#pragma unroll
    for (int i = 0; i < F::CHUNK; i++)
#pragma unroll
      for (int m = 0; m < F::ROW_TILES; m++)
#pragma unroll
        for (int j = 0; j < 2; j++) body(a[i][m][j], i, m, j);
  }

  // From block `first` of the warp's on.
  DEVICE void load(const Rows<F>& rows, int first) {
    each([&](Word4& v, int i, int m, int j) {
      const u32* row = rows.at[m][j];
      const Word4 zero = {0, 0, 0, 0};
      v = row ? load_shared_result(row + (first + i) * 16) : zero;
    });
  }

  // Loads again until everything has been written.
  DEVICE void settle(const Rows<F>& rows, int first, Patience& patience) {
    // Numbers below 2 have this bit clear, the poison has it set.
    constexpr u32 QUICK = F::IS_BF16 ? 0x40004000u : 0x40000000u;
    for (int polls = 0;; polls++) {
      u32 any = 0;
      each([&](Word4& v, int, int, int) { any |= v.x | v.y | v.z | v.w; });
      if (!(any & QUICK)) break;
      bool again = false;
      each([&](Word4& v, int i, int m, int j) {
        if (!is_poisoned(v)) return;
        again = true;
        v = load_shared_result(rows.at[m][j] + (first + i) * 16);
      });
      if (!again) break;
      YIELD();
      if (polls >= patience.polls) {
        each([&](Word4& v, int, int, int) { replace_poison(v); });
        patience.give_up();
        break;
      }
    }
    sync_warp();
  }

  static DEVICE void replace_poison(Word4& v) {
    constexpr u32 NOT_A_NUMBER = NAN_WORD<F::PRECISION>;
    v.x = v.x == POISON ? NOT_A_NUMBER : v.x;
    v.y = v.y == POISON ? NOT_A_NUMBER : v.y;
    v.z = v.z == POISON ? NOT_A_NUMBER : v.z;
    v.w = v.w == POISON ? NOT_A_NUMBER : v.w;
  }

  typedef float Sums[F::SUMS][F::ROW_TILES][F::TILES][4];

  // `w`: of block `first`, which this chunk begins with, and those after it.
  DEVICE void multiply(Sums& sums, const Word4 (*w)[F::HELD], int first) {
#pragma unroll
    for (int i = 0; i < F::CHUNK; i++)
#pragma unroll
      for (int m = 0; m < F::ROW_TILES; m++) {
        if (F::PRECISION == FLOAT32) {
          multiply_exactly(sums, w[i], i, m);
          continue;
        }
        const Word4 p = rounded<F::PRECISION>(a[i][m][0]), q = rounded<F::PRECISION>(a[i][m][1]);
        const auto multiply_tiles = [&](int begin, int end, const Word4* b) {
#pragma unroll
          for (int n = begin; n < end; n++)
            multiply_add<F::IS_BF16>(sums[2 * i % F::SUMS][m][n], p.x, q.x, p.y, q.y, b[n - begin].x, b[n - begin].y);
#pragma unroll
          for (int n = begin; n < end; n++)
            multiply_add<F::IS_BF16>(sums[(2 * i + 1) % F::SUMS][m][n], p.z, q.z, p.w, q.w, b[n - begin].z,
                                     b[n - begin].w);
        };
        multiply_tiles(0, F::HELD, w[i]);
        constexpr int TOGETHER = 2;  // as many as come from shared memory at once
#pragma unroll
        for (int begin = F::HELD; begin < F::TILES; begin += TOGETHER) {
          const int end = begin + TOGETHER < F::TILES ? begin + TOGETHER : F::TILES;
          Word4 b[TOGETHER];
#pragma unroll
          for (int n = begin; n < end; n++) b[n - begin] = load_smem(outside<F>(first + i, n));
          multiply_tiles(begin, end, b);
        }
      }
  }

  // Three TF32 products: low high + high low + high high, the small ones first.
  DEVICE void multiply_exactly(Sums& sums, const Word4 (&w)[F::HELD], int i, int m) {
    const Word4 p = a[i][m][0], q = a[i][m][1];
    const u32 words[8] = {p.x, q.x, p.y, q.y, p.z, q.z, p.w, q.w};
    constexpr int TOGETHER = F::TILES < 4 ? F::TILES : 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int sum = (2 * i + half) % F::SUMS;
      u32 high[4], low[4];
#pragma unroll
      for (int k = 0; k < 4; k++) split<false>(words[half * 4 + k], high[k], low[k]);
#pragma unroll
      for (int first = 0; first < F::TILES; first += TOGETHER) {
        u32 w_high[TOGETHER][2], w_low[TOGETHER][2];
#pragma unroll
        for (int k = 0; k < TOGETHER; k++) {
          const int n = first + k < F::TILES ? first + k : F::TILES - 1;
          split<F::SPLIT_ANEW>(half ? w[n].z : w[n].x, w_high[k][0], w_low[k][0]);
          split<F::SPLIT_ANEW>(half ? w[n].w : w[n].y, w_high[k][1], w_low[k][1]);
        }
#pragma unroll
        for (int k = 0; k < TOGETHER; k++)
          if (first + k < F::TILES)
            multiply_add<false>(sums[sum][m][first + k], low[0], low[1], low[2], low[3], w_high[k][0], w_high[k][1]);
#pragma unroll
        for (int k = 0; k < TOGETHER; k++)
          if (first + k < F::TILES)
            multiply_add<false>(sums[sum][m][first + k], high[0], high[1], high[2], high[3], w_low[k][0], w_low[k][1]);
#pragma unroll
        for (int k = 0; k < TOGETHER; k++)
          if (first + k < F::TILES)
            multiply_add<false>(sums[sum][m][first + k], high[0], high[1], high[2], high[3], w_high[k][0],
                                w_high[k][1]);
      }
    }
  }
};

// The weights of a thread: rows of W_hh, one gate after the other, or of its transpose.
template <class F>
DEVICE void load_weights(Word4 (&w)[F::BLOCKS][F::HELD], const Place<F>& place, const u32* weights) {
#pragma unroll
  for (int i = 0; i < F::BLOCKS; i++)
#pragma unroll
    for (int n = 0; n < F::TILES; n++) {
      const int gate = n % F::OWN_TILES / F::UNIT_TILES, owner = n / F::OWN_TILES - place.rank;
      const int unit = place.first_unit + owner * F::UNITS + n % F::UNIT_TILES * 8 + place.fragment_row;
      const u32* row = row_of<F::K_WORDS>(weights, gate * F::H + unit);
      const Word4 v = rounded_input<F::PRECISION>(load_constant(row + place.word + i * 16));
      if (n < F::HELD) w[i][n < F::HELD ? n : 0] = v;
      else store_smem(outside<F>(i, n), float_of(v.x), float_of(v.y), float_of(v.z), float_of(v.w));
    }
}

// A warp's whole part of the product. `first` has been loaded; the chunks after it are here.
template <class F>
DEVICE void multiply_rows(typename Chunk<F>::Sums& sums, Chunk<F>* chunks, const Word4 (*w)[F::HELD],
                          const Rows<F>& rows, Patience& patience) {
  if (F::CHUNKS > 1) chunks[1].load(rows, F::CHUNK);
#pragma unroll
  for (int c = 0; c < F::CHUNKS; c++) {
    Chunk<F>& chunk = chunks[c & 1];
    chunk.settle(rows, c * F::CHUNK, patience);
    chunk.multiply(sums, w + c * F::CHUNK, c * F::CHUNK);
    if (c + 2 < F::CHUNKS) chunk.load(rows, (c + 2) * F::CHUNK);
  }
}

// The warps' partial sums meet: in this CTA's shared memory, then, where a cluster splits K, each in the
// CTA that owns it. Returns where this CTA's sums are; PARTS of them are to be added.
template <class F>
struct Meeting {
  static constexpr int PARTS = F::K_SPLIT > 1 ? F::K_SPLIT : F::WARPS;
  static constexpr int STRIDE = F::ROW_TILES * F::OWN_TILES * 128;

  static DEVICE const float* meet(typename Chunk<F>::Sums& sums, const Place<F>& place, float* smem, int turn) {
    float* part = F::K_SPLIT > 1 || F::HELD < F::TILES ? smem : smem + turn * F::PARTIAL;
    if (F::HELD < F::TILES) sync_cta();  // the sums of the turn before have been read
#pragma unroll
    for (int m = 0; m < F::ROW_TILES; m++)
#pragma unroll
      for (int n = 0; n < F::TILES; n++) {
        float(&sum)[4] = sums[0][m][n];
#pragma unroll
        for (int j = 1; j < F::SUMS; j++)
#pragma unroll
          for (int e = 0; e < 4; e++) sum[e] += sums[j][m][n][e];
        store_smem(part + ((place.warp * F::ROW_TILES + m) * F::TILES + n) * 128 + place.lane * 4, sum[0], sum[1],
                   sum[2], sum[3]);
      }
    sync_cta();
    if (F::K_SPLIT == 1) return part;
    float* exchanged = smem + F::PARTIAL + turn * F::EXCHANGED;
    send(part, smem_address(exchanged), place.rank);
    sync_cluster();
    return exchanged;
  }

  static DEVICE void send(const float* part, u32 exchanged, int rank) {
#pragma unroll
    for (int i = THREAD; i < F::ROW_TILES * F::TILES * 32; i += F::THREADS) {
      const int lane = i & 31, n = (i >> 5) % F::TILES, m = (i >> 5) / F::TILES;
      const int owner = n / F::OWN_TILES, own = n % F::OWN_TILES;
      float sum[4] = {0.f, 0.f, 0.f, 0.f};
#pragma unroll
      for (int w = 0; w < F::WARPS; w++) {
        const Word4 v = load_smem(part + ((w * F::ROW_TILES + m) * F::TILES + n) * 128 + lane * 4);
        sum[0] += float_of(v.x);
        sum[1] += float_of(v.y);
        sum[2] += float_of(v.z);
        sum[3] += float_of(v.w);
      }
      const u32 at = ((rank * F::ROW_TILES + m) * F::OWN_TILES + own) * 128 + lane * 4;
      store_in_peer(address_in_peer(exchanged, owner) + at * 4, sum[0], sum[1], sum[2], sum[3]);
    }
  }

  // The sum at this thread's k-th cell in tile `n` of the CTA's own, given row tile m.
  static DEVICE float sum_of(const float* parts, int m, int n, int cell, float sum) {
    const float* at = parts + (m * F::OWN_TILES + n) * 128 + (cell & 127);
    float other = 0.f;  // two chains of additions are done in half the time of one
#pragma unroll
    for (int i = 0; i < PARTS; i += 2) {
      sum += at[i * STRIDE];
      if (i + 1 < PARTS) other += at[(i + 1) * STRIDE];
    }
    return sum + other;
  }
};

// Between a turn's stores and its next polls, where some warps have no cell.
template <class F>
DEVICE void let_idle_warps_go(bool is_idle) {
  if (!F::HAS_IDLE_WARPS) return;
  if (is_idle) wait_second(F::THREADS);
  else pass_second(F::THREADS);
}

template <class F>
DEVICE void clear(typename Chunk<F>::Sums& sums) {
#pragma unroll
  for (int j = 0; j < F::SUMS; j++)
#pragma unroll
    for (int m = 0; m < F::ROW_TILES; m++)
#pragma unroll
      for (int n = 0; n < F::TILES; n++) sums[j][m][n][0] = sums[j][m][n][1] = sums[j][m][n][2] = sums[j][m][n][3] = 0.f;
}

}  // namespace jaxrnn::cuda
