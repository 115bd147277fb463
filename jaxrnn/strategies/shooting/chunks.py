"""A sequence in chunks side by side, and the hand-over of states between them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from jaxrnn.cells import Carry, Size, Weights

_START = 0.25  # how far from rest a guess starts, in units of the state or of the cotangents


class Info(NamedTuple):
    """The cost of a run by shooting.

    `sweeps` over the whole sequence; the `residual` of the last, relative to the state; and whether
    it `fell_back` to the sequential run.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn import cells, strategies
        >>> weights = cells.Weights(ih=jnp.ones((4, 3)), hh=0.1 * jnp.eye(4))
        >>> run = strategies.Shooting(chunks=2).run
        >>> *_, info = run(cells.rnn_tanh, weights, jnp.ones((64, 1, 3)), (jnp.zeros((1, 4)),))
        >>> bool(info.fell_back)
        False
    """

    sweeps: Int[Array, ""]
    residual: Float[Array, ""]
    fell_back: Bool[Array, ""]


def one_chunk(dtype: Any) -> Info:
    """The `Info` of a run in one chunk."""
    return Info(jnp.int32(1), jnp.zeros((), _wide(dtype)), jnp.bool_(False))


class Knobs(NamedTuple):
    tolerance: float
    burn_in: int
    max_sweeps: int


class Cut(NamedTuple):
    """Between a sequence (P*L, B, ·) and its chunks side by side (L, P*B, ·)."""

    chunks: int
    batch: Size

    def split(self, a: Array) -> Array:
        length = a.shape[0] // self.chunks
        return self.side_by_side(a.reshape(self.chunks, length, self.batch, *a.shape[2:]))

    def join(self, a: Array) -> Array:
        return self.one_by_one(a).reshape(self.chunks * a.shape[0], self.batch, *a.shape[2:])

    def one_by_one(self, a: Array) -> Array:
        """(L, P*B, ·) -> (P, L, B, ·); an absent array (0,) becomes (P, 0)."""
        if a.ndim < 2:
            return jnp.zeros((self.chunks, 0), a.dtype)
        return jnp.swapaxes(a.reshape(a.shape[0], self.chunks, self.batch, *a.shape[2:]), 0, 1)

    def side_by_side(self, a: Array) -> Array:
        """(P, L, B, ·) -> (L, P*B, ·), and (P, 0) -> (0,)."""
        if a.ndim < 3:
            return a[0]
        a = jnp.swapaxes(a, 0, 1)
        return a.reshape(a.shape[0], self.chunks * self.batch, *a.shape[3:])

    def rows(self, carry: Carry) -> Carry:
        """(P*B, ·) -> (P, B, ·)."""
        return tuple(c.reshape(self.chunks, self.batch, c.shape[-1]) for c in carry)

    def cotangent(self, of_steps: Array, last: Carry) -> Carry:
        """Initial cotangent for the burn-in, scaled per row by the largest incoming cotangent."""
        # Behind the barrier XLA does not fold the maximum of a large constant while it compiles.
        rows = jnp.abs(lax.optimization_barrier(of_steps)).max((0, 2), initial=0)
        rows = rows.reshape(self.chunks, self.batch).max(0, initial=0)
        for d in last:
            rows = jnp.maximum(rows, jnp.abs(d).max(1, initial=0).astype(rows.dtype))
        return excited(tuple(jnp.zeros_like(d) for d in last), rows[:, None])

    def repeat(self, carry: Carry) -> Carry:
        """One carry for all chunks."""
        return tuple(jnp.tile(c, (self.chunks, 1)) for c in carry)

    def for_chunks(self, weights: Weights) -> Weights:
        """Weights, or their tangents, with their per-row arrays repeated for every chunk."""
        mask, initial = weights.mask, weights.initial
        return weights._replace(
            mask=None if mask is None else self.repeat((mask,))[0],
            initial=None if initial is None else self.repeat(initial),
        )

    def for_rows(self, dweights: Weights | None) -> Weights | None:
        """The transpose of `for_chunks`: a row's cotangent is the sum of its chunks'."""
        if dweights is None:
            return None
        mask, initial = dweights.mask, dweights.initial
        return dweights._replace(
            mask=None if mask is None else self.rows((mask,))[0].sum(0),
            initial=None if initial is None else tuple(d.sum(0) for d in self.rows(initial)),
        )


class Boundaries:
    """The hand-over from chunk to chunk, forwards in time or backwards.

    A chunk without a step in a row hands on what it is given; its own start is never looked at.
    """

    def __init__(self, cut: Cut, mask: Array | None, *, backwards: bool = False) -> None:
        self.cut, self.backwards = cut, backwards
        self.active: Array | None = None
        if mask is not None:
            steps = mask.reshape(mask.shape[0], cut.chunks, cut.batch)
            self.active = self._turn(steps.any(0))
            number = lax.broadcasted_iota(jnp.int32, self.active.shape, 0) + 1
            latest = lax.cummax(jnp.where(self.active, number, jnp.zeros_like(number)))
            self.source = jnp.pad(latest, ((1, 0), (0, 0)))[:, :, None]

    def hand_over(self, ends: Carry, first: Carry) -> tuple[Carry, Carry]:
        """The starts (P*B, ·) that follow from the ends, and the end (B, ·) of the sequence."""
        starts, last = [], []
        for end, one in zip(ends, first, strict=True):
            line = jnp.concatenate([one[None], self._rows(end)])
            if self.active is not None:
                line = jnp.take_along_axis(line, self.source, 0)
            starts.append(self._turn(line[:-1]).reshape(end.shape))
            last.append(line[-1])
        return tuple(starts), tuple(last)

    def mismatch(self, new: Carry, old: Carry, *, everywhere: bool) -> Array:
        """max |new - old|, relative to max |new| at the boundary, or at all of the row's.

        NaN agrees with NaN: the sequential run would have it too. With anything else it does not.
        """
        worst = jnp.zeros((), _wide(new[0].dtype))
        for n, o in zip(new, old, strict=True):
            n, o = (self._rows(a).astype(_wide(a.dtype)) for a in (n, o))
            same = (n == o) | (jnp.isnan(n) & jnp.isnan(o))
            if self.active is not None:
                same |= ~self.active[:, :, None]
            axes = (0, 2) if everywhere else (2,)
            scale = jnp.max(jnp.abs(n), axes, keepdims=True, initial=0)
            apart = jnp.where(same, 0, jnp.abs(n - o) / jnp.broadcast_to(scale, n.shape))
            apart = jnp.where(jnp.isnan(apart), jnp.inf, apart)
            worst = jnp.maximum(worst, jnp.max(apart, initial=0).astype(worst.dtype))
        return worst

    def _rows(self, a: Array) -> Array:
        return self._turn(a.reshape(self.cut.chunks, self.cut.batch, a.shape[-1]))

    def _turn(self, a: Array) -> Array:
        return lax.rev(a, (0,)) if self.backwards else a


def _wide(dtype: Any) -> Any:
    return dtype if jnp.finfo(dtype).bits > 32 else jnp.float32


def excited(carry: Carry, size: Any = 1.0) -> Carry:
    """The carry, perturbed in every unit by a different fraction of `size`.

    The start of a guess must have a component in every direction, or one in which the network does
    not forget could be missed: a unit that is exactly 0 stays 0, however much it amplifies.
    """

    def moved(c: Array) -> Array:
        unit = np.arange(1, c.shape[-1] + 1) * 0.618034  # the golden ratio spreads them evenly
        share = jnp.asarray(_START * (0.5 + 0.5 * (unit % 1)), c.dtype)[None]
        return c + jnp.broadcast_to(share * jnp.asarray(size, c.dtype), c.shape)

    return tuple(moved(c) for c in carry)


def shoot(
    knobs: Knobs,
    boundaries: Boundaries,
    first: Carry,
    sweep: Callable[..., tuple[Any, Carry]],
    in_order: Callable[[], tuple[Any, Carry]],
    *,
    guess: Carry,
    near: slice,
    everywhere: bool,
) -> tuple[Any, Carry, Info]:
    """Sweeps until the boundaries agree, or else `in_order`.

    Args:
        first: the carry that the first chunk starts with.
        sweep: the chunks from their starts, over all steps or some: the outputs and the ends.
        in_order: the same over the sequence in one piece, with its end.
        guess: what the steps `near` the end of every chunk start with, for a first guess.
        everywhere: what a mismatch is relative to, see `Boundaries.mismatch`.

    Returns:
        The outputs, the carry after the last chunk, and the `Info`.
    """

    def turn(state):
        count, starts, *_ = state
        outputs, ends = sweep(starts)
        following, last = boundaries.hand_over(ends, first)
        residual = boundaries.mismatch(following, starts, everywhere=everywhere)
        return count + 1, following, residual, outputs, last

    def more(state):
        count, _, residual, *_ = state
        return (count < knobs.max_sweeps) & ~(residual <= knobs.tolerance)

    ends = boundaries.cut.repeat(guess)
    if knobs.burn_in:
        _, ends = sweep(ends, near)
    starts, _ = boundaries.hand_over(ends, first)
    state = turn((jnp.int32(0), starts))
    count, _, residual, outputs, last = lax.while_loop(more, turn, state)
    agreed = residual <= knobs.tolerance

    # A loop of one turn and not a `cond`: under `vmap` a `cond` runs both of its branches always.
    def fall_back(state):
        return state[0] | True, *in_order()

    _, outputs, last = lax.while_loop(lambda s: ~s[0], fall_back, (agreed, outputs, last))
    return outputs, last, Info(count, residual, ~agreed)
