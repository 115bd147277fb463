"""Another strategy in chunks of time, so that training remembers little of a long sequence."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from jaxrnn import checks
from jaxrnn.cells import Carry, Cell, Weights
from jaxrnn.checks import InputError
from jaxrnn.strategies.choice import default
from jaxrnn.strategies.compiled import compiled
from jaxrnn.strategies.contract import Strategy


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Runs `inner` chunk by chunk and, for a gradient, each chunk once more.

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
        >>> x, h = jnp.ones((1000, 1, 1)), jnp.zeros((1, 4))
        >>> def loss(strategy, weights):
        ...     ys, _ = strategy(cells.rnn_tanh, weights, x, (h,))
        ...     return (ys**2).sum()
        >>> little = jax.grad(loss, argnums=1)(strategies.Checkpoint(steps=32), weights)
        >>> much = jax.grad(loss, argnums=1)(strategies.Scan(), weights)
        >>> bool(jnp.allclose(little.hh, much.hh))
        True
    """

    steps: int
    inner: Strategy | None = None

    def __post_init__(self) -> None:
        checks.number("strategies.Checkpoint(steps=...)", self.steps, whole=True)
        checks.strategy("strategies.Checkpoint(inner=...)", self.inner)
        if self.steps < 1:
            raise InputError(f"strategies.Checkpoint needs steps >= 1, got {self.steps}.")

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
        run = partial(self.inner or default(cell, weights, x, carry), precision=precision)
        if not isinstance(x.shape[0], int):
            raise InputError(
                f"strategies.Checkpoint needs a number of steps that is known, got {x.shape[0]}."
            )
        whole = x.shape[0] // self.steps * self.steps

        @partial(jax.checkpoint, prevent_cse=False)
        def chunk(weights: Weights, carry: Carry, inputs: Any) -> tuple[Array, Carry]:
            return run(cell, weights, inputs[0], carry, inputs[1])

        def body(carry: Carry, inputs: Any) -> tuple[Carry, Array]:
            ys, carry = chunk(weights, carry, inputs)
            return carry, ys

        inputs = (x, mask)
        count = whole // self.steps
        chunks = jax.tree.map(lambda a: a[:whole].reshape(count, self.steps, *a.shape[1:]), inputs)
        carry, ys = lax.scan(body, carry, chunks)
        ys = ys.reshape(whole, *ys.shape[2:])
        if whole == x.shape[0]:
            return ys, carry
        rest, carry = chunk(weights, carry, jax.tree.map(lambda a: a[whole:], inputs))
        return jnp.concatenate([ys, rest]), carry
