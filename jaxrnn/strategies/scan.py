"""`lax.scan` with one derivative rule for every cell: see `jaxrnn.strategies.rule`."""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from jaxrnn import cells, checks
from jaxrnn.cells import Carry, Cell, Weights
from jaxrnn.checks import InputError
from jaxrnn.strategies import rule
from jaxrnn.strategies.compiled import compiled
from jaxrnn.strategies.rule import Fixed, Operands, Recurrent, Residuals, TangentScan


@dataclasses.dataclass(frozen=True)
class Scan:
    """`lax.scan` with the input projection as one product and the derivative rule of `rule`.

    Args:
        unroll: steps per iteration of the loop, as in `jax.lax.scan`.

    Raises:
        TypeError: `unroll` is no whole number.
        InputError: `unroll` is less than 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn import cells, strategies
        >>> weights = cells.Weights(ih=jnp.ones((4, 3)), hh=jnp.eye(4))
        >>> def loss(strategy, weights):
        ...     ys, _ = strategy(cells.rnn_tanh, weights, jnp.ones((5, 2, 3)), (jnp.zeros((2, 4)),))
        ...     return (ys**2).sum()
        >>> fast = jax.grad(loss, argnums=1)(strategies.Scan(), weights)
        >>> slow = jax.grad(loss, argnums=1)(strategies.Reference(), weights)
        >>> bool(jnp.allclose(fast.hh, slow.hh))
        True
    """

    unroll: int = 1

    def __post_init__(self) -> None:
        checks.number("strategies.Scan(unroll=...)", self.unroll, whole=True)
        if self.unroll < 1:
            raise InputError(f"strategies.Scan needs unroll >= 1, got {self.unroll}.")

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
        gx = cells.project(x, weights.ih, weights.b_ih, carry[0].dtype, precision)
        ys, last, _, _ = rule.recurrence(
            self.way(cell, precision), Recurrent.of(weights), gx, carry, mask
        )
        return ys, last

    def way(self, cell: Cell, precision: lax.PrecisionLike) -> "_Way":
        """What `jaxrnn.strategies.rule` runs."""
        return _Way(cell, self.unroll, precision)


class _Way(NamedTuple):
    cell: Cell
    unroll: int
    precision: lax.PrecisionLike
    save: bool = False

    def saving(self) -> "_Way":
        return self._replace(save=True)

    def linear_map(self) -> TangentScan:
        return TangentScan(self.cell, self.unroll, self.precision, self.save)

    def push(self, fixed: Fixed, operands: Operands):
        return self.linear_map().plain(fixed, operands)

    def run(self, weights: Recurrent, gx: Array, carry: Carry, mask: Array | None, raw: Any = None):
        dtype = gx.dtype
        hh = weights.hh.T  # once, outside the loop: `h @ W` runs faster than `h @ W.T`

        def step(carry: Carry, inputs):
            gx_t, mask_t = inputs
            gh = rule.product(carry[0], hh, dtype, self.precision)
            if weights.b_hh is not None:
                gh = gh + jnp.broadcast_to(weights.b_hh.astype(dtype), gh.shape)
            m, *rest = self.cell.step(carry, gx_t, gh)
            h = m
            if weights.hr is not None:
                h = cells.project(m, weights.hr, None, dtype, self.precision)
            new = rule.hold(mask_t, (h, *rest), carry)
            seen = gx_t + gh if self.cell.additive else gh
            return new, (new[0], Residuals(carry, seen) if self.save else None)

        last, (hs, residuals) = lax.scan(step, carry, (gx, mask), unroll=self.unroll)
        return rule.silence(mask, hs), last, residuals, None
