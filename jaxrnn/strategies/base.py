"""The contract of strategies, and what each of them states of itself as data."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxrnn import closures
from jaxrnn.cells import Carry, Cell, Weights
from jaxrnn.checks import InputError
from jaxrnn.derivative import rule
from jaxrnn.derivative.rule import Recurrence
from jaxrnn.steps import has_resets, is_reset


class Capabilities(NamedTuple):
    """The programs that a strategy runs. None stands for all.

    Example:
        >>> from jaxrnn import cells, strategies
        >>> cells.lstm in strategies.Native().capabilities.cells
        True
        >>> strategies.Scan().capabilities.cells is None
        True
    """

    cells: tuple[Cell, ...] | None = None
    projections: tuple[Cell, ...] | None = None
    """Cells whose h W_hr may project, by `proj_size`."""
    dtypes: tuple[str, ...] | None = None
    """Of weights and carry, one for all of them."""
    narrow: tuple[str, ...] = ()
    """Dtypes that the weights may have beside a carry in float32, and the biases with them."""
    linear: bool = False
    """Only cells that have a `Cell.linear`."""
    parameters: bool = True
    """Cells with parameters of their own, and cells without W_hh."""
    recurrent_dropout: bool = True
    side_by_side: int = 512
    """The rows of a batch that take hardly longer than one row on a GPU."""
    units_side_by_side: int | None = None
    """The same for rows times H."""

    def rows_side_by_side(self, hidden: int) -> int:
        units = self.units_side_by_side
        return self.side_by_side if units is None else min(self.side_by_side, units // hidden)


EVERYTHING = Capabilities()


@runtime_checkable
class Strategy(Protocol):
    """One cell over time, in one direction: a hashable value with a short repr.

    `jaxrnn.strategies` says what the arguments mean. `recurrence` returns what runs, so that one
    strategy can be built of another; `refusal` returns one sentence, empty if it runs.
    """

    @property
    def capabilities(self) -> Capabilities: ...

    def refusal(self, cell: Cell, weights: Weights, x: Array, carry: Carry) -> str: ...

    def recurrence(
        self, cell: Cell, weights: Weights, x: Array, carry: Carry, **options: Any
    ) -> Recurrence: ...

    def __call__(
        self,
        cell: Cell,
        weights: Weights,
        x: Array,
        carry: Carry,
        mask: Array | None = None,
        *,
        precision: lax.PrecisionLike = None,
        reverse: bool = False,
    ) -> tuple[Array, Carry]: ...


class Base:
    """The parts of a strategy that follow from its `recurrence` and its `capabilities`."""

    @property
    def capabilities(self) -> Capabilities:
        return EVERYTHING

    def refusal(self, cell: Cell, weights: Weights, x: Array, carry: Carry) -> str:
        """The reason why this strategy cannot run the arguments, in one sentence; empty if it can.

        Only shapes and dtypes count.
        """
        return lacking(type(self).__name__, self.capabilities, cell, weights, carry)

    def recurrence(
        self,
        cell: Cell,
        weights: Weights,
        x: Array,
        carry: Carry,
        **options: Any,
    ) -> Recurrence:
        """The recurrence to run, with the options `precision` and `reverse`.

        Raises:
            InputError: the strategy cannot run the arguments.
        """
        raise NotImplementedError

    @closures.compiled
    def __call__(
        self,
        cell: Cell,
        weights: Weights,
        x: Array,
        carry: Carry,
        mask: Array | None = None,
        *,
        precision: lax.PrecisionLike = None,
        reverse: bool = False,
    ) -> tuple[Array, Carry]:
        """(ys, last): the outputs (T, B, P), 0 where the mask is False, and the last carry."""
        recurrence = self.recurrence(cell, weights, x, carry, precision=precision, reverse=reverse)
        weights, mask = prepare(weights, carry, mask)
        ys, last, _ = rule.run(recurrence, weights, x, carry, mask)
        return ys, last


def lacking(
    name: str, capabilities: Capabilities, cell: Cell, weights: Weights, carry: Carry
) -> str:
    """The first capability that the arguments need and a strategy lacks, in one sentence."""
    if capabilities.cells is not None and cell not in capabilities.cells:
        names = ", ".join(c.name for c in capabilities.cells)
        return f"strategies.{name} runs {names}, not {cell.name}; strategies.Scan runs every cell."
    if capabilities.linear and cell.linear is None:
        return (
            f"strategies.{name} runs cells that are linear in their state, by `Cell.linear`, and "
            f"{cell.name} is not; strategies.Scan runs every cell."
        )
    if weights.mask is not None and not capabilities.recurrent_dropout:
        return f"strategies.{name} has no recurrent dropout; strategies.Scan has."
    if not capabilities.parameters and (weights.hh is None or jax.tree.leaves(weights.cell)):
        return f"strategies.{name} runs cells with W_hh and no parameters of their own."
    projects = capabilities.projections
    if weights.hr is not None and projects is not None and cell not in projects:
        return (
            f"strategies.{name} does not project {cell.name} (proj_size > 0); strategies.Scan does."
        )
    if capabilities.dtypes is not None:
        matrices = dtypes_of((weights.ih, weights.hh, weights.hr))
        biases = dtypes_of((weights.b_ih, weights.b_hh))
        of_carry = dtypes_of((carry, weights.initial))
        mixes = of_carry == {"float32"} and biases <= matrices | of_carry
        if mixes and len(matrices) == 1 and matrices <= {*capabilities.narrow}:
            return ""
        found = sorted(of_carry | dtypes_of(weights))
        if len(found) > 1 or found[0] not in capabilities.dtypes:
            wanted = " or in ".join(capabilities.dtypes)
            return f"strategies.{name} computes in {wanted}, not in {', '.join(found)}."
    return ""


def dtypes_of(tree: Any) -> set[str]:
    return {str(a.dtype) for a in jax.tree.leaves(tree)}


def require(strategy: Any, cell: Cell, weights: Weights, x: Array, carry: Carry) -> None:
    """Raise InputError with the reason where a strategy cannot run."""
    why = strategy.refusal(cell, weights, x, carry)
    if why:
        raise InputError(why)


def prepare(weights: Weights, carry: Carry, mask: Array | None) -> tuple[Weights, Array | None]:
    """The mask as booleans, or as uint8 with resets and weights whose `initial` is set."""
    if mask is None:
        return weights, None
    if not jnp.issubdtype(mask.dtype, jnp.integer):
        return weights, mask.astype(bool)
    initial = carry if weights.initial is None else weights.initial
    return weights._replace(initial=initial), mask.astype(jnp.uint8)


def hold(mask: Array | None, new: Carry, old: Carry) -> Carry:
    """The new carry in rows that take a step, else the old one."""
    if mask is None:
        return new
    run = mask.astype(bool)[:, None]
    return tuple(jnp.where(run, n, o) for n, o in zip(new, old, strict=True))


def restart(mask: Array | None, carry: Carry, initial: Carry | None) -> Carry:
    """The carry that enters a step: the initial one in rows with a reset, zero if it is None."""
    if mask is None or not has_resets(mask):
        return carry
    fresh = is_reset(mask)[:, None]
    start = tuple(map(jnp.zeros_like, carry)) if initial is None else initial
    return tuple(jnp.where(fresh, s, c) for s, c in zip(start, carry, strict=True))


def silence(mask: Array | None, ys: Array) -> Array:
    """The outputs, 0 where there is no step."""
    return ys if mask is None else jnp.where(mask.astype(bool)[:, :, None], ys, jnp.zeros_like(ys))
