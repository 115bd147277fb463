"""Gated cells of the literature, relatives of the LSTM and the GRU."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxrnn.cells.base import Carry, Cell, project, pure, spread

__all__ = ["coupled_lstm", "janet", "light_gru", "mgu", "peephole_lstm", "reset_before_gru"]


def uniform(key: Array, shape: tuple[int, ...], hidden: int, dtype: Any) -> Array:
    """U(-1/sqrt(H), 1/sqrt(H)), as PyTorch initialises its recurrent layers."""
    bound = 1 / hidden**0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


@pure
def _peephole_lstm(params: Any, carry: Carry, gx: Array, gh: Array) -> Carry:
    c = carry[1]
    pi, pf, po = (spread(params[f"peephole_{gate}"], c) for gate in "ifo")
    i, f, g, o = jnp.split(gx + gh, 4, axis=-1)
    c = jax.nn.sigmoid(f + pf * c) * c + jax.nn.sigmoid(i + pi * c) * jnp.tanh(g)
    return jax.nn.sigmoid(o + po * c) * jnp.tanh(c), c


def _peepholes(key: Array, hidden: int, dtype: Any) -> dict[str, Array]:
    keys = jax.random.split(key, 3)
    return {f"peephole_{g}": uniform(k, (hidden,), hidden, dtype) for g, k in zip("ifo", keys)}  # noqa: B905


peephole_lstm = Cell(
    "peephole_lstm", 4, 2, _peephole_lstm, additive=True, init=_peepholes, forget=1
)
"""i, f, g, o = gx + gh;  c' = σ(f + p_f c) c + σ(i + p_i c) tanh(g);  h' = σ(o + p_o c') tanh(c').

Parameters: `peephole_i`, `peephole_f`, `peephole_o`, (H,) each. Source: Gers, Schraudolph and
Schmidhuber, "Learning Precise Timing with LSTM Recurrent Networks", 2002.
"""


@pure
def _coupled_lstm(carry: Carry, gx: Array, gh: Array) -> Carry:
    f, g, o = jnp.split(gx + gh, 3, axis=-1)
    f = jax.nn.sigmoid(f)
    c = f * carry[1] + (1 - f) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


coupled_lstm = Cell("coupled_lstm", 3, 2, _coupled_lstm, additive=True, forget=0)
"""f, g, o = gx + gh;  c' = σ(f) c + (1 - σ(f)) tanh(g);  h' = σ(o) tanh(c').

The input gate is one minus the forget gate. Source: Greff et al., "LSTM: A Search Space Odyssey",
2017, there CIFG.
"""


@pure
def _janet(carry: Carry, gx: Array, gh: Array) -> Carry:
    f, g = jnp.split(gx + gh, 2, axis=-1)
    return (jax.nn.sigmoid(f) * carry[0] + (1 - jax.nn.sigmoid(f - 1)) * jnp.tanh(g),)


janet = Cell("janet", 2, 1, _janet, additive=True, forget=0)
"""f, g = gx + gh;  h' = σ(f) h + (1 - σ(f - 1)) tanh(g).

An LSTM with the forget gate alone. Source: van der Westhuizen and Lasenby, "The Unreasonable
Effectiveness of the Forget Gate", 2018, with their β = 1.
"""


@pure
def _mgu(carry: Carry, gx: Array, gh: Array) -> Carry:
    (h,) = carry
    xf, xn = jnp.split(gx, 2, axis=-1)
    hf, hn = jnp.split(gh, 2, axis=-1)
    f = jax.nn.sigmoid(xf + hf)
    return ((1 - f) * h + f * jnp.tanh(xn + f * hn),)


mgu = Cell("mgu", 2, 1, _mgu)
"""f = σ(gx_f + gh_f);  n = tanh(gx_n + f gh_n);  h' = (1 - f) h + f n.

As in PyTorch's GRU, the gate multiplies the product W_hn h + b_hn; in the paper it multiplies h.
Source: Zhou et al., "Minimal Gated Unit for Recurrent Neural Networks", 2016.
"""


@pure
def _light_gru(carry: Carry, gx: Array, gh: Array) -> Carry:
    z, n = jnp.split(gx + gh, 2, axis=-1)
    z = jax.nn.sigmoid(z)
    return (z * carry[0] + (1 - z) * jax.nn.relu(n),)


light_gru = Cell("light_gru", 2, 1, _light_gru, additive=True, forget=0)
"""z, n = gx + gh;  h' = σ(z) h + (1 - σ(z)) max(n, 0).

A GRU without reset gate. The paper normalises W x over the batch, which is no part of a step: put a
batch normalisation before the layer. Source: Ravanelli et al., "Light Gated Recurrent Units for
Speech Recognition", 2018.
"""


@pure
def _reset_before_gru(params: Any, carry: Carry, gx: Array, gh: Array) -> Carry:
    (h,) = carry
    hidden = h.shape[-1]
    gates, candidate = params["weight_hh"][: 2 * hidden], params["weight_hh"][2 * hidden :]
    r, z = jnp.split(
        jax.nn.sigmoid(gx[..., : 2 * hidden] + project(h, gates, None, gx.dtype)), 2, axis=-1
    )
    n = jnp.tanh(gx[..., 2 * hidden :] + project(r * h, candidate, None, gx.dtype))
    return ((1 - z) * n + z * h,)


def _recurrent_matrix(key: Array, hidden: int, dtype: Any) -> dict[str, Array]:
    return {"weight_hh": uniform(key, (3 * hidden, hidden), hidden, dtype)}


reset_before_gru = Cell(
    "reset_before_gru", 3, 1, _reset_before_gru, init=_recurrent_matrix, recurrent=False, forget=1
)
"""r = σ(gx_r + W_hr h);  z = σ(gx_z + W_hz h);  n = tanh(gx_n + W_hn (r h));  h' = (1 - z) n + z h.

The reset gate multiplies h before the product, so the cell owns its matrix, the parameter
`weight_hh` (3H, H), and its gradient is summed step by step: it trains slower than `gru`. It has
one bias, `bias_ih`. Source: Cho et al., "Learning Phrase Representations using RNN
Encoder-Decoder", 2014; Haiku's GRU, and Keras's with `reset_after=False`.
"""
