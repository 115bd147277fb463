"""The CUDA kernels' two calls, forward and adjoint, for one layer in one direction.

The kernels run only the recurrence. Around them stand products of XLA's own: gx before, the
cotangents of the weights and of x after.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxrnn import cells
from jaxrnn.cells import Carry, Cell, Weights
from jaxrnn.native import cuda
from jaxrnn.native.cuda.layout import (
    add_biases,
    canonical,
    empty,
    initial_states,
    order,
    pad,
    pad_rows,
    shape,
    states_before,
    sum_of_products,
    sum_of_starts,
    unpad,
)
from jaxrnn.steps import has_resets

BF16, TF32, FLOAT32 = range(3)
"""The products' precision, as the kernels number them; the last is three TF32 products."""


_LARGE = 2e10
"""Operations of a product; 3.4e10 took 0.41 ms on an H100's float32 units, and 0.31 ms by TF32."""


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

    def outside(self, x: Array, weight: Array) -> lax.PrecisionLike:
        """The precision of the products around the kernels, of the size of `weight @ x`.

        Where float32 is asked for and the product is large, three TF32 products as in the kernels:
        within 2e-7 of the exact product, and faster than a GPU's float32 units. In a small one,
        splitting the operands would take longer than multiplying them.
        """
        is_large = 2 * x.size * weight.shape[0] >= _LARGE
        exact = products(weight.dtype, self.precision) == FLOAT32
        if exact and is_large and jax.default_backend() == "gpu":
            return lax.DotAlgorithmPreset.TF32_TF32_F32_X3
        return self.precision


def refusal(number: int, weights: Weights, x: Any, carry: Any) -> str:
    """The reason why the kernels cannot run this, in one sentence; empty if they can.

    `x` and `carry` are arrays, or their shapes and dtypes.
    """
    if not cuda.load():
        return "this installation of jaxrnn has no CUDA kernels"
    io, hidden, batch = _recurrent(weights).dtype, carry[0].shape[-1], x.shape[1]
    if io not in (jnp.bfloat16, jnp.float32):
        return f"the CUDA kernels multiply in float32 or in bfloat16, not in {io}"
    if any(a.dtype != jnp.float32 for a in carry):
        return f"the CUDA kernels sum in float32, not in {carry[0].dtype}"
    if hidden > cuda.MOST_UNITS:
        return f"the CUDA kernels take at most {cuda.MOST_UNITS} hidden units, not {hidden}"
    gpu = cuda.gpu()
    if gpu is None:  # another machine's program is being lowered
        return ""
    if gpu.capability < cuda.LEAST_CAPABILITY:
        least, found = (".".join(map(str, c)) for c in (cuda.LEAST_CAPABILITY, gpu.capability))
        return f"the CUDA kernels need compute capability {least}, and this GPU has {found}"
    precisions = (BF16,) if io == jnp.bfloat16 else (TF32, FLOAT32)
    rows = max(1, batch) if isinstance(batch, int) else 1
    if not all(cuda.fits(gpu, number, p, hidden, rows) for p in precisions):
        return f"this GPU has too few multiprocessors for {hidden} hidden units"
    return ""


def products(dtype: Any, precision: lax.PrecisionLike) -> int:
    """The precision of `W_hh h`, by the rules of `jax.lax.dot_general` on a GPU."""
    if dtype == jnp.bfloat16:
        return BF16
    if precision is None:
        precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    both = precision if isinstance(precision, tuple) else (precision,)
    names = {getattr(p, "name", p) for p in both}
    exact = {"HIGHEST", "highest", "float32", "F32_F32_F32", "TF32_TF32_F32_X3"}
    return FLOAT32 if names & exact else TF32


def _recurrent(weights: Weights) -> Any:
    assert weights.hh is not None, "`Native` refuses cells without a recurrent product"
    return weights.hh


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
    bias, b_hn = add_biases(cell, weights, hidden)
    gx = cells.project(x, weights.ih, bias, io, direction.outside(x, weights.ih))
    h, *c = (pad(a, 1, hidden, size) for a in initial_states(carry, weights, mask))
    save_gates, save_cs = save and cell.gates > 1, save and cell.states > 1
    run = jax.ffi.ffi_call(
        cuda.FORWARD,
        (
            shape(steps, batch, size, dtype=io),
            shape(batch, size, dtype=total),
            shape(*((batch, size) if c else (0,)), dtype=total),
            shape(*((steps, batch, 4 * size) if save_gates else (0,)), dtype=io),
            shape(*((steps, batch, size) if save_cs else (0,)), dtype=total),
        ),
    )
    ys, *last, gates, cs = run(
        pad(gx, cell.gates, hidden, size),
        pad_rows(_recurrent(weights), cell.gates, hidden, size),
        pad(b_hn, 1, hidden, size),
        canonical(h.astype(io)),
        h,
        c[0] if c else empty(total),
        order(mask, direction.reverse)[0],
        **direction.attributes(weights),
    )
    return (
        unpad(ys, 1, hidden, size).astype(total),
        tuple(unpad(a, 1, hidden, size) for a in last[: len(carry)]),
        unpad(gates, 4, hidden, size),
        unpad(cs, 1, hidden, size),
    )


def adjoint(
    direction: Direction,
    fixed: tuple[Weights, Array, Carry, Array | None, Array, Array, Array],
    cotangents: tuple[Array, Carry],
    *,
    with_dx: bool = True,
    with_weights: bool = True,
) -> tuple[Weights | None, Array | None, Carry]:
    """Cotangents of the weights, of x and of the carry, where they are wanted.

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
    previous, following = order(mask, direction.reverse)
    initial = initial_states(carry, weights, mask)
    h, *c = (pad(a, 1, hidden, size) for a in initial)
    d_h, *d_c = (pad(a, 1, hidden, size) for a in d_last)
    is_gru = cell is cells.gru
    run = jax.ffi.ffi_call(
        cuda.ADJOINT,
        (
            shape(steps, batch, parts * size, dtype=io),
            shape(*((steps, batch, size) if is_gru else (0,)), dtype=io),
            shape(*h.shape, dtype=total),
            shape(*(h.shape if c else (0,)), dtype=total),
        ),
    )
    dg, d_gx_n, *d_carry = run(
        pad_rows(_recurrent(weights), parts, hidden, size).T,
        h,
        c[0] if c else empty(total),
        previous,
        following,
        pad(ys, 1, hidden, size),
        pad(gates.astype(io), 4, hidden, size),
        pad(cs, 1, hidden, size),
        pad(d_ys.astype(io), 1, hidden, size),
        d_h,
        d_c[0] if d_c else empty(total),
        **direction.attributes(weights),
    )
    dg = unpad(dg, parts, hidden, size)
    dgx = dg
    if is_gru:
        dgx = jnp.concatenate([dg[..., : 2 * hidden], unpad(d_gx_n, 1, hidden, size)], axis=-1)
    d_h0, *d_c0 = (unpad(a, 1, hidden, size) for a in d_carry[: len(carry)])

    precision = direction.outside(x, weights.ih)

    def multiply(a: Array, w: Array, dtype: Any) -> Array:
        dims = (((a.ndim - 1,), (0,)), ((), ()))
        return lax.dot_general(a, w, dims, precision=precision, preferred_element_type=dtype)

    starts = sum_of_starts(dg, previous, direction.reverse, has_resets(mask))
    d_h0 = d_h0 + multiply(starts, _recurrent(weights), total)
    d_initial = d_h0, *d_c0
    dx = multiply(dgx, weights.ih, x.dtype) if with_dx else None
    dweights = None
    if with_weights:
        before = states_before(ys, initial[0].astype(io), previous, direction.reverse)
        of_resets = None
        if weights.initial is not None:
            of_resets = tuple(
                d[batch:] if d.shape[0] > batch else jnp.zeros_like(d) for d in d_initial
            )
        dweights = Weights(
            sum_of_products(dgx, x, precision).astype(io),
            sum_of_products(dg, before, precision).astype(io),
            None if weights.b_ih is None else _sum(dgx).astype(weights.b_ih.dtype),
            None if weights.b_hh is None else _sum(dg).astype(weights.b_hh.dtype),
            initial=of_resets,
        )
    return dweights, dx, tuple(d[:batch] for d in d_initial)


def _sum(a: Array) -> Array:
    return jnp.sum(a, axis=(0, 1), dtype=jnp.float32)
