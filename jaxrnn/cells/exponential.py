"""Cells with exponential gates."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxrnn.cells.base import Carry, Cell, pure

__all__ = ["slstm"]


@pure
def _slstm(carry: Carry, gx: Array, gh: Array) -> Carry:
    _, c, n, m = carry
    i, f, z, o = jnp.split(gx + gh, 4, axis=-1)
    kept = m + jax.nn.log_sigmoid(f)
    # A state that is new, n = 0, has no largest exponent yet.
    m = jnp.where(n == 0, i, jnp.maximum(i, kept))
    i, f = jnp.exp(i - m), jnp.exp(jnp.where(n == 0, jnp.zeros_like(m), kept - m))
    c, n = f * c + i * jnp.tanh(z), f * n + i
    return jax.nn.sigmoid(o) * c / n, c, n, m


slstm = Cell("slstm", 4, 4, _slstm, additive=True, forget=1)
"""i, f, z, o = gx + gh;  m' = max(i, log σ(f) + m);  i' = exp(i - m');  f' = σ(f) exp(m - m');
c' = f' c + i' tanh(z);  n' = f' n + i';  h' = σ(o) c' / n'.

The states are h, c, n and m, in this order; m, the largest exponent so far, changes no output but
keeps exp from overflowing. One head, so W_hh is full. Source: Beck et al., "xLSTM: Extended Long
Short-Term Memory", 2024.
"""
