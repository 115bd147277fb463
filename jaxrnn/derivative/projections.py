"""The projections of inputs and states, for the loops of `jaxrnn.strategies.Scan`.

On a CPU the kernel multiplies. XLA's own product would arrange W_hh anew at every step; the kernel
has it arranged once, before the first step, for each direction of the derivative.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jaxrnn import cells, sharding
from jaxrnn.cells import Carry, Weights
from jaxrnn.derivative import linear_map
from jaxrnn.native import products
from jaxrnn.rows import NO_ROWS


def of_inputs(weights: Weights, x: Array, carry: Carry, precision: lax.PrecisionLike) -> Array:
    """`cells.project_inputs` of x (T, B, I), which JAX need not differentiate."""
    ih, dtype = weights.ih, carry[0].dtype
    if not _is_known(x) or not _kernel_multiplies(ih, x.shape[0] * x.shape[1], x, carry):
        return cells.project_inputs(weights, x, dtype, precision)
    (steps, batch, features), inputs = x.shape, ih.shape[1]
    x = x.astype(dtype)
    rows = x[..., :inputs].reshape(steps * batch, inputs)
    packed = products.pack(products.Packing(transposed=True), ih)
    gx = products.multiply(precision, rows, ih.T, packed, _in_dtype(weights.b_ih, dtype))
    gx = gx.reshape(steps, batch, ih.shape[0])
    return gx if features == inputs else jnp.concatenate([gx, x[..., inputs:]], axis=-1)


def of_state(
    weights: Weights, x: Array, carry: Carry, precision: lax.PrecisionLike
) -> Callable[[Array], Array]:
    """h (B, H) -> W_hh h for every step of a loop over x (T, B, I)."""
    hh, dtype = weights.hh, carry[0].dtype
    if hh is None:
        raise ValueError("The cell has no W_hh.")
    turned = hh.T  # `h @ W` runs faster than `h @ W.T`
    if not _is_known(x) or not _kernel_multiplies(hh, x.shape[1], x, carry):
        dims = (((1,), (0,)), ((), ()))
        options: Any = {"precision": precision, "preferred_element_type": dtype}
        return lambda h: lax.dot_general(h.astype(hh.dtype), turned, dims, **options)
    constant = lax.stop_gradient(hh)
    packed = products.pack(products.Packing(transposed=True), constant)
    backward = products.pack(products.Packing(transposed=False), constant)
    fixed = turned, packed, hh, backward
    return lambda h: linear_map.apply(Projection(precision), fixed, h.astype(hh.dtype))


def of_both(
    weights: Weights, x: Array, carry: Carry, precision: lax.PrecisionLike
) -> Callable[[Array, Array], Array] | None:
    """(h, t) -> W_ih x_t + b_ih + W_hh h + b_hh, which JAX need not differentiate.

    None if XLA is faster. The kernel adds both products of a step, so the projections of the whole
    sequence are not kept. XLA would read those in the loops over the gates, which it then does not
    vectorise.
    """
    hh, ih, dtype = weights.hh, weights.ih, carry[0].dtype
    if hh is None or not _is_known(x):
        return None
    if x.shape[2] != ih.shape[1] or ih.shape[0] != hh.shape[0] or ih.dtype != dtype:
        return None
    if not _kernel_multiplies(hh, x.shape[1], x, carry):
        return None
    x = x.astype(dtype)
    transposed = products.Packing(transposed=True)
    of_x, of_h = ((w.T, products.pack(transposed, w)) for w in (ih, hh))
    b_ih, b_hh = (_in_dtype(b, dtype) for b in (weights.b_ih, weights.b_hh))
    bias = b_hh if b_ih is None else b_ih if b_hh is None else b_ih + b_hh

    def run(h: Array, t: Array) -> Array:
        h = h if weights.mask is None else (h * weights.mask).astype(dtype)
        return products.multiply(precision, h, *of_h, bias, products.Step(x, t, *of_x))

    return run


@dataclasses.dataclass(frozen=True)
class Projection(linear_map.LinearMap):
    """h -> h W for a fixed (W, W packed, W^T, W^T packed)."""

    precision: lax.PrecisionLike

    def plain(self, fixed: Any, operands: Array) -> Array:
        return products.plain(self.precision, operands, fixed[0])

    def tangent(self, fixed: Any, operands: Array) -> Array:
        return products.multiply(self.precision, operands, *fixed[:2])

    def adjoint(self, fixed: Any, like: Any, cotangents: Array) -> Array:
        return products.multiply(self.precision, cotangents, *fixed[2:])

    def rows(self, fixed: Any, operands: Any, results: Any) -> Any:
        return (NO_ROWS,) * 4, 0, 0


def _in_dtype(bias: Array | None, dtype: Any) -> Array | None:
    return None if bias is None else bias.astype(dtype)


def _is_known(x: Array) -> bool:
    """False if a size of x is symbolic, as under `jax.export`."""
    return all(isinstance(size, int) for size in x.shape)


def _kernel_multiplies(weight: Array, rows: int, x: Array, carry: Carry) -> bool:
    faster = x.shape[0] > 1 and products.is_faster(weight, rows)
    return faster and weight.dtype == carry[0].dtype and not sharding.spread(weight, x, carry)
