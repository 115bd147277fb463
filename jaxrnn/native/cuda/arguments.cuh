// What one launch is given: pointers into the device's memory, seen by the kernels and by the host.
//
// io is the dtype of the products' operands: bf16, or float for TF32 and for three TF32 products.
// "State" below is what the cell keeps and sums in float: h, and the LSTM's c.
#pragma once

namespace jaxrnn::cuda {

// The order of jaxrnn.strategies.native.CELLS.
enum Cells : int { RNN_TANH = 0, RNN_RELU = 1, LSTM = 2, GRU = 3 };

// What the products are computed in: bf16, TF32, or float by three TF32 products.
enum Precisions : int { BF16 = 0, TF32 = 1, FLOAT32 = 2 };

// In `previous`, instead of a step: the step starts from the initial state; it starts from the state to
// which the row is reset; the row holds its state.
enum Steps : int { START = -1, RESET = -2, HELD = -3 };

struct Arguments {
  const void* gx;         // forward: (T, B, G H) io, biases included but the GRU's b_hn
  const void* weights;    // forward: W_hh (G H, H); adjoint: its transpose (H, G H); io
  const float* b_hn;      // GRU: (H), or null
  const void* h0;         // (B, H) io, without a NaN of all ones; with resets (2 B, H): theirs are the second half
  const float* h0_exact;  // the same before rounding to io
  const float* c0;        // LSTM: the same of c
  const int* previous;    // (T, B): the step that a step of a row continues, START, RESET or HELD; null: dense
  const int* following;   // adjoint: (T, B): the step that continues it, or negative; null: dense
  void* ys;               // (T, B, H) io; forward: poisoned
  float* h_last;          // (B, H)
  float* c_last;          // LSTM: (B, H)
  void* gates;            // LSTM, GRU: (T, B, 4 H) io, or null: activated gates, then the GRU's W_hn h + b_hn
  float* cs;              // LSTM: (T, B, H), or null with `gates`
  const void* d_ys;       // (T, B, H) io
  const float* d_h_last;  // (B, H)
  const float* d_c_last;  // LSTM: (B, H)
  void* dg;               // (T, B, G H) io, poisoned: the cotangent of W_hh h + b_hh
  void* d_gx_n;           // GRU: (T, B, H) io: the cotangent of gx_n
  float* d_h0;            // as h0, but for what comes through W_hh
  float* d_c0;            // LSTM: as c0
  unsigned* failed;       // set by a reader that waited too long
  int steps, batch;       // T, B
  int initial_rows;       // of h0: B, or 2 B with resets
  int row_begin, row_end; // the rows of this launch
  int group_rows;         // rows of a group of CTAs
  int sub_tiles;          // tiles of 16 MT rows that a group takes one after the other
  int reverse;            // from the last step to the first
  int patience;           // polls before a reader gives up
  int mute;               // a CTA that leaves at once, in a test; -1: none
};

}  // namespace jaxrnn::cuda
