"""Another strategy in chunks of time, to save memory in training."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxrnn import checks
from jaxrnn.cells import Carry, Cell, Weights
from jaxrnn.checks import InputError
from jaxrnn.derivative.rule import Fixed, Operands, Recurrence, Tangents
from jaxrnn.strategies.base import Base, Capabilities, Strategy
from jaxrnn.strategies.default import default
from jaxrnn.strategies.scan import Scan


@dataclasses.dataclass(frozen=True)
class Checkpoint(Base):
    """Another strategy in chunks of time, each run once more for a gradient.

    What is kept of T steps is the carry at every chunk's beginning; what a derivative needs besides
    is recomputed for one chunk at a time. With chunks of about the square root of T steps, memory
    grows with that root, next to the inputs and the outputs. One more forward pass is the price.

    Args:
        steps: in one chunk.
        inner: the strategy that runs a chunk; None for `strategies.default`.

    Raises:
        TypeError: `steps` is no whole number, `inner` no strategy.
        InputError: `steps` is less than 1; a T that is symbolic under `jax.export`.

    Source: Griewank and Walther, "Algorithm 799: revolve", 2000, with one level of checkpoints.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn import cells, strategies
        >>> weights = cells.Weights(ih=jnp.ones((4, 1)), hh=0.1 * jnp.eye(4))
        >>> x, h = jnp.ones((100, 1, 1)), jnp.zeros((1, 4))
        >>> def loss(strategy, weights):
        ...     ys, _ = strategy(cells.rnn_tanh, weights, x, (h,))
        ...     return (ys**2).mean()
        >>> little = jax.grad(loss, argnums=1)(strategies.Checkpoint(steps=10), weights)
        >>> much = jax.grad(loss, argnums=1)(strategies.Scan(), weights)
        >>> bool(jnp.allclose(little.hh, much.hh, rtol=1e-4))
        True
    """

    steps: int
    inner: Strategy | None = None

    def __post_init__(self) -> None:
        checks.number("strategies.Checkpoint(steps=...)", self.steps, whole=True)
        checks.strategy("strategies.Checkpoint(inner=...)", self.inner)
        if self.steps < 1:
            raise InputError(f"strategies.Checkpoint needs steps >= 1, got {self.steps}.")

    @property
    def capabilities(self) -> Capabilities:
        return (self.inner or Scan()).capabilities

    def refusal(self, cell: Cell, weights: Weights, x: Array, carry: Carry) -> str:
        if not isinstance(x.shape[0], int):
            steps = x.shape[0]
            return f"strategies.Checkpoint needs a number of steps that is known, got {steps}."
        return "" if self.inner is None else self.inner.refusal(cell, weights, x, carry)

    def recurrence(
        self, cell: Cell, weights: Weights, x: Array, carry: Carry, **options: Any
    ) -> Recurrence:
        why = self.refusal(cell, weights, x, carry)
        if why:
            raise InputError(why)
        inner = self.inner or default(cell, weights, x, carry)
        reverse = bool(options.get("reverse", False))
        return CheckpointRecurrence(
            inner.recurrence(cell, weights, x, carry, **options), self.steps, reverse
        )


@dataclasses.dataclass(frozen=True)
class CheckpointRecurrence(Recurrence):
    """`inner` over chunks of `steps`, and the rest in a chunk of its own; saved: the starts."""

    inner: Recurrence
    steps: int
    reverse: bool

    saves_steps = False

    def plain(
        self, weights: Weights, x: Array, carry: Carry, mask: Array | None
    ) -> tuple[Array, Carry]:
        @partial(jax.checkpoint, prevent_cse=False)
        def chunk(weights: Weights, carry: Carry, inputs: Any) -> tuple[Carry, Array]:
            ys, last = self.inner.plain(weights, inputs[0], carry, inputs[1])
            return last, ys

        last, ys = self._scan(partial(chunk, weights), carry, (x, mask))
        return ys, last

    def run(
        self, weights: Weights, x: Array, carry: Carry, mask: Array | None, *, save: bool
    ) -> tuple[Array, Carry, Any, Any]:
        def chunk(carry: Carry, inputs: Any) -> tuple[Carry, Any]:
            ys, last, _, _ = self.inner.run(weights, inputs[0], carry, inputs[1], save=False)
            return last, (ys, jax.tree.map(lambda c: c[None], carry) if save else ())

        last, (ys, starts) = self._scan(chunk, carry, (x, mask))
        return ys, last, starts, ()

    def pull(self, fixed: Fixed, like: Any, cotangents: Tangents) -> Operands:
        weights, x, _, mask, ys, starts = fixed
        d_ys, d_last = cotangents
        of_weights, of_x, _ = like

        def chunk(state: Any, inputs: Any) -> tuple[Any, Any]:
            d_end, total = state
            (x, mask, _, d_ys), start = inputs
            start = jax.tree.map(lambda c: c[0], start)
            ys, _, saved, _ = self.inner.run(weights, x, start, mask, save=True)
            shapes = (of_weights, None if of_x is None else x, start)
            at = (weights, x, start, mask, ys, saved)
            more, dx, d_start = self.inner.pull(at, shapes, (d_ys, d_end))
            return (d_start, jax.tree.map(jnp.add, total, more)), dx

        zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), of_weights)
        (first, total), dx = self._scan(
            chunk, (d_last, zero), (x, mask, ys, d_ys), starts, backwards=True
        )
        return total, dx, first

    def _scan(
        self, chunk: Any, state: Any, inputs: Any, by_chunk: Any = (), *, backwards: bool = False
    ) -> tuple[Any, Any]:
        """`lax.scan` over chunks; the outputs of steps, and those of chunks (one row each), joined.

        With `by_chunk`, arrays with one row for each chunk go with the inputs. `backwards` runs
        against the order of the recurrence.
        """
        count = len(jax.tree.leaves(inputs)[0])
        whole = count // self.steps
        edge = whole * self.steps
        # The rest is the last chunk in the order of time, whichever way the recurrence runs.
        main = jax.tree.map(lambda a: a[:edge].reshape(whole, self.steps, *a.shape[1:]), inputs)
        rest = jax.tree.map(lambda a: a[edge:], inputs)
        aside, last = (
            jax.tree.map(lambda a: a[:whole, None], by_chunk),
            jax.tree.map(lambda a: a[whole:], by_chunk),
        )
        backwards = self.reverse != backwards

        def all_chunks(state: Any) -> tuple[Any, Any]:
            given = (main, aside) if jax.tree.leaves(by_chunk) else main
            state, out = lax.scan(chunk, state, given, reverse=backwards)
            return state, jax.tree.map(_joined, out)

        def the_rest(state: Any) -> tuple[Any, Any]:
            return chunk(state, (rest, last) if jax.tree.leaves(by_chunk) else rest)

        if edge == count:
            return all_chunks(state)
        first, second = (the_rest, all_chunks) if backwards else (all_chunks, the_rest)
        state, one = first(state)
        state, two = second(state)
        parts = (two, one) if backwards else (one, two)
        return state, jax.tree.map(lambda *a: jnp.concatenate(a), *parts)


def _joined(a: Array) -> Array:
    """(P, L, ·) -> (P*L, ·)."""
    return a.reshape(a.shape[0] * a.shape[1], *a.shape[2:])
