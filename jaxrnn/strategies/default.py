"""The strategy that runs where none is named."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxrnn.cells import Carry, Cell, Weights
from jaxrnn.strategies.base import Strategy
from jaxrnn.strategies.native import Native
from jaxrnn.strategies.scan import Scan

_LEAST_ON_GPU = 32
"""Steps from which the CUDA kernels are chosen.

`benchmarks/results/gpu-h100-2026-11-26.md` has 512 steps. For few, a call's fixed cost would count.
"""


def default(cell: Cell, weights: Weights, x: Array, carry: Carry) -> Strategy:
    """The strategy for `strategy=None`: `Native` where it runs and is faster, else `Scan`.

    It is chosen when a function is traced, by the default backend, the cell, the dtypes and the
    shapes: on a GPU for 32 steps or more and a carry in float32. A dimension without a value, as in
    `jax.export`, leaves `Scan`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn import cells, strategies
        >>> weights = cells.Weights(ih=jnp.ones((4, 3)), hh=jnp.eye(4))
        >>> own = cells.rnn_tanh._replace(name="own")
        >>> strategies.default(own, weights, jnp.ones((5, 2, 3)), (jnp.zeros((2, 4)),))
        Scan(unroll=None)
    """
    known = all(isinstance(size, int) for size in x.shape)
    backend, kernel = jax.default_backend(), Native()
    fast_on_gpu = backend == "gpu" and carry[0].dtype == jnp.float32
    is_faster = backend == "cpu" or (known and fast_on_gpu and x.shape[0] >= _LEAST_ON_GPU)
    if known and is_faster and not kernel.refusal(cell, weights, x, carry):
        return kernel
    return Scan()
