"""Outputs rounded to bfloat16 by the CPU kernel.

XLA divides a conversion among threads, and to wake one takes longer than to convert the outputs of
a small layer.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxrnn import native, sharding
from jaxrnn.native import primitive


def _plain(_: None, x: Array) -> Array:
    return x.astype(jnp.bfloat16)


def _on_cpu(_: None, x: Array) -> Array:
    like = jax.ShapeDtypeStruct(x.shape, jnp.bfloat16)
    return jax.ffi.ffi_call(native.ROUND, like)(x, build=np.int32(0))


_round = primitive.make_primitive(
    "jaxrnn_round",
    _plain,
    {"cpu": primitive.Kernel(_on_cpu, lambda _, x: native.multiplies_bfloat16())},
    lambda _, x: ((1,), 1),
)


@jax.custom_jvp
def outputs_in_bfloat16(ys: Array) -> Array:
    """ys (T, B, N) in float32, rounded to the nearest bfloat16; subnormal numbers may become 0."""
    return ys.astype(jnp.bfloat16) if sharding.spread(ys) else _round(None, ys)


@outputs_in_bfloat16.defjvp
def _jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return outputs_in_bfloat16(*primals), tangents[0].astype(jnp.bfloat16)
