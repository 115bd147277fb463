"""Cells without a product with h: each unit sees its own state alone."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxrnn.cells.base import Carry, Cell, linear_step, pure, spread

__all__ = ["ind_rnn", "min_gru", "min_lstm"]


@pure
def _ind_rnn(params: Any, carry: Carry, gx: Array, gh: Array) -> Carry:
    return (jax.nn.relu(gx + gh + spread(params["recurrent_weight"], gx) * carry[0]),)


def _recurrent_vector(key: Array, hidden: int, dtype: Any) -> dict[str, Array]:
    return {"recurrent_weight": jax.random.uniform(key, (hidden,), dtype)}


ind_rnn = Cell("ind_rnn", 1, 1, _ind_rnn, additive=True, init=_recurrent_vector, recurrent=False)
"""h' = max(gx + u h, 0).

Parameter: u, `recurrent_weight` (H,), at first from U(0, 1). Source: Li et al., "Independently
Recurrent Neural Network (IndRNN): Building A Longer and Deeper RNN", 2018.
"""


def _min_gru(gx: Array) -> tuple[Array, Array]:
    z, n = jnp.split(gx, 2, axis=-1)
    z = jax.nn.sigmoid(z)
    return 1 - z, z * n


min_gru = Cell("min_gru", 2, 1, linear_step(_min_gru), recurrent=False, linear=_min_gru)
"""z, n = gx;  h' = (1 - σ(z)) h + σ(z) n.

Linear in h, so `strategies.AssociativeScan` runs it in parallel over time. Source: Feng et al.,
"Were RNNs All We Needed?", 2024.
"""


def _min_lstm(gx: Array) -> tuple[Array, Array]:
    f, i, n = jnp.split(gx, 3, axis=-1)
    # σ(f) / (σ(f) + σ(i)), by logarithms: where both gates are shut, their ratio counts.
    share = jax.nn.sigmoid(jax.nn.log_sigmoid(f) - jax.nn.log_sigmoid(i))
    return share, (1 - share) * n


min_lstm = Cell("min_lstm", 3, 1, linear_step(_min_lstm), recurrent=False, linear=_min_lstm)
"""f, i, n = gx;  a = σ(f) / (σ(f) + σ(i));  h' = a h + (1 - a) n.

Linear in h, so `strategies.AssociativeScan` runs it in parallel over time. Source: Feng et al.,
"Were RNNs All We Needed?", 2024.
"""
