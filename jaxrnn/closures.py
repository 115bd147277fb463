"""Arrays that a cell's step closes over, found and turned into parameters of the cell.

A derivative rule differentiates what it is given as an argument. An array in the closure of
`Cell.step` is none: its gradient would be zero without a word, or JAX would raise from within. So
`hoist` traces the step once, takes every array that the trace did not get from its arguments, and
returns a cell to which these arrays are parameters.
"""

import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar

import jax
from jax import Array

from jaxrnn import cells
from jaxrnn.cells import Carry, Cell, Size, Weights
from jaxrnn.checks import InputError


def compiled(call: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a method `(self, cell, weights, x, carry, ...)` of a strategy: hoisted and jitted.

    Without the jit every eager call would build its loop anew and compile it, gradients included.
    """
    jitted = jax.jit(call, static_argnames=("self", "cell", "precision", "reverse"))

    @functools.wraps(call)
    def run(
        self: Any, cell: Cell, weights: Weights, x: Array, carry: Carry, *rest: Any, **options: Any
    ) -> Any:
        cell, weights = hoist(cell, weights, x, carry)
        return jitted(self, cell, weights, x, carry, *rest, **options)

    return run


def hoist(cell: Cell, weights: Weights, x: Array, carry: Carry) -> tuple[Cell, Weights]:
    """The cell and the weights with every array that `step` closes over among the parameters.

    Args:
        cell: its step may close over arrays, traced ones too.
        weights, x, carry: as a strategy gets them; only their shapes and dtypes count.

    Raises:
        InputError: `step` does not return a carry like the one it is given.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn import cells, closures
        >>> gain = jnp.arange(4.0)
        >>> cell = cells.Cell("gained", 1, 1, lambda carry, gx, gh: (gain * jnp.tanh(gx + gh),))
        >>> weights = cells.Weights(ih=jnp.ones((4, 3)), hh=jnp.eye(4))
        >>> x, carry = jnp.ones((5, 2, 3)), (jnp.zeros((2, 4)),)
        >>> _, hoisted = closures.hoist(cell, weights, x, carry)
        >>> hoisted.cell
        ((), [Array([0., 1., 2., 3.], dtype=float32)])
    """
    if getattr(cell.step, "pure", False):
        return cell, weights
    own, tree = jax.tree.flatten(weights.cell)
    gx = jax.eval_shape(
        lambda x: cells.project(x.sum(0), weights.ih, weights.b_ih, carry[0].dtype), x
    )
    # The state that the step sees is h before the projection.
    seen = tuple(jax.eval_shape(lambda c: c, c) for c in carry)

    def step(own: list[Array], carry: Carry, gx: Array, gh: Array) -> Any:
        return cells.advance(cell, jax.tree.unflatten(tree, own), carry, gx, gh)

    traced = jax.make_jaxpr(step, return_shape=True)(own, seen, gx, gx)
    closed, returned = traced
    _check(cell, returned, gx)
    consts = list(closed.consts)
    new = _remembered(cell.step, str(closed.jaxpr), consts, TracedStep(closed.jaxpr, gx.shape[0]))
    return cell._replace(step=new), weights._replace(cell=(weights.cell, consts))


@dataclasses.dataclass(frozen=True, eq=False)
class TracedStep:
    """A step as a program, `step((own, consts), carry, gx, gh)`, traced on arrays (rows, ·).

    A multiple of the rows, as chunks of a sequence side by side make it, runs in that many parts,
    so that what is closed over may have one entry for each row.
    """

    jaxpr: Any
    rows: Size
    pure: ClassVar[bool] = True

    def __call__(self, params: Any, carry: Carry, gx: Array, gh: Array) -> Carry:
        own, consts = params
        leaves = jax.tree.leaves(own)

        def run(carry: Carry, gx: Array, gh: Array) -> Carry:
            return tuple(jax.core.eval_jaxpr(self.jaxpr, consts, *leaves, *carry, gx, gh))

        if gx.shape[0] == self.rows:
            return run(carry, gx, gh)
        parts = jax.tree.map(lambda a: a.reshape(-1, self.rows, a.shape[-1]), (carry, gx, gh))
        return jax.tree.map(lambda a: a.reshape(-1, a.shape[-1]), jax.vmap(run)(*parts))


_MOST = 64
_SEEN: OrderedDict[Any, tuple[str, list[Any], TracedStep]] = OrderedDict()


def _remembered(step: Any, text: str, consts: list[Any], new: TracedStep) -> TracedStep:
    """The program of an earlier call, if it is the same: then `jax.jit` compiles nothing anew."""
    if any(isinstance(c, jax.core.Tracer) for c in consts):
        return new
    key = (step, new.rows, tuple(v.aval for v in new.jaxpr.invars))
    try:
        known = _SEEN.get(key)
    except TypeError:  # a step that is not hashable
        return new
    if known is not None and known[0] == text and list(map(id, known[1])) == list(map(id, consts)):
        _SEEN.move_to_end(key)
        return known[2]
    _SEEN[key] = (text, consts, new)
    if len(_SEEN) > _MOST:
        _SEEN.popitem(last=False)
    return new


def _check(cell: Cell, returned: Any, gx: Any) -> None:
    """A wrong carry is told by name; the loop would tell it by its own insides."""
    shape = (gx.shape[0], gx.shape[1] // cell.gates)
    found = returned if isinstance(returned, tuple) else (returned,)
    if not isinstance(returned, tuple) or [a.shape for a in found] != [shape] * cell.states:
        raise InputError(
            f"The step of the cell {cell.name!r} must return a tuple of {cell.states} arrays of "
            f"shape (B, H) = {shape}, got {[tuple(a.shape) for a in jax.tree.leaves(returned)]}."
        )
