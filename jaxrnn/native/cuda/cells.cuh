// One number of one step of a cell, forward and backward.
//
// forward: `v` comes with the products W_hh h, `x` with gx; `v` leaves as the activated gates.
// adjoint: `a` are those gates, `before` the state that entered the step (c, or the GRU's h), `dh` and
// `dc` the cotangents of the new state. `d` leaves as the cotangent of W_hh h + b_hh, and `pass` and
// `dc` as those of the old state, but for what comes through W_hh.
#pragma once

#include "numbers.cuh"

namespace jaxrnn::cuda {

// `extra`: the LSTM's new c; the GRU's W_hn h + b_hn, which the gates alone do not give back.
template <int CELL, int PRECISION>
struct Cell;

template <int PRECISION>
struct Cell<LSTM, PRECISION> {
  static constexpr int GATES = 4;
  static constexpr bool EXACT = PRECISION == FLOAT32;

  static DEVICE void forward(float (&v)[4], const float (&x)[4], float, float& h, float& c, float& extra) {
    v[0] = sigmoid<EXACT>(v[0] + x[0]);
    v[1] = sigmoid<EXACT>(v[1] + x[1]);
    v[2] = tanh_of<EXACT>(v[2] + x[2]);
    v[3] = sigmoid<EXACT>(v[3] + x[3]);
    c = v[1] * c + v[0] * v[2];
    h = v[3] * tanh_of<EXACT>(c);
    extra = c;
  }
  static DEVICE void adjoint(float (&d)[4], const float (&a)[4], float extra, float before, float dh, float& dc,
                             float& pass, float&) {
    const float tanh_c = tanh_of<EXACT>(extra);
    const float dc_new = dc + dh * a[3] * (1.f - tanh_c * tanh_c);
    d[0] = dc_new * a[2] * a[0] * (1.f - a[0]);
    d[1] = dc_new * before * a[1] * (1.f - a[1]);
    d[2] = dc_new * a[0] * (1.f - a[2] * a[2]);
    d[3] = dh * tanh_c * a[3] * (1.f - a[3]);
    dc = dc_new * a[1];
    pass = 0.f;
  }
};

template <int PRECISION>
struct Cell<GRU, PRECISION> {
  static constexpr int GATES = 3;
  static constexpr bool EXACT = PRECISION == FLOAT32;

  static DEVICE void forward(float (&v)[3], const float (&x)[3], float b_hn, float& h, float&, float& extra) {
    extra = v[2] + b_hn;
    v[0] = sigmoid<EXACT>(v[0] + x[0]);
    v[1] = sigmoid<EXACT>(v[1] + x[1]);
    v[2] = tanh_of<EXACT>(x[2] + v[0] * extra);
    h = v[2] + v[1] * (h - v[2]);
  }
  static DEVICE void adjoint(float (&d)[3], const float (&a)[3], float extra, float before, float dh, float&,
                             float& pass, float& d_gx_n) {
    d_gx_n = dh * (1.f - a[1]) * (1.f - a[2] * a[2]);
    d[0] = d_gx_n * extra * a[0] * (1.f - a[0]);
    d[1] = dh * (before - a[2]) * a[1] * (1.f - a[1]);
    d[2] = d_gx_n * a[0];
    pass = dh * a[1];
  }
};

// One gate, which is the new h.
template <int CELL, int PRECISION>
struct Cell {
  static constexpr int GATES = 1;
  static constexpr bool EXACT = PRECISION == FLOAT32;

  static DEVICE void forward(float (&v)[1], const float (&x)[1], float, float& h, float&, float&) {
    const float a = v[0] + x[0];
    h = v[0] = CELL == RNN_TANH ? tanh_of<EXACT>(a) : a < 0.f ? 0.f : a;  // a NaN stays
  }
  static DEVICE void adjoint(float (&d)[1], const float (&a)[1], float, float, float dh, float&, float& pass,
                             float&) {
    d[0] = CELL == RNN_TANH ? dh * (1.f - a[0] * a[0]) : a[0] > 0.f ? dh : 0.f;
    pass = 0.f;
  }
};

}  // namespace jaxrnn::cuda
