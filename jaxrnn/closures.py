"""Conversion of arrays that a cell's step closes over to parameters of the cell.

A derivative rule differentiates with respect to arguments only. An array in the closure of
`Cell.step` is not an argument: its gradient would silently be zero, or JAX would raise an internal
error. `hoist` therefore traces the step once, collects every array that did not come from the
arguments, and returns a cell that takes these arrays as parameters.
"""

import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import ClosedJaxpr, Jaxpr, Var

from jaxrnn import cells
from jaxrnn.cells import Carry, Cell, Size, Weights
from jaxrnn.checks import InputError


def compiled(call: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator for a strategy's method `(self, cell, weights, x, carry, ...)`: hoists and jits it.

    Without jit, every eager call would rebuild and recompile its loop, gradients included.
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
    """The cell and weights, with every array that `step` closes over among the parameters.

    Args:
        cell: a cell whose step may close over arrays, traced or not.
        weights, x, carry: arguments of a strategy; only their shapes and dtypes are used.

    Raises:
        InputError: `step` does not return a carry like its argument.

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
    if cells.is_pure(cell):
        return cell, weights
    own, tree = jax.tree.flatten(weights.cell)
    gx = jax.eval_shape(lambda x: cells.project_inputs(weights, x.sum(0), carry[0].dtype), x)
    gh = jax.ShapeDtypeStruct((gx.shape[0], weights.ih.shape[0]), gx.dtype)
    # The step receives h before the projection.
    seen = tuple(jax.eval_shape(lambda c: c, c) for c in carry)

    def step(own: list[Array], carry: Carry, gx: Array, gh: Array) -> Any:
        return cells.advance(cell, jax.tree.unflatten(tree, own), carry, gx, gh)

    traced = jax.make_jaxpr(step, return_shape=True)(own, seen, gx, gh)
    closed, returned = traced
    _check(cell, returned, gh)
    consts = list(closed.consts)
    new = _remembered(cell.step, closed, TracedStep(closed.jaxpr, gx.shape[0]))
    # Both projections are kept unless that is proved: more memory, and no wrong derivative.
    additive = cell.additive and _adds(closed.jaxpr)
    cell = cell._replace(step=new, additive=additive)
    return cell, weights._replace(cell=(weights.cell, consts))


@dataclasses.dataclass(frozen=True, eq=False)
class TracedStep:
    """A step as a jaxpr, `step((own, consts), carry, gx, gh)`, traced on arrays (rows, ·).

    If the number of rows is a multiple of `rows`, as for chunks of a sequence side by side, the
    step runs in that many parts. A closed-over array may therefore have one entry for each row.
    """

    jaxpr: Any
    rows: Size

    @property
    def pure(self) -> "TracedStep":
        return self

    def __call__(self, params: Any, carry: Carry, gx: Array, gh: Array) -> Carry:
        own, consts = params
        leaves = jax.tree.leaves(own)

        def run(carry: Carry, gx: Array, gh: Array) -> Carry:
            return tuple(jax.core.eval_jaxpr(self.jaxpr, consts, *leaves, *carry, gx, gh))

        if gx.shape[0] == self.rows:
            return run(carry, gx, gh)
        parts = jax.tree.map(lambda a: a.reshape(-1, self.rows, a.shape[-1]), (carry, gx, gh))
        return jax.tree.map(lambda a: a.reshape(-1, a.shape[-1]), jax.vmap(run)(*parts))


def _adds(jaxpr: Any) -> bool:
    """True if gx and gh, the last two arguments, enter only through their sum."""
    pair = set(jaxpr.invars[-2:])
    sums = [e for e in jaxpr.eqns if e.primitive.name in ("add", "add_any")]
    alone = [e for e in sums if {v for v in e.invars if isinstance(v, Var)} == pair]
    used = [e for e in jaxpr.eqns if any(isinstance(v, Var) and v in pair for v in e.invars)]
    return used == alone and not any(isinstance(v, Var) and v in pair for v in jaxpr.outvars)


_MOST = 64
_SEEN: OrderedDict[Any, tuple[list[Any], TracedStep]] = OrderedDict()


def _remembered(step: Any, closed: Any, new: TracedStep) -> TracedStep:
    """An equal step of an earlier call if there is one, so that `jax.jit` reuses its program."""
    if any(isinstance(c, jax.core.Tracer) for c in closed.consts):
        return new
    key = (step, new.rows, tuple(v.aval for v in new.jaxpr.invars))
    try:
        known = _SEEN.get(key)
    except TypeError:  # a step that is not hashable
        return new
    program = _program(closed)
    if known is not None and known[0] == program:
        _SEEN.move_to_end(key)
        return known[1]
    _SEEN[key] = program, new
    if len(_SEEN) > _MOST:
        _SEEN.popitem(last=False)
    return new


def _program(closed: Any) -> list[Any]:
    """Values that equal programs share: the jaxpr's text, and the constants that it omits."""
    inside, custom = _inside(closed.jaxpr)
    if not custom:
        return [str(closed.jaxpr), *inside]
    # The text omits custom derivative rules; the derivative's jaxpr contains them.
    avals = [v.aval for v in closed.jaxpr.invars]
    moving = [jnp.issubdtype(a.dtype, jnp.inexact) for a in avals]

    def derivative(arguments: list[Any], cotangents: list[Any]) -> Any:
        def run(floats: list[Any]) -> list[Any]:
            left = iter(floats)
            full = [next(left) if m else a for m, a in zip(moving, arguments, strict=True)]
            return jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *full)

        floats = [a for m, a in zip(moving, arguments, strict=True) if m]
        return jax.vjp(run, floats)[1](cotangents)

    outputs = [v.aval for v in closed.jaxpr.outvars]
    rules = jax.make_jaxpr(derivative)(avals, outputs).jaxpr
    return [str(closed.jaxpr), *inside, str(rules), *_inside(rules)[0]]


def _inside(jaxpr: Any) -> tuple[list[Any], bool]:
    """Constants and functions inside a jaxpr, and True if it has custom derivative rules."""
    found: list[Any] = []
    custom = False
    for eqn in jaxpr.eqns:
        own = eqn.primitive.name.startswith("custom_")
        custom |= own
        for value in jax.tree.leaves(eqn.params):
            if isinstance(value, ClosedJaxpr):
                found += map(_Constant, value.consts)
            if isinstance(value, ClosedJaxpr | Jaxpr):
                inner = value.jaxpr if isinstance(value, ClosedJaxpr) else value
                more, deeper = _inside(inner)
                found += more
                custom |= deeper
            elif callable(value) and not own:
                found.append(value)
    return found, custom


class _Constant:
    """An array as a value: JAX's equals itself alone, NumPy's any of the same bytes.

    NumPy's may change in place, hence the bytes.
    """

    def __init__(self, array: Any) -> None:
        self.array = array if isinstance(array, jax.Array) else None
        if self.array is None:
            array = np.asarray(array)
            self.value = (array.dtype, array.shape, array.tobytes())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Constant) or (self.array is None) != (other.array is None):
            return False
        return self.array is other.array if self.array is not None else self.value == other.value

    __hash__ = None  # type: ignore[assignment]


def _check(cell: Cell, returned: Any, gx: Any) -> None:
    """Require a carry of the right shapes, before a loop raises a less helpful error."""
    shape = (gx.shape[0], gx.shape[1] // cell.gates)
    found = returned if isinstance(returned, tuple) else (returned,)
    if not isinstance(returned, tuple) or [a.shape for a in found] != [shape] * cell.states:
        raise InputError(
            f"The step of the cell {cell.name!r} must return a tuple of {cell.states} arrays of "
            f"shape (B, H) = {shape}, got {[tuple(a.shape) for a in jax.tree.leaves(returned)]}."
        )
