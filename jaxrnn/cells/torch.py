"""PyTorch's cells: the equations and gate orders of `torch.nn.RNNCell`, `LSTMCell`, `GRUCell`."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxrnn.cells.base import Carry, Cell, pure

__all__ = ["gru", "lstm", "rnn_relu", "rnn_tanh"]


@pure
def _rnn_tanh(carry: Carry, gx: Array, gh: Array) -> Carry:
    return (jnp.tanh(gx + gh),)


@pure
def _rnn_relu(carry: Carry, gx: Array, gh: Array) -> Carry:
    # jax.nn.relu and not jnp.maximum: its derivative at 0 is PyTorch's 0, not 1/2.
    return (jax.nn.relu(gx + gh),)


@pure
def _lstm(carry: Carry, gx: Array, gh: Array) -> Carry:
    # One tanh for all gates, σ(x) = tanh(x/2)/2 + 1/2: XLA would not vectorise four loops.
    hidden = gx.shape[-1] // 4
    scale, shift = (
        jnp.broadcast_to(np.repeat(np.array(a, gx.dtype), hidden), gx.shape)
        for a in ([0.5, 0.5, 1, 0.5], [0.5, 0.5, 0, 0.5])
    )
    gates = jnp.tanh((gx + gh) * scale) * scale + shift
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    c = f * carry[1] + i * g
    return o * jnp.tanh(c), c


@pure
def _gru(carry: Carry, gx: Array, gh: Array) -> Carry:
    (h,) = carry
    xr, xz, xn = jnp.split(gx, 3, axis=-1)
    hr, hz, hn = jnp.split(gh, 3, axis=-1)
    r, z = jax.nn.sigmoid(xr + hr), jax.nn.sigmoid(xz + hz)
    n = jnp.tanh(xn + r * hn)
    return ((1 - z) * n + z * h,)


rnn_tanh = Cell("rnn_tanh", 1, 1, _rnn_tanh, additive=True)
"""h = tanh(gx + gh)."""

rnn_relu = Cell("rnn_relu", 1, 1, _rnn_relu, additive=True)
"""h = max(gx + gh, 0)."""

lstm = Cell("lstm", 4, 2, _lstm, additive=True, forget=1)
"""i, f, g, o = gx + gh;  c' = σ(f) c + σ(i) tanh(g);  h' = σ(o) tanh(c').

Source: Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997, with the forget gate of Gers,
Schmidhuber and Cummins, "Learning to Forget", 2000.
"""

gru = Cell("gru", 3, 1, _gru, forget=1)
"""r = σ(gx_r + gh_r);  z = σ(gx_z + gh_z);  n = tanh(gx_n + r gh_n);  h' = (1 - z) n + z h.

The reset gate multiplies the product W_hn h + b_hn, not h. Source: Cho et al., "Learning Phrase
Representations using RNN Encoder-Decoder", 2014, in the variant of PyTorch and cuDNN.
"""
