"""Layers in bfloat16 by the CPU kernel: it takes float32 arrays and rounds operands and outputs.

XLA would convert weights and inputs for every call. It divides a conversion among threads, and to
wake one takes longer than to convert the outputs of a small layer.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxrnn import native, sharding
from jaxrnn.cells import Carry, Cell, Weights
from jaxrnn.native import primitive
from jaxrnn.strategies.base import Strategy
from jaxrnn.strategies.default import default
from jaxrnn.strategies.native import Native, on_cpu


def rounding(
    strategy: Strategy | None, cell: Cell, weights: Weights, x: Array, carry: Carry
) -> Strategy | None:
    """The strategy that takes float32 arrays and rounds them to bfloat16 in its products.

    It stands for `strategy`. None if there is none: then weights and inputs are to be converted.
    """
    if not (on_cpu() and native.multiplies_bfloat16()):
        return None
    rounds, arguments = Native(products="bfloat16"), (cell, weights, x, carry)
    chosen = default(*arguments) if strategy is None else strategy
    return rounds if chosen == Native() and not rounds.refusal(*arguments) else None


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
