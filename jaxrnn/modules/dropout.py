"""Dropout between layers, apart from the module that holds its random state.

The keys are drawn outside of the compiled call, where Flax's streams can count, and the masks are
made inside. `nnx.Dropout` would do both at once.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax


def draw_keys(name: str, layer: nnx.Dropout, rngs: Any, count: int) -> tuple[Array, ...]:
    """One key for each gap between layers, from the call's `rngs` or else the layer's own.

    Args:
        name: of the module, for the message.
        layer: holds the rate, the stream's name and the stream itself.
        rngs: `nnx.Rngs`, a stream, or a key, which is split among several gaps; None for the
            layer's stream.
        count: the number of gaps.

    Raises:
        TypeError: `rngs` is none of these.
    """
    source = layer.rngs if rngs is None else rngs
    if isinstance(source, nnx.Rngs):
        source = source[layer.rng_collection]
    if isinstance(source, nnx.RngStream):
        return tuple(source() for _ in range(count))
    if isinstance(source, jax.Array):
        return (source,) if count == 1 else tuple(jax.random.split(source, count))
    raise TypeError(
        f"`{name}` with dropout needs `rngs` of an `nnx.Rngs`, a stream or a key, got {source!r}."
    )


def drop(y: Array, key: Array, rate: float) -> Array:
    """`nnx.Dropout` as a function: zeroes each element with probability `rate`, rescales the rest.

    y' = y m / (1 - rate),  m ~ Bernoulli(1 - rate)
    """
    if rate == 1:
        return jnp.zeros_like(y)  # 0 / 0 in the other formula
    keep = 1 - rate
    mask = jax.random.bernoulli(key, keep, y.shape, out_sharding=jax.typeof(y).sharding)
    return lax.select(mask, y / keep, jnp.zeros_like(y))
