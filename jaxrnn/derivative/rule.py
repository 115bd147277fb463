"""The derivative rule of every strategy: one direction of one layer as a whole.

A `Recurrence` maps (weights, x, carry) to the outputs of all steps and the last carry. `run` gives
it a derivative of any order in both modes:

    (ys, last), saved = run(weights, x, carry)
    (dys, dlast) = A(weights, x, carry, ys, saved) (dweights, dx, dcarry)        A is linear

Forward mode is A, reverse mode its adjoint. A recurrence computes both in whatever way is fast
(`push`, `pull`). Derivatives of A itself are those of `plain`, which depends on the primal
arguments alone, so that nothing that is saved needs a derivative.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.custom_derivatives import SymbolicZero
from jax.interpreters import ad

from jaxrnn import sharding
from jaxrnn.cells import Carry, Weights
from jaxrnn.derivative import linear_map

Fixed = tuple[Weights, Array, Carry, Array | None, Array, Any]
"""(weights, x, carry, mask, ys, saved): what A depends on."""

Operands = tuple[Weights | None, Array | None, Carry]
"""(dweights, dx, dcarry): what A is linear in. None stands for a zero that nobody needs.

In `dweights.cell` stand the tangents of the floating parameters alone, in a list.
"""

Tangents = tuple[Array, Carry]
"""(dys, dlast): the results of A."""


class Recurrence:
    """One direction of one layer over time, as a hashable value. The defaults are JAX's own ways.

    A subclass defines `plain` at least. Laws: `run` returns what `plain` returns; `push` is the
    derivative of `plain`; `pull` is the transpose of `push`. The tests of the contract check them.
    """

    transposable: bool = False
    """JAX itself may transpose and differentiate `push_saving`, which is used instead of `push`."""

    saves_steps: bool = True
    """Every array that `run` saves has one entry for each step, (T, B, ·), or none at all."""

    def plain(
        self, weights: Weights, x: Array, carry: Carry, mask: Array | None
    ) -> tuple[Array, Carry]:
        """(ys, last), by operations that JAX differentiates, batches and exports."""
        raise NotImplementedError

    def run(
        self, weights: Weights, x: Array, carry: Carry, mask: Array | None, *, save: bool
    ) -> tuple[Array, Carry, Any, Any]:
        """(ys, last, saved, info): `saved` is () unless `save`; `info` is not differentiated."""
        ys, last = self.plain(weights, x, carry, mask)
        return ys, last, (), ()

    def push(self, fixed: Fixed, operands: Operands) -> Tangents:
        """A: the tangents of (ys, last)."""
        weights, x, carry, mask, _, _ = fixed
        dweights, dx, dcarry = operands
        floats, rebuild = split(weights)
        moving = (floats if dweights is not None else [], x if dx is not None else None, carry)
        along = ([] if dweights is None else jax.tree.leaves(dweights), dx, dcarry)

        def run(floats: list[Array], x_: Array | None, carry: Carry) -> tuple[Array, Carry]:
            w = rebuild(floats) if dweights is not None else weights
            return self.plain(w, x if x_ is None else x_, carry, mask)

        return jax.jvp(run, moving, along)[1]

    def push_saving(
        self, fixed: Fixed, operands: Operands, *, save: bool
    ) -> tuple[Array, Carry, Any]:
        """`push`, and the tangents of what `run` saved: () unless `save`. Of transposable ones."""
        raise NotImplementedError

    def pull(self, fixed: Fixed, like: Any, cotangents: Tangents) -> Operands:
        """The adjoint of A. `like` has the operands' shapes, and None for what is not wanted."""
        return transpose(partial(self.push, fixed), like, cotangents)

    def pull_with_info(self, fixed: Fixed, like: Any, cotangents: Tangents) -> tuple[Operands, Any]:
        """`pull`, and information about it like that of `run`."""
        return self.pull(fixed, like, cotangents), ()


def transpose(run: Any, like: Any, cotangents: Any) -> Any:
    return jax.linear_transpose(run, like)(cotangents)[0]


def split(weights: Weights) -> tuple[list[Array], Any]:
    """The floating arrays of the weights in the order of `Operands`, and a function back."""
    leaves, tree = jax.tree.flatten(weights)
    floating = [jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in leaves]

    def rebuild(floats: list[Array]) -> Weights:
        left = iter(floats)
        return jax.tree.unflatten(
            tree, [next(left) if f else leaf for f, leaf in zip(floating, leaves, strict=True)]
        )

    return [leaf for f, leaf in zip(floating, leaves, strict=True) if f], rebuild


def run(
    recurrence: Recurrence, weights: Weights, x: Array, carry: Carry, mask: Array | None = None
) -> tuple[Array, Carry, Any]:
    """(ys, last, info), differentiable to any order in both modes.

    Where types say that several devices share an array, only JAX's own operations can follow where
    each part is: then `plain` runs, without info.
    """
    if not recurrence.transposable and sharding.spread(weights, x, carry, mask):
        return *recurrence.plain(weights, x, carry, mask), None
    ys, last, _, info = _run(recurrence, False, weights, x, carry, mask)
    return ys, last, info


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _run(recurrence: Recurrence, save: bool, weights: Weights, x: Array, carry: Carry, mask: Any):
    return recurrence.run(weights, x, carry, mask, save=save)


@partial(_run.defjvp, symbolic_zeros=True)
def _jvp(recurrence: Recurrence, save: bool, primals: Any, tangents: Any):
    weights, x, carry, mask = primals
    dweights, dx, dcarry, _ = tangents
    # The rule applies to this call too, so derivatives of any order meet the rule again.
    ys, last, saved, info = _run(recurrence, True, weights, x, carry, mask)
    fixed = (weights, x, carry, mask, ys, saved)
    operands = (_weights(weights, dweights), _unless_zero(dx), jax.tree.map(_full, dcarry, carry))
    if recurrence.transposable:
        dys, dlast, dsaved = recurrence.push_saving(fixed, operands, save=save)
    else:
        dys, dlast = linear_map.apply(TangentMap(recurrence), fixed, operands)
        dsaved = jax.tree.map(no_tangent, saved if save else ())
    out = (ys, last, saved if save else (), info)
    return out, (dys, dlast, dsaved, jax.tree.map(no_tangent, info))


def _weights(weights: Weights, tangents: Weights) -> Weights | None:
    """The tangents of the floating weights, and None if all of them are zero."""
    pairs = list(zip(jax.tree.leaves(weights), _leaves(tangents), strict=True))
    if all(isinstance(t, SymbolicZero) for w, t in pairs if jnp.issubdtype(w.dtype, jnp.inexact)):
        return None
    known, rest = weights._replace(cell=()), len(jax.tree.leaves(weights.cell))
    moved = [_full(t, w) for w, t in pairs[: len(pairs) - rest]]
    cell = [_full(t, w) for w, t in pairs[len(moved) :] if jnp.issubdtype(w.dtype, jnp.inexact)]
    return jax.tree.unflatten(jax.tree.structure(known), moved)._replace(cell=cell)


def _leaves(tree: Any) -> list[Any]:
    return jax.tree.leaves(tree, is_leaf=lambda t: isinstance(t, SymbolicZero))


def _unless_zero(tangent: Any) -> Any:
    return None if isinstance(tangent, SymbolicZero) else tangent


def _full(tangent: Any, primal: Array) -> Array:
    """The tangent as an array, placed on devices as its primal is."""
    if not isinstance(tangent, SymbolicZero):
        return tangent
    return ad.instantiate_zeros(ad.Zero(jax.typeof(primal).to_tangent_aval()))


def no_tangent(x: Array) -> Any:
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.zeros_like(x)
    return np.zeros(x.shape, jax.dtypes.float0)


@dataclasses.dataclass(frozen=True)
class TangentMap(linear_map.LinearMap):
    """A of a recurrence, with `pull` as its adjoint and the derivative of `plain` as the plain way.

    What was saved is a function of the other fixed arrays, so the plain way neither needs it nor
    has a derivative along it.
    """

    recurrence: Recurrence

    def plain(self, fixed: Fixed, operands: Operands) -> Tangents:
        return Recurrence.push(self.recurrence, fixed, operands)

    def tangent(self, fixed: Fixed, operands: Operands) -> Tangents:
        return self.recurrence.push(fixed, operands)

    def adjoint(self, fixed: Fixed, like: Any, cotangents: Tangents) -> Operands:
        return self.recurrence.pull(fixed, like, cotangents)
