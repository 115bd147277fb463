"""Cells with layer normalisation inside the step (Ba, Kiros and Hinton, 2016)."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxrnn.cells.base import Carry, Cell, pure, spread

__all__ = ["layer_norm_gru", "layer_norm_lstm"]

EPSILON = 1e-5
"""Added to the variance, as by `torch.nn.LayerNorm`."""


def layer_norm(x: Array, params: Any, name: str) -> Array:
    """(x - mean) / sqrt(variance + 1e-5) · weight + bias, over the last axis."""
    mean = x.mean(-1, keepdims=True)
    centred = x - jnp.broadcast_to(mean, x.shape)
    scale = lax.rsqrt((centred * centred).mean(-1, keepdims=True) + EPSILON)
    weight, bias = (spread(params[f"{name}_{part}"], x) for part in ("weight", "bias"))
    return centred * jnp.broadcast_to(scale, x.shape) * weight + bias


def _norms(**sizes: int) -> Any:
    """The initial parameters of norms over `sizes` times H features: weights 1, biases 0."""

    def init(key: Array, hidden: int, dtype: Any) -> dict[str, Array]:
        return {
            f"{name}_{part}": value((size * hidden,), dtype)
            for name, size in sizes.items()
            for part, value in (("weight", jnp.ones), ("bias", jnp.zeros))
        }

    return init


@pure
def _layer_norm_lstm(params: Any, carry: Carry, gx: Array, gh: Array) -> Carry:
    i, f, g, o = jnp.split(layer_norm(gx + gh, params, "norm_gates"), 4, axis=-1)
    c = jax.nn.sigmoid(f) * carry[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
    c = layer_norm(c, params, "norm_cell")
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


layer_norm_lstm = Cell(
    "layer_norm_lstm",
    4,
    2,
    _layer_norm_lstm,
    additive=True,
    init=_norms(norm_gates=4, norm_cell=1),
    forget=1,
)
"""i, f, g, o = LN(gx + gh);  c' = LN(σ(f) c + σ(i) tanh(g));  h' = σ(o) tanh(c').

One norm over all 4H gates, and c' itself is normalised, as in torchaudio's RNN-T; with `bias=False`
the layer has torchaudio's parameters. Parameters: `norm_gates_weight`, `norm_gates_bias` (4H,),
`norm_cell_weight`, `norm_cell_bias` (H,). Source: Ba, Kiros and Hinton, "Layer Normalization",
2016; `torchaudio.models.rnnt`.
"""


@pure
def _layer_norm_gru(params: Any, carry: Carry, gx: Array, gh: Array) -> Carry:
    (h,) = carry
    xr, xz, xn = jnp.split(layer_norm(gx, params, "norm_ih"), 3, axis=-1)
    hr, hz, hn = jnp.split(layer_norm(gh, params, "norm_hh"), 3, axis=-1)
    r, z = jax.nn.sigmoid(xr + hr), jax.nn.sigmoid(xz + hz)
    return ((1 - z) * jnp.tanh(xn + r * hn) + z * h,)


layer_norm_gru = Cell(
    "layer_norm_gru", 3, 1, _layer_norm_gru, init=_norms(norm_ih=3, norm_hh=3), forget=1
)
"""x_r, x_z, x_n = LN(gx);  h_r, h_z, h_n = LN(gh);  then the GRU: n = tanh(x_n + r h_n), ...

Inputs and state are normalised apart, over all 3H gates, as in haste; with `bias=False` the layer
has haste's parameters. Parameters: `norm_ih_weight`, `norm_ih_bias`, `norm_hh_weight`,
`norm_hh_bias`, (3H,) each. Source: Ba, Kiros and Hinton, "Layer Normalization", 2016; haste's
`LayerNormGRU`.
"""
