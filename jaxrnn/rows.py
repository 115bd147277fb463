"""Arrays whose rows are computed independently of each other, and `vmap` as more rows.

A function with rows is described by the axis of the rows in each of its arrays, or `NO_ROWS` for
an array that all rows share. `vmap` over arrays with rows alone is one call with more rows.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxrnn.cells import Weights

NO_ROWS = -1
MOST = 2**31
"""Limit of a kernel's T * B."""


def axis_of(axis: int, tree: Any) -> Any:
    """The axis of the rows for each array of a pytree; an absent array has one axis and no rows."""
    return jax.tree.map(lambda a: axis if a.ndim > 1 else NO_ROWS, tree)


def of_weights(weights: Weights) -> Weights:
    """The axis of the rows for each array of weights: only initial states have rows."""
    shared = jax.tree.map(lambda _: NO_ROWS, weights._replace(initial=None))
    return shared._replace(initial=axis_of(0, weights.initial))


def of_arguments(weights: Weights, x: Any, carry: Any, *of_steps: Any) -> Any:
    """The axis of the rows for each argument of a layer, and for arrays (T, B, ·) after them."""
    return of_weights(weights), axis_of(1, x), axis_of(0, carry), axis_of(1, of_steps)


def of_cotangents(dweights: Weights | None, dx: Any, dcarry: Any) -> Any:
    """The same for cotangents of the arguments; None for those that are not computed."""
    return None if dweights is None else of_weights(dweights), axis_of(1, dx), axis_of(0, dcarry)


def of_results(ys: Any, last: Any) -> Any:
    """The same for the outputs and the last carry, or their cotangents."""
    return axis_of(1, ys), axis_of(0, last)


def without_axis(a: Any, axis: int | None) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an array without its mapped axis."""
    shape = [n for i, n in enumerate(a.shape) if i != axis]
    return jax.ShapeDtypeStruct(tuple(shape), a.dtype)


def with_rows(a: Any, axis: int, times: int) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an array with so many times the rows."""
    shape = [n * times if i == axis else n for i, n in enumerate(a.shape)]
    return jax.ShapeDtypeStruct(tuple(shape), a.dtype)


def can_merge(
    arrays: Sequence[Array],
    mapped: Sequence[int | None],
    operands: Sequence[int],
    results: Sequence[int],
    shapes: Sequence[Any],
) -> bool:
    """True if the mapped axes can be merged into the rows.

    No array that all rows share may be mapped or be a result, unless it is empty. On a mesh of
    explicit axes nothing is merged, for the rows may be divided otherwise than the mapped axis.

    Args:
        arrays: the operands under `vmap`.
        mapped: the mapped axis of each operand, or None.
        operands: the axis of the rows in each operand without its mapped axis.
        results: the same for the results.
        shapes: shapes of the results for one member.
    """
    size = size_of(arrays, mapped)
    if size == 0 or any(any(jax.typeof(a).sharding.spec) for a in arrays):
        return False
    for a, axis, rows in zip(arrays, mapped, operands, strict=True):
        shape = without_axis(a, axis).shape
        if rows == NO_ROWS and axis is not None and math.prod(shape) > 0:
            return False
        if rows != NO_ROWS and math.prod(shape[: rows + 1]) * size >= MOST:
            return False
    pairs = zip(results, shapes, strict=True)
    return all(rows != NO_ROWS or math.prod(s.shape) == 0 for rows, s in pairs)


def size_of(arrays: Sequence[Array], mapped: Sequence[int | None]) -> int:
    """Size of the mapped axis."""
    return next(a.shape[d] for a, d in zip(arrays, mapped, strict=True) if d is not None)


def run_merged(
    run: Callable[..., list[Array]],
    arrays: Sequence[Array],
    mapped: Sequence[int | None],
    operands: Sequence[int],
    results: Sequence[int],
) -> tuple[list[Array], list[int | None]]:
    """`vmap` of `run` by one call with more rows: its results, and their mapped axes.

    The arguments are those of `can_merge`.
    """
    size = size_of(arrays, mapped)

    def merge(a: Array, axis: int | None, rows: int) -> Array:
        if rows == NO_ROWS:  # an empty array, if it is mapped
            return a if axis is None else lax.index_in_dim(a, 0, axis, keepdims=False)
        if axis is None:
            a = jnp.broadcast_to(a, (size, *a.shape))
        a = jnp.moveaxis(a, axis or 0, rows)
        return a.reshape(*a.shape[:rows], size * a.shape[rows + 1], *a.shape[rows + 2 :])

    def divide(a: Array, rows: int) -> tuple[Array, int | None]:
        if rows == NO_ROWS:
            return a, None
        shape = *a.shape[:rows], size, a.shape[rows] // size, *a.shape[rows + 1 :]
        return a.reshape(shape), rows

    found = run(*map(merge, arrays, mapped, operands))
    divided = list(map(divide, found, results))
    return [a for a, _ in divided], [axis for _, axis in divided]


def run_each(
    run: Callable[..., list[Array]], arrays: Sequence[Array], mapped: Sequence[int | None]
) -> list[Array]:
    """`vmap` of `run` by one call for each member in turn; the results are mapped along axis 0."""
    own = [jnp.moveaxis(a, d, 0) for a, d in zip(arrays, mapped, strict=True) if d is not None]

    def member(own: list[Array]) -> list[Array]:
        left = iter(own)
        return run(*(a if d is None else next(left) for a, d in zip(arrays, mapped, strict=True)))

    return lax.map(member, own)
