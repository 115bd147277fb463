"""What a strategy is; `jaxrnn.strategies` says what its arguments mean."""

from typing import Protocol, runtime_checkable

from jax import Array, lax

from jaxrnn.cells import Carry, Cell, Weights


@runtime_checkable
class Strategy(Protocol):
    """What a strategy must be: callable as below, hashable, with a short repr.

    It may have a method `reversed()` too, which returns the strategy that runs from the last step
    to the first. For the reverse direction of one that has none, `jaxrnn.layers` flips its inputs
    and outputs.
    """

    def __call__(
        self,
        cell: Cell,
        weights: Weights,
        x: Array,
        carry: Carry,
        mask: Array | None = None,
        *,
        precision: lax.PrecisionLike = None,
    ) -> tuple[Array, Carry]: ...
