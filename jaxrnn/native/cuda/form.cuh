// How one instance lays a layer onto the chip, and the place of each thread in it.
//
// A group of CTAs runs some rows of the batch. A CTA owns 8 UNIT_TILES hidden units and keeps their
// rows of the weights in registers for all steps, or some of them in shared memory. Its warps split K, the numbers that a product sums
// over, as do the CTAs of a cluster of K_SPLIT; the partial sums meet in shared memory.
//
// K is counted in words. An MMA takes 8 of them. A block has 16: a thread reads words 4q to 4q+3 of it
// at once and uses the first two in one MMA, the others in the next. So K is permuted, in the same way
// for both operands.
#pragma once

#include "cells.cuh"

namespace jaxrnn::cuda {

template <int CELL_, int PRECISION_, int H_, int UNIT_TILES_, int ROW_TILES_, int WARPS_, int CHUNK_, int K_SPLIT_,
          int HELD_, bool IS_ADJOINT_, bool IS_RAGGED_>
struct Form {
  typedef typename Io<PRECISION_>::type io;
  typedef Cell<CELL_, PRECISION_> cell;

  static constexpr int CELL = CELL_, PRECISION = PRECISION_, H = H_, ROW_TILES = ROW_TILES_, WARPS = WARPS_;
  static constexpr int UNIT_TILES = UNIT_TILES_, CHUNK = CHUNK_, K_SPLIT = K_SPLIT_;
  static constexpr bool IS_ADJOINT = IS_ADJOINT_, IS_RAGGED = IS_RAGGED_, IS_BF16 = PRECISION == BF16;

  static constexpr int GATES = cell::GATES;
  static constexpr int K_WORDS = (IS_ADJOINT ? GATES : 1) * (IS_BF16 ? H / 2 : H);
  static constexpr int BLOCKS = K_WORDS / 16 / WARPS / K_SPLIT;  // of a warp
  static constexpr int CHUNKS = BLOCKS / CHUNK;
  static constexpr int OWN_TILES = (IS_ADJOINT ? 1 : GATES) * UNIT_TILES;  // tiles of 8 columns, summed here
  static constexpr int TILES = OWN_TILES * K_SPLIT;                        // multiplied here
  // Tiles whose weights are in registers. Those of the others lie in shared memory.
  static constexpr int HELD = HELD_;
  static constexpr int UNITS = 8 * UNIT_TILES, GROUP_CTAS = H / UNITS, THREADS = 32 * WARPS;
  static constexpr int ROWS = 16 * ROW_TILES;
  // A step's cells, 128 to a tile of rows and units, and how many of them a thread has.
  static constexpr int CELLS = 128 * UNIT_TILES * ROW_TILES, THREAD_CELLS = (CELLS + THREADS - 1) / THREADS;
  // Warps without a cell would poll while the others work, and be in their way.
  static constexpr bool HAS_IDLE_WARPS = CELLS < THREADS;
  // Sums that run beside each other where a tile alone would wait for the MMA before.
  static constexpr int SUMS = TILES * ROW_TILES >= (IS_ADJOINT ? 4 : 3) ? 1 : TILES * ROW_TILES == 2 ? 2 : 4;
  // Of three TF32 products: whether there are too few registers to keep both parts of every weight.
  static constexpr bool SPLIT_ANEW =
      8 * BLOCKS * TILES + 8 * CHUNK * ROW_TILES * (CHUNK == BLOCKS ? 1 : 2) + 4 * SUMS * TILES * ROW_TILES > 176;

  // Shared memory, in floats: partial sums (twice, in turns, if there is room), what the cluster
  // exchanges, weights, the states.
  static constexpr int PARTIAL = WARPS * ROW_TILES * TILES * 128;
  static constexpr int EXCHANGED = K_SPLIT * ROW_TILES * OWN_TILES * 128;
  static constexpr int WEIGHTS_AT = K_SPLIT > 1 ? PARTIAL + 2 * EXCHANGED : HELD < TILES ? PARTIAL : 2 * PARTIAL;
  static constexpr int STATES_AT = WEIGHTS_AT + (TILES - HELD) * BLOCKS * THREADS * 4;

  static_assert(HELD == TILES || (K_SPLIT == 1 && PRECISION != FLOAT32), "not from shared memory");

  static_assert(K_WORDS % (16 * WARPS * K_SPLIT) == 0 && BLOCKS % CHUNK == 0, "the warps split K evenly");
  static_assert(H % UNITS == 0 && GROUP_CTAS % K_SPLIT == 0, "the CTAs split the units evenly");
};

// The place of a thread: its rows and its part of K in the products, and its cells.
template <class F>
struct Place {
  int warp, lane, rank;      // rank: in the cluster
  int first_unit;            // of the CTA
  int first_row, end_row;    // of the group
  int fragment_row;          // the row of a tile that this thread loads, and the one 8 below
  int word;                  // the first word of K that it loads of a row
  int row[F::THREAD_CELLS];  // of its cells, in a sub-tile
  int unit[F::THREAD_CELLS];
  int tile[F::THREAD_CELLS];

  DEVICE Place(const Arguments& p) {
    const int group = CTA / F::GROUP_CTAS;
    warp = THREAD >> 5;
    lane = THREAD & 31;
    rank = CTA % F::K_SPLIT;
    first_unit = CTA % F::GROUP_CTAS * F::UNITS;
    first_row = p.row_begin + group * p.group_rows;
    end_row = first_row + p.group_rows < p.row_end ? first_row + p.group_rows : p.row_end;
    fragment_row = lane >> 2;
    word = (rank * F::WARPS + warp) * F::BLOCKS * 16 + 4 * (lane & 3);
#pragma unroll
    for (int k = 0; k < F::THREAD_CELLS; k++) {
      const int cell = cell_of(k), element = cell & 3, place = (cell & 127) >> 2;
      tile[k] = cell >> 7;
      row[k] = tile[k] / F::UNIT_TILES * 16 + (place >> 2) + 8 * (element >> 1);
      unit[k] = first_unit + tile[k] % F::UNIT_TILES * 8 + (place & 3) * 2 + (element & 1);
    }
  }
  // The row of the batch that it loads as row j of two, in row tile m of sub-tile s.
  DEVICE int loaded_row(int s, int m, int j) const { return first_row + s * F::ROWS + m * 16 + j * 8 + fragment_row; }
  DEVICE int cell_of(int k) const { return THREAD + k * F::THREADS; }
  DEVICE int row_of_batch(int k, int s) const { return first_row + s * F::ROWS + row[k]; }
  DEVICE bool is_here(int k, int s) const { return has(k) && row_of_batch(k, s) < end_row; }
  // Whether the thread has a k-th cell at all; all lanes of a warp agree.
  DEVICE bool has(int k) const { return F::CELLS % F::THREADS == 0 || cell_of(k) < F::CELLS; }
};

// The row of the initial states from which a step starts that continues none, in row b of the batch.
DEVICE int initial_row(int from, int b, int batch) { return from == RESET ? batch + b : b; }

// One sub-tile of rows at one step: the i-th of those that are taken.
struct Turn {
  int i, s;
};

// The order of the turns, and how many steps to look ahead into L2.
struct Order {
  int steps, sub_tiles, reverse;
  static constexpr int AHEAD = 4;

  DEVICE int step(int i) const { return reverse ? steps - 1 - i : i; }
  DEVICE bool has(int i) const { return i < steps; }
  DEVICE Turn after(Turn turn) const {
    if (turn.s + 1 < sub_tiles) return {turn.i, turn.s + 1};
    return {turn.i + 1, 0};
  }
  // The step before the i-th; START before the first.
  DEVICE int before(int i) const { return i > 0 ? step(i - 1) : START; }
  DEVICE int following(int i) const { return has(i + 1) ? step(i + 1) : START; }
};

// Where row `row` of an array begins, whose rows have WIDTH entries. (T B is below 2^31.)
template <int WIDTH, class T>
DEVICE T* row_of(T* array, int row) {
  return array + (size_t)(unsigned)row * WIDTH;
}

// The rows of a shared result that a thread loads for one turn; null: zeros.
template <class F>
struct Rows {
  const u32* at[F::ROW_TILES][2];
  int from[F::ROW_TILES][2];  // of a ragged batch: the step that each row continues, looked up a turn before

  DEVICE void look_up(const Place<F>& place, const int* index, int batch, int t, int s) {
    if (!F::IS_RAGGED) return;
#pragma unroll
    for (int m = 0; m < F::ROW_TILES; m++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const int b = place.loaded_row(s, m, j);
        from[m][j] = b < place.end_row ? index[t * batch + b] : HELD;
      }
  }

  // The rows of sub-tile `s`: of `results` at the step that they continue, or of `initial`. A dense
  // batch continues step `dense`.
  DEVICE void find(const Place<F>& place, const u32* results, const u32* initial, int batch, int dense, int s) {
    const u32* all = dense == START ? initial : row_of<F::K_WORDS>(results, dense * batch);
#pragma unroll
    for (int m = 0; m < F::ROW_TILES; m++)
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const int b = place.loaded_row(s, m, j);
        if (F::IS_RAGGED) {
          const int step = from[m][j];
          const u32* row = step < 0 ? row_of<F::K_WORDS>(initial, initial_row(step, b, batch))
                                    : row_of<F::K_WORDS>(results, step * batch + b);
          at[m][j] = step == HELD || (step < 0 && !initial) ? nullptr : row + place.word;
        } else {
          at[m][j] = b < place.end_row && all ? row_of<F::K_WORDS>(all, b) + place.word : nullptr;
        }
      }
  }
};

}  // namespace jaxrnn::cuda
