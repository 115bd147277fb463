"""Gradients of the weights of a projection, summed in blocks of steps.

The gradient of W in y_t = W x_t is a sum of T B products. A CPU's matrix product adds them one
after another, and the rounding error of such a sum grows with its length. Here each block is a sum
of its own, and the sums of the blocks are added.
"""

import dataclasses
import math
from typing import Any

import jax
from jax import Array, lax

from jaxrnn import cells, sharding
from jaxrnn.derivative import linear_map

ROWS = 128
"""Rows of a block, at least; more of them add whole matrices less often, and err more."""


def project(
    x: Array, weight: Array, bias: Array | None, dtype: Any, precision: lax.PrecisionLike = None
) -> Array:
    """`cells.project` of x (T, B, I), whose transpose for weight and bias sums in blocks.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn.derivative import blocks
        >>> x = jnp.ones((1200, 1, 3))
        >>> y, pull = jax.vjp(lambda w: blocks.project(x, w, None, x.dtype), jnp.ones((2, 3)))
        >>> pull(y)[0].tolist()
        [[3600.0, 3600.0, 3600.0], [3600.0, 3600.0, 3600.0]]
    """
    steps = _steps_of_a_block(x)
    if not steps or weight.dtype != dtype or sharding.spread(x, weight, bias):
        return cells.project(x, weight, bias, dtype, precision)
    return linear_map.apply(Projection(steps, precision), x.astype(dtype), (weight, bias))


@dataclasses.dataclass(frozen=True)
class Projection(linear_map.LinearMap):
    """(weight, bias) -> `cells.project` of a fixed x."""

    steps: int
    precision: lax.PrecisionLike

    def plain(self, x: Array, operands: Any) -> Array:
        weight, bias = operands
        return cells.project(x, weight, bias, x.dtype, self.precision)

    def adjoint(self, x: Array, like: Any, dy: Array) -> Any:
        _, bias = like

        def product(x: Array, dy: Array) -> Array:
            # x before dy: XLA copies the first operand to transpose it, and x is the smaller one.
            return lax.dot_general(x, dy, (((0, 1), (0, 1)), ((), ())), precision=self.precision)

        def add(sums: Any, block: Any) -> Any:
            x, dy = block
            dweight, dbias = sums
            return (dweight + product(x, dy), dbias + dy.sum((0, 1))), None

        whole = x.shape[0] // self.steps * self.steps
        parts = (a[:whole].reshape(-1, self.steps, *a.shape[1:]) for a in (x, dy))
        start = product(x[whole:], dy[whole:]), dy[whole:].sum((0, 1))
        (dweight, dbias), _ = lax.scan(add, start, tuple(parts))
        return dweight.T, None if bias is None else dbias


def _steps_of_a_block(x: Array) -> int:
    """Steps of at least `ROWS` rows, a divisor of T where there is one; 0 for a single product."""
    # Over several devices the sum of every block would be an all-reduce.
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return 0
    if not all(isinstance(size, int) for size in x.shape):
        return 0
    steps, batch, _ = x.shape
    least = math.ceil(ROWS / max(1, batch))
    if steps < 2 * least:
        return 0
    return next((n for n in range(least, 2 * least) if steps % n == 0), least)
