"""Cells that are linear in their state, in parallel over time."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jaxrnn import cells
from jaxrnn.cells import Carry, Cell, Weights
from jaxrnn.derivative.rule import Recurrence
from jaxrnn.steps import is_reset
from jaxrnn.strategies.base import Base, Capabilities, require, silence

CAPABILITIES = Capabilities(projections=(), linear=True, recurrent_dropout=False)


@dataclasses.dataclass(frozen=True)
class AssociativeScan(Base):
    """h_t = a_t h_{t-1} + b_t for all steps at once, in about 2 log2(T) rounds.

    Two steps in a row are one of the same form, (a, b) then (a', b') is (a' a, a' b + b'), and that
    composition is associative. It pays where a device has room for many steps side by side; on a
    CPU `Scan` is mostly faster.

    Raises:
        InputError: the cell has no `Cell.linear`, the layer projects its state, or the number of
            steps is symbolic under `jax.export`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn import cells, strategies
        >>> weights = cells.Weights(ih=jnp.ones((8, 3)), hh=None)
        >>> arguments = cells.min_gru, weights, jnp.ones((5, 2, 3)), (jnp.zeros((2, 4)),)
        >>> ys, (h,) = strategies.AssociativeScan()(*arguments)
        >>> bool(jnp.allclose(ys, strategies.Scan()(*arguments)[0]))
        True

    Source: Blelloch, "Prefix Sums and Their Applications", 1990; Martin and Cundy, "Parallelizing
    Linear Recurrent Neural Nets Over Sequence Length", 2018.
    """

    @property
    def capabilities(self) -> Capabilities:
        return CAPABILITIES

    def refusal(self, cell: Cell, weights: Weights, x: Array, carry: Carry) -> str:
        if not isinstance(x.shape[0], int):
            steps = x.shape[0]
            return f"strategies.AssociativeScan needs a number of steps that is known, got {steps}."
        return super().refusal(cell, weights, x, carry)

    def recurrence(
        self, cell: Cell, weights: Weights, x: Array, carry: Carry, **options: Any
    ) -> Recurrence:
        require(self, cell, weights, x, carry)
        return AssociativeScanRecurrence(cell, **options)


@dataclasses.dataclass(frozen=True)
class AssociativeScanRecurrence(Recurrence):
    """The composition of all steps up to each one, applied to the initial state."""

    cell: Cell
    precision: lax.PrecisionLike = None
    reverse: bool = False

    def plain(
        self, weights: Weights, x: Array, carry: Carry, mask: Array | None
    ) -> tuple[Array, Carry]:
        (start,) = carry
        if x.shape[0] == 0:
            return jnp.zeros((0, *start.shape), start.dtype), carry
        assert self.cell.linear is not None
        a, b = self.cell.linear(cells.project_inputs(weights, x, start.dtype, self.precision))
        if mask is not None:
            a, b = self._masked(a, b, mask, weights.initial)
        a, b = lax.associative_scan(_compose, (a, b), reverse=self.reverse)
        h = a * jnp.broadcast_to(start, a.shape) + b
        return silence(mask, h), (h[0] if self.reverse else h[-1],)

    def _masked(
        self, a: Array, b: Array, mask: Array, initial: Carry | None
    ) -> tuple[Array, Array]:
        """Rows without a step keep h, a = 1 and b = 0; at a reset the step is from `initial`."""
        if initial is not None and mask.dtype != bool:
            fresh = is_reset(mask)[:, :, None]
            b = jnp.where(fresh, a * jnp.broadcast_to(initial[0], a.shape) + b, b)
            a = jnp.where(fresh, jnp.zeros_like(a), a)
        runs = mask.astype(bool)[:, :, None]
        return jnp.where(runs, a, jnp.ones_like(a)), jnp.where(runs, b, jnp.zeros_like(b))


def _compose(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    (a, b), (c, d) = first, second
    return c * a, c * b + d
