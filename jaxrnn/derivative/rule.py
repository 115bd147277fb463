"""Derivative rule shared by all strategies, for one direction of one layer.

A `Recurrence` maps (weights, x, carry) to the outputs of all steps and the last carry. `run` makes
it differentiable to any order in both modes:

    (ys, last), saved = run(weights, x, carry)
    (dys, dlast) = A(weights, x, carry, ys, saved) (dweights, dx, dcarry)        A is linear

Forward mode is A and reverse mode its adjoint. A recurrence may compute both by any fast method
(`push`, `pull`). Derivatives of A itself come from `plain`, which depends on the primal arguments
alone, so saved arrays need no derivatives.
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

from jaxrnn import rows, sharding
from jaxrnn.cells import Carry, Weights
from jaxrnn.derivative import linear_map

Fixed = tuple[Weights, Array, Carry, Array | None, Array, Any]
"""(weights, x, carry, mask, ys, saved): the arguments on which A depends nonlinearly."""

Operands = tuple[Weights | None, Array | None, Carry]
"""(dweights, dx, dcarry): the arguments in which A is linear. None stands for zero.

`dweights.cell` is a list of the tangents of the floating parameters alone.
"""

Tangents = tuple[Array, Carry]
"""(dys, dlast): the results of A."""


class Recurrence:
    """One direction of one layer over time, as a hashable value.

    A subclass defines at least `plain`; the other methods default to JAX's own derivatives. `run`
    must return the results of `plain`, `push` must be the derivative of `plain`, and `pull` the
    transpose of `push`. The contract tests check these laws.
    """

    transposable: bool = False
    """True if JAX can transpose and differentiate `push_saving`, which then replaces `push`."""

    local: bool = False
    """True if `run` and `pull` are custom primitives, which run on the rows of each device.

    Their rows are independent of each other, so `vmap` over arrays with rows is one with more rows.
    """

    saves_steps: bool = True
    """True if `run` saves nothing, or only arrays with one entry for each step, (T, B, ·)."""

    def plain(
        self, weights: Weights, x: Array, carry: Carry, mask: Array | None
    ) -> tuple[Array, Carry]:
        """(ys, last), by operations that JAX can differentiate, batch and export."""
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
        """`push`, and tangents of the saved arrays: () unless `save`. Needed if `transposable`."""
        raise NotImplementedError

    def pull(self, fixed: Fixed, like: Any, cotangents: Tangents) -> Operands:
        """Adjoint of A. `like` has the operands' shapes, and None for cotangents not needed."""
        return linear_map.transpose(partial(self.push, fixed), like, cotangents)

    def pull_with_info(self, fixed: Fixed, like: Any, cotangents: Tangents) -> tuple[Operands, Any]:
        """`pull`, and information about it like that of `run`."""
        return self.pull(fixed, like, cotangents), ()


def split(weights: Weights) -> tuple[list[Array], Any]:
    """Floating arrays of the weights in the order of `Operands`, and a function that rebuilds."""
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

    If the types say that an array is spread over several devices, a `local` recurrence runs on the
    rows of each device. Otherwise, and inside a `jax.shard_map` over only some axes of the mesh,
    `plain` runs, without info: XLA does not tell a kernel how the other axes divide the arrays.
    """
    if not recurrence.transposable and sharding.spread(weights, x, carry, mask):
        varies, free = sharding.varies(weights, x, carry, mask), sharding.free_axes(x)
        if not recurrence.local or (varies and free):
            return *recurrence.plain(weights, x, carry, mask), None
        if free:

            def on_rows(*arguments: Any) -> tuple[Array, Carry]:
                ys, last, _ = run(recurrence, *arguments)
                return ys, last

            return *sharding.run_on_rows(on_rows, weights, x, carry, mask), None
        weights, x, carry, mask = sharding.vary_alike((weights, x, carry, mask))
    ys, last, _, info = _run(recurrence, False, weights, x, carry, mask)
    return ys, last, info


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _run(recurrence: Recurrence, save: bool, weights: Weights, x: Array, carry: Carry, mask: Any):
    return recurrence.run(weights, x, carry, mask, save=save)


@partial(_run.defjvp, symbolic_zeros=True)
def _jvp(recurrence: Recurrence, save: bool, primals: Any, tangents: Any):
    weights, x, carry, mask = primals
    dweights, dx, dcarry, _ = tangents
    # The rule applies to this call too, so it serves derivatives of any order.
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
    """Tangents of the floating weights, or None if all of them are zero."""
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
    """The tangent as an array, with the placement of its primal."""
    if not isinstance(tangent, SymbolicZero):
        return tangent
    return ad.instantiate_zeros(ad.Zero(jax.typeof(primal).to_tangent_aval()))


def no_tangent(x: Array) -> Any:
    if jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.zeros_like(x)
    return np.zeros(x.shape, jax.dtypes.float0)


@dataclasses.dataclass(frozen=True)
class TangentMap(linear_map.LinearMap):
    """A of a recurrence, with `pull` as its adjoint and the derivative of `plain` as `plain`.

    The saved arrays are a function of the other fixed arrays, so `plain` neither uses them nor has
    a derivative with respect to them.
    """

    recurrence: Recurrence

    def plain(self, fixed: Fixed, operands: Operands) -> Tangents:
        return Recurrence.push(self.recurrence, fixed, operands)

    def tangent(self, fixed: Fixed, operands: Operands) -> Tangents:
        return self.recurrence.push(fixed, operands)

    def adjoint(self, fixed: Fixed, like: Any, cotangents: Tangents) -> Operands:
        return self.recurrence.pull(fixed, like, cotangents)

    def rows(self, fixed: Fixed, operands: Operands, results: Tangents) -> Any:
        if not self.recurrence.local:  # the cell may compute anything from all rows
            return None
        return (
            rows.of_arguments(*fixed),
            rows.of_cotangents(*operands),
            rows.of_results(*results),
        )
