"""The operands of the CUDA kernels: padded units, ordered steps of a mask, NaNs of one kind.

Hidden units are padded with zeros, which stay 0 in every cell, forward and backward.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxrnn import cells
from jaxrnn.cells import Carry, Cell, Weights
from jaxrnn.steps import has_resets, is_reset

START, RESET, HELD = -1, -2, -3
"""In `previous`, instead of a step: it starts from the initial carry; it starts from the state to
which the row is reset; the row takes no step."""


def order_steps(mask: Array, reverse: bool) -> tuple[Array, Array]:
    """For each step of each row the step that it continues, and the one that continues it.

    Args:
        mask: (T, B), True where the row takes a step; or integers as in `jaxrnn.steps`.
        reverse: the last step comes first.

    Returns:
        `previous`, with `START`, `RESET` and `HELD`, and `following`, -1 where there is none.

    Example:
        >>> import jax.numpy as jnp
        >>> mask = jnp.array([[True], [False], [True]])
        >>> previous, following = order_steps(mask, reverse=False)
        >>> previous[:, 0].tolist(), following[:, 0].tolist()
        ([-1, -3, 0], [2, -1, -1])
    """
    steps, batch = mask.shape
    resets = is_reset(mask) if has_resets(mask) else None
    mask = mask.astype(bool)
    t = lax.broadcasted_iota(jnp.int32, mask.shape, 0)
    none = jnp.full((1, batch), -1, jnp.int32)
    before = lax.cummax(jnp.where(mask, t, -1), axis=0)
    after = lax.cummin(jnp.where(mask, t, steps), axis=0, reverse=True)
    earlier = jnp.concatenate([none, before[:-1]])
    later = jnp.concatenate([after[1:], none])
    later = jnp.where(later == steps, -1, later)
    previous, following = (later, earlier) if reverse else (earlier, later)
    if resets is not None:  # a reset continues no step
        previous = jnp.where(resets, RESET, previous)
        is_next = jnp.take_along_axis(resets, jnp.maximum(following, 0), axis=0)
        following = jnp.where(is_next, -1, following)
    return jnp.where(mask, previous, HELD), jnp.where(mask, following, -1)


def initial_states(carry: Carry, weights: Weights, mask: Array | None) -> Carry:
    """The states from which steps start: (B, H), and (2 B, H) where rows are reset."""
    if not has_resets(mask):
        return carry
    resets = tuple(map(jnp.zeros_like, carry)) if weights.initial is None else weights.initial
    return tuple(
        jnp.concatenate([c, r.astype(c.dtype)]) for c, r in zip(carry, resets, strict=True)
    )


def pad(a: Array, parts: int, hidden: int, size: int) -> Array:
    """Pad the units in each of `parts` of the last axis from `hidden` to `size`."""
    if hidden == size or a.size == 0:
        return a
    apart = a.reshape(*a.shape[:-1], parts, hidden)
    widths = [(0, 0)] * (apart.ndim - 1) + [(0, size - hidden)]
    return jnp.pad(apart, widths).reshape(*a.shape[:-1], parts * size)


def unpad(a: Array, parts: int, hidden: int, size: int) -> Array:
    if hidden == size or a.size == 0:
        return a
    apart = a.reshape(*a.shape[:-1], parts, size)
    return apart[..., :hidden].reshape(*a.shape[:-1], parts * hidden)


def pad_rows(w: Array, parts: int, hidden: int, size: int) -> Array:
    """W_hh (G H, H), padded in both."""
    return pad(pad(w, 1, hidden, size).T, parts, hidden, size).T


def canonical(a: Array) -> Array:
    """Make one NaN of all: a reader takes a NaN of all ones for a word not yet written."""
    one = jnp.uint16 if a.dtype == jnp.bfloat16 else jnp.uint32
    infinity, nan = (0x7F80, 0x7FC0) if one == jnp.uint16 else (0x7F800000, 0x7FC00000)
    bits = lax.bitcast_convert_type(a, one)
    is_nan = (bits & one(0x7FFF if one == jnp.uint16 else 0x7FFFFFFF)) > one(infinity)
    return lax.bitcast_convert_type(jnp.where(is_nan, one(nan), bits), a.dtype)


def sum_of_products(a: Array, b: Array, precision: lax.PrecisionLike) -> Array:
    """(M, N) in float32: the sum over steps and rows of the outer products of (T, B, M), (T, B, N).

    A small result of many rows leaves most of a GPU idle, so the sum is made in blocks of steps
    side by side. XLA would make one product of them again, if it saw their sum.

    Example:
        >>> import jax.numpy as jnp
        >>> sum_of_products(jnp.ones((4, 3, 2)), jnp.ones((4, 3, 1)), None).tolist()
        [[12.0], [12.0]]
    """
    (steps, batch, width), other = a.shape, b.shape[-1]
    blocks = blocks_of_steps(steps, batch, width, other)
    a, b = a.reshape(blocks, -1, width), b.reshape(blocks, -1, other)
    dims = (((1,), (1,)), ((0,), (0,)))
    parts = lax.dot_general(a, b, dims, precision=precision, preferred_element_type=jnp.float32)
    return parts[0] if blocks == 1 else lax.optimization_barrier(parts).sum(0)


def blocks_of_steps(steps: int, batch: int, width: int, other: int) -> int:
    """The number of blocks, a power of two that divides the steps: about two tiles of the result
    for each multiprocessor, and no fewer than 256 rows in a block."""
    tiles = -(-width // 128) * -(-other // 128)
    most = min(256 // tiles, steps * batch // 256)
    even = steps & -steps  # the largest power of two that divides them
    return min(even, 1 << most.bit_length() - 1) if most > 1 else 1


def empty(dtype: Any) -> Array:
    return jnp.zeros((0,), dtype)


def shape(*shape: int, dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def add_biases(cell: Cell, weights: Weights, hidden: int) -> tuple[Array | None, Array]:
    """The bias added to gx, and the GRU's b_hn, which belongs to the product W_hn h."""
    absent = empty(jnp.float32)
    if weights.b_ih is None or weights.b_hh is None:
        return weights.b_ih if weights.b_hh is None else weights.b_hh, absent
    b_hh = weights.b_hh
    if cell is not cells.gru:
        return weights.b_ih + b_hh, absent
    with_hn = jnp.concatenate([b_hh[: 2 * hidden], jnp.zeros_like(b_hh[2 * hidden :])])
    return weights.b_ih + with_hn, b_hh[2 * hidden :].astype(jnp.float32)


def order(mask: Array | None, reverse: bool) -> tuple[Array, Array]:
    absent = empty(jnp.int32)
    return (absent, absent) if mask is None else order_steps(mask, reverse)


def sum_of_starts(dg: Array, previous: Array, reverse: bool, resets: bool) -> Array:
    """The sums of `dg` over the steps that start from each of the `initial_states`."""
    if previous.size == 0:
        return dg[-1] if reverse else dg[0]

    def sum_of(kind: int) -> Array:
        starts = (previous == kind)[:, :, None]
        return jnp.where(starts, dg.astype(jnp.float32), 0.0).sum(0).astype(dg.dtype)

    return jnp.concatenate([sum_of(START), sum_of(RESET)]) if resets else sum_of(START)


def states_before(ys: Array, h0: Array, previous: Array, reverse: bool) -> Array:
    """(T, B, H): the h that enters each step, given the `initial_states` of h."""
    if previous.size == 0:
        return (
            jnp.concatenate([ys[1:], h0[None]]) if reverse else jnp.concatenate([h0[None], ys[:-1]])
        )
    starts = h0.reshape(-1, *ys.shape[1:])[::-1]  # in the order of RESET, START
    index = jnp.maximum(previous + len(starts), 0)[:, :, None]
    return jnp.take_along_axis(jnp.concatenate([starts, ys]), index, axis=0)
