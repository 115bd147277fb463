"""The slow and plain way: `lax.scan` over whole steps, differentiated by JAX itself."""

import dataclasses

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from jaxrnn import cells
from jaxrnn.cells import Carry, Cell, Weights
from jaxrnn.strategies.compiled import compiled


@dataclasses.dataclass(frozen=True)
class Reference:
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
        def step(carry: Carry, inputs):
            x_t, mask_t = inputs
            gx = cells.project(x_t, weights.ih, weights.b_ih, carry[0].dtype, precision)
            new, _ = cells.step(cell, weights, carry, gx, precision)
            if mask_t is None:
                return new, new[0]
            run = mask_t[:, None]
            held = tuple(jnp.where(run, n, c) for n, c in zip(new, carry, strict=True))
            return held, jnp.where(run, new[0], jnp.zeros_like(new[0]))

        last, ys = lax.scan(step, carry, (x, mask))
        return ys, last
