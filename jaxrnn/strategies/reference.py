"""The slow and plain way: `lax.scan` over whole steps, differentiated by JAX itself."""

import dataclasses
from typing import Any

import jax
from jax import Array, lax
from jaxtyping import Bool, Float, Integer

from jaxrnn import cells, closures
from jaxrnn.cells import Carry, Cell, Weights
from jaxrnn.derivative.rule import Recurrence
from jaxrnn.strategies.base import Base, hold, prepare, restart, silence


@dataclasses.dataclass(frozen=True)
class Reference(Base):
    """`lax.scan` with JAX's own derivative: the oracle for the other strategies.

    Nothing is hoisted out of the loop, and reverse mode stores what JAX decides to store.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn import cells, strategies
        >>> weights = cells.Weights(ih=jnp.ones((4, 3)), hh=jnp.eye(4))
        >>> mask = jnp.array([[True, True], [True, False]])       # the second row has one step
        >>> ys, (h,) = strategies.Reference()(
        ...     cells.rnn_tanh, weights, jnp.ones((2, 2, 3)), (jnp.zeros((2, 4)),), mask)
        >>> bool((h[1] == ys[0, 1]).all()), float(abs(ys[1, 1]).max())
        (True, 0.0)
    """

    def recurrence(
        self, cell: Cell, weights: Weights, x: Array, carry: Carry, **options: Any
    ) -> Recurrence:
        return ReferenceRecurrence(cell, **options)

    @closures.compiled
    def __call__(
        self,
        cell: Cell,
        weights: Weights,
        x: Float[Array, "T B I"],
        carry: Carry,
        mask: Bool[Array, "T B"] | Integer[Array, "T B"] | None = None,
        *,
        precision: lax.PrecisionLike = None,
        reverse: bool = False,
    ) -> tuple[Float[Array, "T B P"], Carry]:
        weights, mask = prepare(weights, carry, mask)
        return ReferenceRecurrence(cell, precision, reverse).plain(weights, x, carry, mask)


@dataclasses.dataclass(frozen=True)
class ReferenceRecurrence(Recurrence):
    """A scan over whole steps."""

    cell: Cell
    precision: lax.PrecisionLike = None
    reverse: bool = False

    def plain(
        self, weights: Weights, x: Array, carry: Carry, mask: Array | None
    ) -> tuple[Array, Carry]:
        def step(carry: Carry, inputs: Any):
            x_t, mask_t = inputs
            carry = restart(mask_t, carry, weights.initial)
            gx = cells.project_inputs(weights, x_t, carry[0].dtype, self.precision)
            new, _ = cells.step(self.cell, weights, carry, gx, self.precision)
            return hold(mask_t, new, carry), new[0]

        # A scan in reverse has no form in ONNX.
        last, ys = lax.scan(step, carry, self._flipped((x, mask)))
        return silence(mask, self._flipped(ys)), last

    def _flipped(self, sequences: Any) -> Any:
        return jax.tree.map(lambda a: a[::-1], sequences) if self.reverse else sequences
