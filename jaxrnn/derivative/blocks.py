"""Gradients of the weights of a projection, summed in blocks of rows.

The gradient of W in y_t = W x_t is a sum of T B products. A CPU's matrix product adds them one
after another, and the rounding error of such a sum grows with its length. Here each block is a sum
of its own, and the sums of the blocks are added: by the CPU kernel, or by products of XLA.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
from jax import Array, lax

from jaxrnn import cells, sharding
from jaxrnn.derivative import linear_map
from jaxrnn.native import primitive, products
from jaxrnn.rows import NO_ROWS

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
    if not _sums_in_blocks(x, weight) or weight.dtype != dtype or sharding.spread(x, weight, bias):
        return cells.project(x, weight, bias, dtype, precision)
    return linear_map.apply(Projection(precision), x.astype(dtype), (weight, bias))


def _sums_in_blocks(x: Array, weight: Array) -> bool:
    """True for several blocks, or by the kernel, on one CPU device."""
    # Over several devices the sum of every block would be an all-reduce.
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return False
    if not all(isinstance(size, int) for size in x.shape):
        return False
    rows = math.prod(x.shape[:2])
    return rows >= 2 * ROWS or products.is_faster(weight, rows)


@dataclasses.dataclass(frozen=True)
class Projection(linear_map.LinearMap):
    """(weight, bias) -> `cells.project` of a fixed x."""

    precision: lax.PrecisionLike

    def plain(self, x: Array, operands: Any) -> Array:
        weight, bias = operands
        return cells.project(x, weight, bias, x.dtype, self.precision)

    def adjoint(self, x: Array, like: Any, dy: Array) -> Any:
        weight, bias = like
        rows = math.prod(x.shape[:2])
        call = Sum(self.precision, bias is not None)
        run = sum_outer if products.is_faster(weight, rows) else sum_blocks
        dweight, dbias = run(call, *(a.reshape(rows, a.shape[2]) for a in (dy, x)))
        return dweight, None if bias is None else dbias.astype(bias.dtype)


class Sum(NamedTuple):
    precision: lax.PrecisionLike
    with_bias: bool


def sum_blocks(call: Sum, dy: Array, x: Array) -> tuple[Array, Array]:
    """(dy^T x, the sum of dy's rows): each block of rows is summed by itself.

    The second result is empty without a bias.
    """

    def product(x: Array, dy: Array) -> Array:
        # x before dy: XLA copies the first operand to transpose it, and x is the smaller one.
        return lax.dot_general(x, dy, (((0,), (0,)), ((), ())), precision=call.precision)

    def add(sums: Any, block: Any) -> Any:
        x, dy = block
        dweight, dbias = sums
        return (dweight + product(x, dy), dbias + dy.sum(0)), None

    rows = _rows_of_a_block(x.shape[0])
    whole = x.shape[0] // rows * rows
    parts = (a[:whole].reshape(-1, rows, a.shape[1]) for a in (x, dy))
    start = product(x[whole:], dy[whole:]), dy[whole:].sum(0)
    (dweight, dbias), _ = lax.scan(add, start, tuple(parts))
    return dweight.T, dbias if call.with_bias else dbias[:0]


def _rows_of_a_block(rows: int) -> int:
    """At least `ROWS`, and a divisor of all rows where there is one."""
    return next((n for n in range(ROWS, 2 * ROWS) if rows % n == 0), ROWS)


def _sum_on_cpu(call: Sum, dy: Array, x: Array) -> tuple[Array, Array]:
    return products.sum_outer(dy, x, with_bias=call.with_bias)


sum_outer = primitive.make_primitive(
    "jaxrnn_outer",
    sum_blocks,
    {"cpu": primitive.Kernel(_sum_on_cpu)},
    lambda call, dy, x: ((0, 0), (NO_ROWS, NO_ROWS)),
)
"""`sum_blocks` by the kernel."""
