"""The CUDA kernels' two calls, forward and adjoint, for one layer in one direction.

The kernels run only the recurrence. Around them stand products of XLA's own: gx before, the
cotangents of the weights and of x after. Hidden units are padded with zeros, which stay 0 in every
cell, forward and backward.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxrnn import cells
from jaxrnn.cells import Carry, Cell, Weights
from jaxrnn.native import cuda

START, HELD = -1, -2
"""In `previous`, instead of a step: it starts from the initial carry; the row takes no step."""

BF16, TF32, FLOAT32 = range(3)
"""The products' precision, as the kernels number them; the last is three TF32 products."""


class Direction(NamedTuple):
    """One direction of one layer. `number` is the cell's in the kernels."""

    cell: Cell
    number: int
    precision: lax.PrecisionLike
    reverse: bool

    def attributes(self, weights: Weights) -> dict[str, Any]:
        numbers = {
            "cell": self.number,
            "precision": products(_recurrent(weights).dtype, self.precision),
            "form": 0,
        }
        return {k: np.int32(v) for k, v in numbers.items()} | {"reverse": self.reverse}


def refusal(weights: Weights, carry: Carry) -> str:
    """The reason why the kernels cannot run this, in one sentence; empty if they can."""
    if not cuda.load():
        return "this installation of jaxrnn has no CUDA kernels"
    io = _recurrent(weights).dtype
    if io not in (jnp.bfloat16, jnp.float32):
        return f"the CUDA kernels multiply in float32 or in bfloat16, not in {io}"
    if any(a.dtype != jnp.float32 for a in carry):
        return f"the CUDA kernels sum in float32, not in {carry[0].dtype}"
    if carry[0].shape[-1] > cuda.MOST_UNITS:
        return f"the CUDA kernels take at most {cuda.MOST_UNITS} hidden units"
    return ""


def products(dtype: Any, precision: lax.PrecisionLike) -> int:
    """The precision of `W_hh h`, by the rules of `jax.lax.dot_general` on a GPU."""
    if dtype == jnp.bfloat16:
        return BF16
    if precision is None:
        precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    both = precision if isinstance(precision, tuple) else (precision,)
    exact = ("highest", "float32", "F32_F32_F32")
    names = [getattr(p, "name", p) for p in both]
    return FLOAT32 if any(n in exact or n == "HIGHEST" for n in names) else TF32


def order_steps(mask: Array, reverse: bool) -> tuple[Array, Array]:
    """For each step of each row the step that it continues, and the one that continues it.

    Args:
        mask: (T, B), True where the row takes a step.
        reverse: the last step comes first.

    Returns:
        `previous`, with `START` and `HELD`, and `following`, -1 where there is none.

    Example:
        >>> import jax.numpy as jnp
        >>> mask = jnp.array([[True], [False], [True]])
        >>> previous, following = order_steps(mask, reverse=False)
        >>> previous[:, 0].tolist(), following[:, 0].tolist()
        ([-1, -2, 0], [2, -1, -1])
    """
    steps, batch = mask.shape
    t = lax.broadcasted_iota(jnp.int32, mask.shape, 0)
    none = jnp.full((1, batch), -1, jnp.int32)
    before = lax.cummax(jnp.where(mask, t, -1), axis=0)
    after = lax.cummin(jnp.where(mask, t, steps), axis=0, reverse=True)
    earlier = jnp.concatenate([none, before[:-1]])
    later = jnp.concatenate([after[1:], none])
    later = jnp.where(later == steps, -1, later)
    previous, following = (later, earlier) if reverse else (earlier, later)
    return jnp.where(mask, previous, HELD), jnp.where(mask, following, -1)


def _recurrent(weights: Weights) -> Array:
    assert weights.hh is not None, "`Native` refuses cells without a recurrent product"
    return weights.hh


def _pad(a: Array, parts: int, hidden: int, size: int) -> Array:
    """Pads the units in each of `parts` of the last axis from `hidden` to `size`."""
    if hidden == size or a.size == 0:
        return a
    apart = a.reshape(*a.shape[:-1], parts, hidden)
    widths = [(0, 0)] * (apart.ndim - 1) + [(0, size - hidden)]
    return jnp.pad(apart, widths).reshape(*a.shape[:-1], parts * size)


def _unpad(a: Array, parts: int, hidden: int, size: int) -> Array:
    if hidden == size or a.size == 0:
        return a
    apart = a.reshape(*a.shape[:-1], parts, size)
    return apart[..., :hidden].reshape(*a.shape[:-1], parts * hidden)


def _pad_rows(w: Array, parts: int, hidden: int, size: int) -> Array:
    """W_hh (G H, H), padded in both."""
    return _pad(_pad(w, 1, hidden, size).T, parts, hidden, size).T


def _canonical(a: Array) -> Array:
    """Makes one NaN of all: a reader takes a NaN of all ones for a word not yet written."""
    one = jnp.uint16 if a.dtype == jnp.bfloat16 else jnp.uint32
    infinity, nan = (0x7F80, 0x7FC0) if one == jnp.uint16 else (0x7F800000, 0x7FC00000)
    bits = lax.bitcast_convert_type(a, one)
    is_nan = (bits & one(0x7FFF if one == jnp.uint16 else 0x7FFFFFFF)) > one(infinity)
    return lax.bitcast_convert_type(jnp.where(is_nan, one(nan), bits), a.dtype)


def _empty(dtype: Any) -> Array:
    return jnp.zeros((0,), dtype)


def _shape(*shape: int, dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _biases(cell: Cell, weights: Weights, hidden: int) -> tuple[Array | None, Array]:
    """The bias added to gx, and the GRU's b_hn, which belongs to the product W_hn h."""
    absent = _empty(jnp.float32)
    if weights.b_ih is None or weights.b_hh is None:
        return weights.b_ih if weights.b_hh is None else weights.b_hh, absent
    b_hh = weights.b_hh
    if cell is not cells.gru:
        return weights.b_ih + b_hh, absent
    with_hn = jnp.concatenate([b_hh[: 2 * hidden], jnp.zeros_like(b_hh[2 * hidden :])])
    return weights.b_ih + with_hn, b_hh[2 * hidden :].astype(jnp.float32)


def _order(mask: Array | None, reverse: bool) -> tuple[Array, Array]:
    absent = _empty(jnp.int32)
    return (absent, absent) if mask is None else order_steps(mask, reverse)


def forward(
    direction: Direction, save: bool, weights: Weights, x: Array, carry: Carry, mask: Array | None
) -> tuple[Array, Carry, Array, Array]:
    """(ys, last carry, gates, cs): the last two saved for `adjoint`, empty if not `save`.

    `gates` is (T, B, 4 H) in the weights' dtype, for LSTM and GRU; `cs` (T, B, H) in float32, for
    the LSTM.
    """
    cell, io, total = direction.cell, _recurrent(weights).dtype, jnp.dtype(jnp.float32)
    (steps, batch, _), hidden = x.shape, carry[0].shape[-1]
    size = cuda.padded(hidden)
    bias, b_hn = _biases(cell, weights, hidden)
    gx = cells.project(x, weights.ih, bias, io, direction.precision)
    h, *c = (_pad(a, 1, hidden, size) for a in carry)
    save_gates, save_cs = save and cell.gates > 1, save and cell.states > 1
    run = jax.ffi.ffi_call(
        cuda.FORWARD,
        (
            _shape(steps, batch, size, dtype=io),
            _shape(batch, size, dtype=total),
            _shape(*((batch, size) if c else (0,)), dtype=total),
            _shape(*((steps, batch, 4 * size) if save_gates else (0,)), dtype=io),
            _shape(*((steps, batch, size) if save_cs else (0,)), dtype=total),
        ),
    )
    ys, *last, gates, cs = run(
        _pad(gx, cell.gates, hidden, size),
        _pad_rows(_recurrent(weights), cell.gates, hidden, size),
        _pad(b_hn, 1, hidden, size),
        _canonical(h.astype(io)),
        h,
        c[0] if c else _empty(total),
        _order(mask, direction.reverse)[0],
        **direction.attributes(weights),
    )
    return (
        _unpad(ys, 1, hidden, size).astype(total),
        tuple(_unpad(a, 1, hidden, size) for a in last[: len(carry)]),
        _unpad(gates, 4, hidden, size),
        _unpad(cs, 1, hidden, size),
    )


def adjoint(
    direction: Direction,
    fixed: tuple[Weights, Array, Carry, Array | None, Array, Array, Array],
    cotangents: tuple[Array, Carry],
    *,
    with_dx: bool = True,
    with_weights: bool = True,
) -> tuple[Any, Array | None, Carry]:
    """Cotangents of (W_ih, W_hh, b_ih, b_hh), of x and of the carry, where they are wanted.

    Args:
        fixed: weights, x, carry, mask, and the results `ys`, `gates` and `cs` of `forward`.
        cotangents: of `ys` and of the last carry.
    """
    weights, x, carry, mask, ys, gates, cs = fixed
    d_ys, d_last = cotangents
    cell, io, total = direction.cell, _recurrent(weights).dtype, jnp.dtype(jnp.float32)
    (steps, batch, _), hidden = x.shape, carry[0].shape[-1]
    size, parts = cuda.padded(hidden), cell.gates
    ys = ys.astype(io)
    previous, following = _order(mask, direction.reverse)
    h, *c = (_pad(a, 1, hidden, size) for a in carry)
    d_h, *d_c = (_pad(a, 1, hidden, size) for a in d_last)
    is_gru = cell is cells.gru
    run = jax.ffi.ffi_call(
        cuda.ADJOINT,
        (
            _shape(steps, batch, parts * size, dtype=io),
            _shape(*((steps, batch, size) if is_gru else (0,)), dtype=io),
            _shape(batch, size, dtype=total),
            _shape(*((batch, size) if c else (0,)), dtype=total),
        ),
    )
    dg, d_gx_n, *d_carry = run(
        _pad_rows(_recurrent(weights), parts, hidden, size).T,
        h,
        c[0] if c else _empty(total),
        previous,
        following,
        _pad(ys, 1, hidden, size),
        _pad(gates.astype(io), 4, hidden, size),
        _pad(cs, 1, hidden, size),
        _pad(d_ys.astype(io), 1, hidden, size),
        d_h,
        d_c[0] if d_c else _empty(total),
        **direction.attributes(weights),
    )
    dg = _unpad(dg, parts, hidden, size)
    dgx = dg
    if is_gru:
        dgx = jnp.concatenate([dg[..., : 2 * hidden], _unpad(d_gx_n, 1, hidden, size)], axis=-1)
    d_h0, *d_c0 = (_unpad(a, 1, hidden, size) for a in d_carry[: len(carry)])

    def multiply(a: Array, b: Array, over: tuple[int, ...], dtype: Any) -> Array:
        dims = ((over, tuple(range(len(over)))), ((), ()))
        precision = direction.precision
        return lax.dot_general(a, b, dims, precision=precision, preferred_element_type=dtype)

    d_h0 = d_h0 + multiply(
        _starting(dg, previous, direction.reverse), _recurrent(weights), (1,), total
    )
    dx = multiply(dgx, weights.ih, (2,), x.dtype) if with_dx else None
    dweights = None
    if with_weights:
        before = _before(ys, carry[0].astype(io), previous, direction.reverse)
        both = lambda d, a: lax.dot_general(  # noqa: E731
            d,
            a,
            (((0, 1), (0, 1)), ((), ())),
            precision=direction.precision,
            preferred_element_type=total,
        )
        dweights = (
            both(dgx, x).astype(io),
            both(dg, before).astype(io),
            None if weights.b_ih is None else _sum(dgx).astype(weights.b_ih.dtype),
            None if weights.b_hh is None else _sum(dg).astype(weights.b_hh.dtype),
        )
    return dweights, dx, (d_h0, *d_c0)


def _sum(a: Array) -> Array:
    return jnp.sum(a, axis=(0, 1), dtype=jnp.float32)


def _starting(dg: Array, previous: Array, reverse: bool) -> Array:
    """(B, G H): the sum of `dg` over the steps that start from the initial carry."""
    if previous.size == 0:
        return dg[-1] if reverse else dg[0]
    starts = (previous == START)[:, :, None]
    return jnp.where(starts, dg.astype(jnp.float32), 0.0).sum(0).astype(dg.dtype)


def _before(ys: Array, h0: Array, previous: Array, reverse: bool) -> Array:
    """(T, B, H): the h that enters each step."""
    if previous.size == 0:
        return (
            jnp.concatenate([ys[1:], h0[None]]) if reverse else jnp.concatenate([h0[None], ys[:-1]])
        )
    index = jnp.maximum(previous + 1, 0)[:, :, None]
    return jnp.take_along_axis(jnp.concatenate([h0[None], ys]), index, axis=0)
