"""The strategy that runs where none is named."""

import jax
from jax import Array

from jaxrnn.cells import Carry, Cell, Weights
from jaxrnn.strategies.base import Strategy
from jaxrnn.strategies.native import Native
from jaxrnn.strategies.scan import Scan


def default(cell: Cell, weights: Weights, x: Array, carry: Carry) -> Strategy:
    """The strategy that `strategy=None` stands for: `Native` where it runs on a CPU, else `Scan`.

    It is chosen when a function is traced, by the default backend, the cell, the dtypes and the
    shapes. A dimension without a value, as in `jax.export`, leaves `Scan`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn import cells, strategies
        >>> weights = cells.Weights(ih=jnp.ones((4, 3)), hh=jnp.eye(4))
        >>> own = cells.rnn_tanh._replace(name="own")
        >>> strategies.default(own, weights, jnp.ones((5, 2, 3)), (jnp.zeros((2, 4)),))
        Scan(unroll=None)
    """
    known = all(isinstance(size, int) for size in x.shape)
    native = Native()
    if known and jax.default_backend() == "cpu" and not native.refusal(cell, weights, x, carry):
        return native
    return Scan()
