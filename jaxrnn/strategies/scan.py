"""`lax.scan` with one derivative rule for every cell.

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
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from jaxrnn import cells
from jaxrnn.cells import Carry, Cell, Weights
from jaxrnn.strategies.compiled import compiled


@dataclasses.dataclass(frozen=True)
class Scan:
    """`lax.scan` with the input projection as one product and the derivative rule above.

    Args:
        unroll: steps per iteration of the loop, as in `jax.lax.scan`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn import cells, strategies
        >>> weights = cells.Weights(ih=jnp.ones((4, 3)), hh=jnp.eye(4))
        >>> def loss(strategy, weights):
        ...     ys, _ = strategy(cells.rnn_tanh, weights, jnp.ones((5, 2, 3)), (jnp.zeros((2, 4)),))
        ...     return (ys**2).sum()
        >>> fast = jax.grad(loss, argnums=1)(strategies.Scan(), weights)
        >>> slow = jax.grad(loss, argnums=1)(strategies.Reference(), weights)
        >>> bool(jnp.allclose(fast.hh, slow.hh))
        True
    """

    unroll: int = 1

    @compiled
    def __call__(
        self,
        cell: Cell,
        weights: Weights,
        x: Float[Array, "T B I"],
        carry: Carry,
        mask: Bool[Array, "T B"] | None = None,
        *,
        precision: lax.PrecisionLike = None,
    ) -> tuple[Float[Array, "T B P"], Carry]:
        gx = cells.project(x, weights.ih, weights.b_ih, carry[0].dtype, precision)
        options = _Options(cell, self.unroll, precision)
        recurrent = _Recurrent(weights.hh, weights.b_hh, weights.hr)
        ys, last, _ = _recurrence(options, recurrent, gx, carry, mask)
        return ys, last


class _Options(NamedTuple):
    cell: Cell
    unroll: int
    precision: lax.PrecisionLike
    save: bool = False


class _Recurrent(NamedTuple):
    """The weights inside the loop, named as the fields of `Weights` that they are."""

    hh: Array
    b_hh: Array | None
    hr: Array | None


class _Residuals(NamedTuple):
    """What the derivative needs of each step: the carry that enters it, and its `gh`."""

    carry: Carry
    gh: Array


def _hold(mask: Array | None, new: Carry, old: Carry) -> Carry:
    if mask is None:
        return new
    run = mask[:, None]
    return tuple(jnp.where(run, n, o) for n, o in zip(new, old, strict=True))


def _silence(mask: Array | None, ys: Array) -> Array:
    return ys if mask is None else jnp.where(mask[:, :, None], ys, jnp.zeros_like(ys))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _recurrence(options: _Options, weights: _Recurrent, gx: Array, carry: Carry, mask):
    """(ys, last carry, residuals); the residuals are None unless `options.save`."""
    cell, unroll, precision, save = options
    dtype = gx.dtype
    hh = weights.hh.T  # once, outside the loop: `h @ W` runs faster than `h @ W.T`

    def step(carry: Carry, inputs):
        gx_t, mask_t = inputs
        gh = _product(carry[0], hh, dtype, precision)
        if weights.b_hh is not None:
            gh = gh + jnp.broadcast_to(weights.b_hh.astype(dtype), gh.shape)
        m, *rest = cell.step(carry, gx_t, gh)
        h = m if weights.hr is None else cells.project(m, weights.hr, None, dtype, precision)
        new = _hold(mask_t, (h, *rest), carry)
        return new, (new[0], _Residuals(carry, gh) if save else None)

    last, (hs, residuals) = lax.scan(step, carry, (gx, mask), unroll=unroll)
    return _silence(mask, hs), last, residuals


@_recurrence.defjvp
def _recurrence_jvp(options: _Options, primals, tangents):
    weights, gx, _, mask = primals
    dweights, dgx, dcarry, _ = tangents
    cell, unroll, precision, save = options
    dtype = gx.dtype

    # The rule applies to this call too, so derivatives of any order meet the rule again.
    ys, last, residuals = _recurrence(options._replace(save=True), *primals)
    e = cells.project(residuals.carry[0], dweights.hh, dweights.b_hh, dtype, precision)
    f = None
    if weights.hr is not None:
        m = jax.vmap(cell.step)(residuals.carry, gx, residuals.gh)[0]
        f = cells.project(m, dweights.hr, None, dtype, precision)
    hh = weights.hh.T

    # Without the checkpoint, reverse mode would stack every intermediate of the cell.
    @partial(jax.checkpoint, prevent_cse=False)
    def step(dcarry: Carry, inputs):
        (carry_t, gh_t), gx_t, mask_t, dgx_t, e_t, f_t = inputs
        dgh = e_t + _product(dcarry[0], hh, dtype, precision)
        _, (dm, *rest) = jax.jvp(cell.step, (carry_t, gx_t, gh_t), (dcarry, dgx_t, dgh))
        dh = dm
        if f_t is not None:
            dh = f_t + cells.project(dm, weights.hr, None, dtype, precision)
        new = _hold(mask_t, (dh, *rest), dcarry)
        return new, (new[0], _Residuals(dcarry, dgh) if save else None)

    dlast, (dhs, dresiduals) = lax.scan(
        step, dcarry, (residuals, gx, mask, dgx, e, f), unroll=unroll
    )
    out = (ys, last, residuals if save else None)
    return out, (_silence(mask, dhs), dlast, dresiduals)


def _product(h: Array, weight: Array, dtype, precision) -> Array:
    """`h @ weight` for a weight that is transposed already."""
    dims = (((h.ndim - 1,), (0,)), ((), ()))
    return lax.dot_general(
        h.astype(weight.dtype), weight, dims, precision=precision, preferred_element_type=dtype
    )
