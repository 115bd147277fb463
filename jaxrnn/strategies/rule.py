"""The derivative rule that serves every cell, over any way to run the recurrence.

The rule differentiates the recurrence as a whole. Every weight sits in a projection, so the
tangent recurrence is linear in the tangent carry and needs the weights' tangents only through

    e_t = dW_hh h_{t-1} + db_hh           for all t in one product, because h is already known
    dgh_t = e_t + W_hh dh_{t-1}
    dcarry_t = J_t (dcarry_{t-1}, dgx_t, dgh_t)        J_t the Jacobian of the pointwise cell

JAX transposes that recurrence into a reverse scan that carries the carry's cotangent alone, and the
gradient of each weight comes out as one product over all steps, where differentiating the
loop step by step would add to a (GH, P) array at every one. Forward mode, reverse mode, higher
orders and vmap follow from the one rule.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxrnn import cells
from jaxrnn.cells import Carry, Cell, Weights
from jaxrnn.strategies.linear import LinearMap


class Recurrent(NamedTuple):
    """The weights inside the loop, named as the fields of `Weights` that they are."""

    hh: Array
    b_hh: Array | None
    hr: Array | None

    @classmethod
    def of(cls, weights: Weights) -> "Recurrent":
        return cls(weights.hh, weights.b_hh, weights.hr)


class Residuals(NamedTuple):
    """What the derivative needs of each step: the carry that enters it, and its `gh`.

    Of an additive cell `gh` stands for gx + gh, and gx need not be kept.
    """

    carry: Carry
    gh: Array


class Fixed(NamedTuple):
    """What the tangent recurrence is not linear in; no gx of an additive cell."""

    weights: Recurrent
    gx: Array | None
    mask: Array | None
    residuals: Residuals


class Operands(NamedTuple):
    """What the tangent recurrence is linear in: the initial tangent, dgx, e, and f = dW_hr m.

    Of an additive cell e stands for dgx + e, and dgx is None.
    """

    carry: Carry
    gx: Array | None
    e: Array
    f: Array | None


@runtime_checkable
class Way(Protocol):
    """How a recurrence runs, as a hashable value.

    `run` returns the outputs (zero where there is no step), the last carry, the residuals (None
    unless `save`) and notes: arrays of which nothing is differentiated. `push` returns the
    tangents of the outputs (where there is no step, anything), of the last carry and of the
    residuals. `raw` is the layer's weights and inputs, behind gx, for a way that projects itself.
    """

    @property
    def cell(self) -> Cell: ...
    @property
    def precision(self) -> lax.PrecisionLike: ...
    @property
    def save(self) -> bool: ...
    def saving(self) -> "Way": ...
    def run(
        self, weights: Recurrent, gx: Array, carry: Carry, mask: Array | None, raw: Any
    ) -> tuple[Array, Carry, Residuals | None, Any]: ...
    def push(self, fixed: Fixed, operands: Operands) -> tuple[Array, Carry, Residuals | None]: ...
    def linear_map(self) -> LinearMap: ...


def hold(mask: Array | None, new: Carry, old: Carry) -> Carry:
    if mask is None:
        return new
    run = mask[:, None]
    return tuple(jnp.where(run, n, o) for n, o in zip(new, old, strict=True))


def silence(mask: Array | None, ys: Array) -> Array:
    return ys if mask is None else jnp.where(mask[:, :, None], ys, jnp.zeros_like(ys))


def product(h: Array, weight: Array, dtype: Any, precision: lax.PrecisionLike) -> Array:
    """`h @ weight` for a weight that is transposed already."""
    dims = (((h.ndim - 1,), (0,)), ((), ()))
    return lax.dot_general(
        h.astype(weight.dtype), weight, dims, precision=precision, preferred_element_type=dtype
    )


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def recurrence(way: Way, weights: Recurrent, gx: Array, carry: Carry, mask, raw=None):
    """`way.run`, with the rule above as its derivative."""
    return way.run(weights, gx, carry, mask, raw)


@recurrence.defjvp
def _recurrence_jvp(way: Way, primals, tangents):
    weights, gx, _, mask, _ = primals
    dweights, dgx, dcarry, _, _ = tangents
    dtype = gx.dtype

    # The rule applies to this call too, so derivatives of any order meet the rule again.
    ys, last, residuals, notes = recurrence(way.saving(), *primals)
    e = cells.project(residuals.carry[0], dweights.hh, dweights.b_hh, dtype, way.precision)
    if way.cell.additive:
        e = e + dgx
        gx = dgx = None
    f = None
    if weights.hr is not None:
        m = jax.vmap(way.cell.step)(residuals.carry, or_zeros(gx, residuals.gh), residuals.gh)[0]
        f = cells.project(m, dweights.hr, None, dtype, way.precision)
    fixed = Fixed(weights, gx, mask, residuals)
    dhs, dlast, dresiduals = way.push(fixed, Operands(dcarry, dgx, e, f))
    out = (ys, last, residuals if way.save else None, notes)
    return out, (silence(mask, dhs), dlast, dresiduals, jax.tree.map(no_tangent, notes))


def or_zeros(x: Array | None, like: Array) -> Array:
    return jnp.zeros_like(like) if x is None else x


def no_tangent(x: Array) -> Any:
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.zeros_like(x)
    return np.zeros(x.shape, jax.dtypes.float0)


@dataclasses.dataclass(frozen=True)
class TangentScan(LinearMap):
    """The tangent recurrence as a scan: Fixed, Operands -> dh at each step, dlast, dresiduals."""

    cell: Cell
    unroll: int
    precision: lax.PrecisionLike
    save: bool

    def plain(self, fixed: Fixed, operands: Operands) -> tuple[Array, Carry, Residuals | None]:
        weights, gx, mask, residuals = fixed
        hh, dtype = weights.hh.T, residuals.gh.dtype

        # Without the checkpoint, reverse mode would stack every intermediate of the cell.
        @partial(jax.checkpoint, prevent_cse=False)
        def step(dcarry: Carry, inputs):
            (carry_t, gh_t), gx_t, mask_t, dgx_t, e_t, f_t = inputs
            dgh = e_t + product(dcarry[0], hh, dtype, self.precision)
            at = (carry_t, or_zeros(gx_t, gh_t), gh_t)
            _, (dm, *rest) = jax.jvp(self.cell.step, at, (dcarry, or_zeros(dgx_t, dgh), dgh))
            dh = dm
            if weights.hr is not None:
                dh = f_t + cells.project(dm, weights.hr, None, dtype, self.precision)
            new = hold(mask_t, (dh, *rest), dcarry)
            return new, (new[0], Residuals(dcarry, dgh) if self.save else None)

        inputs = (residuals, gx, mask, operands.gx, operands.e, operands.f)
        dlast, (dhs, dresiduals) = lax.scan(step, operands.carry, inputs, unroll=self.unroll)
        return dhs, dlast, dresiduals
