"""`nnx.Linear` with PyTorch's initialisation."""

import math

import jax
from flax import nnx
from jax.typing import DTypeLike


def linear(
    inputs: int,
    outputs: int,
    *,
    dtype: DTypeLike | None,
    param_dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """A layer whose kernel and bias are drawn from U(-1/sqrt(inputs), 1/sqrt(inputs))."""

    def draw(key, shape, dtype, out_sharding=None):
        bound = 1.0 / math.sqrt(inputs)
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nnx.Linear(
        inputs,
        outputs,
        dtype=dtype,
        param_dtype=param_dtype,
        kernel_init=draw,
        bias_init=draw,
        rngs=rngs,
    )
