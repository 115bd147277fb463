"""The recurrence of `Shooting`: another one over chunks side by side, in both directions of time.

All arrays of steps are in chunks (L, P*B, ·) within; see `chunks.Cut`.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxrnn.cells import Carry, Weights
from jaxrnn.derivative.rule import Fixed, Operands, Recurrence, Tangents
from jaxrnn.strategies.base import silence
from jaxrnn.strategies.shooting.chunks import Boundaries, Cut, Info, Knobs, excited, shoot


class Trace(NamedTuple):
    """Saved for the adjoint: initial states and outputs of the chunks, and the inner recurrence's
    own saved arrays."""

    starts: Carry
    hs: Array
    saved: Any


@dataclasses.dataclass(frozen=True)
class ShootingRecurrence(Recurrence):
    """`inner` over the chunks of a sequence (T, B, ·), from the first step to the last."""

    inner: Recurrence
    chunks: int
    knobs: Knobs

    saves_steps = False

    def plain(
        self, weights: Weights, x: Array, carry: Carry, mask: Array | None
    ) -> tuple[Array, Carry]:
        return self.inner.plain(weights, x, carry, mask)

    def run(
        self, weights: Weights, x: Array, carry: Carry, mask: Array | None, *, save: bool
    ) -> tuple[Array, Carry, Any, Any]:
        steps = x.shape[0]
        cut, x, mask = self._cut(x, mask)
        boundaries = Boundaries(cut, mask)
        tiled = cut.for_chunks(weights)

        def sweep(starts: Carry, some: slice = slice(None)) -> tuple[Any, Carry]:
            at = None if mask is None else mask[some]
            ys, ends, saved, _ = self.inner.run(tiled, x[some], starts, at, save=save)
            return Trace(starts, ys, saved), ends

        def in_order() -> tuple[Any, Carry]:
            def chunk(start: Carry, inputs: Any) -> tuple[Carry, Any]:
                ys, end, saved, _ = self.inner.run(weights, inputs[0], start, inputs[1], save=save)
                return end, (start, (ys, saved))

            last, (starts, of_steps) = lax.scan(
                chunk, carry, jax.tree.map(cut.one_by_one, (x, mask))
            )
            starts = tuple(s.reshape(-1, s.shape[-1]) for s in starts)
            return Trace(starts, *jax.tree.map(cut.side_by_side, of_steps)), last

        trace, last, info = shoot(
            self.knobs,
            boundaries,
            carry,
            sweep,
            in_order,
            guess=excited(carry),
            near=slice(max(0, x.shape[0] - self.knobs.burn_in), None),
            everywhere=False,
        )
        return cut.join(trace.hs)[:steps], last, trace if save else (), info

    def push(self, fixed: Fixed, operands: Operands) -> Tangents:
        """The tangent recurrence has the same steps' Jacobians, and is cut in the same way."""
        weights, x, _, mask, _, trace = fixed
        dweights, dx, dcarry = operands
        steps = x.shape[0]
        cut, x, mask = self._cut(x, mask)
        dx = None if dx is None else self._cut(dx, None)[1]
        boundaries = Boundaries(cut, mask)
        of_steps = (x, mask, trace.hs, trace.saved, dx)
        tiled = cut.for_chunks(weights)
        dtiled = None if dweights is None else cut.for_chunks(dweights)

        def sweep(starts: Carry, some: slice | None = None) -> tuple[Any, Carry]:
            some = some if self.inner.saves_steps else None
            x, mask, hs, saved, dx = _pick(of_steps, some)
            at = (tiled, x, trace.starts, mask, hs, saved)
            return self.inner.push(at, (dtiled, dx, starts))

        def in_order() -> tuple[Any, Carry]:
            def chunk(start: Carry, inputs: Any) -> tuple[Carry, Array]:
                at, (x, mask, hs, saved, dx) = inputs
                dys, end = self.inner.push((weights, x, at, mask, hs, saved), (dweights, dx, start))
                return end, dys

            inputs = (cut.rows(trace.starts), jax.tree.map(cut.one_by_one, of_steps))
            last, dys = lax.scan(chunk, dcarry, inputs)
            return cut.side_by_side(dys), last

        near = slice(max(0, x.shape[0] - max(1, self.knobs.burn_in)), None)
        # The size of what drives the tangents is that of the tangents themselves after a few steps.
        driven, _ = sweep(cut.repeat(tuple(jnp.zeros_like(d) for d in dcarry)), near)
        dys, last, _ = shoot(
            self.knobs,
            boundaries,
            dcarry,
            sweep,
            in_order,
            guess=cut.cotangent(driven, dcarry),
            near=near,
            everywhere=True,
        )
        return cut.join(dys)[:steps], last

    def pull(self, fixed: Fixed, like: Any, cotangents: Tangents) -> Operands:
        return self.pull_with_info(fixed, like, cotangents)[0]

    def pull_with_info(
        self, fixed: Fixed, like: Any, cotangents: Tangents
    ) -> tuple[Operands, Info]:
        """The cotangents of weights, x and carry, handed on from each chunk to the one before."""
        weights, x, _, mask, _, trace = fixed
        of_weights, of_x, _ = like
        steps = x.shape[0]
        cut, x, mask = self._cut(x, mask)
        d_ys, d_last = cotangents
        d_hs = silence(mask, self._cut(d_ys, None)[1])
        boundaries = Boundaries(cut, mask, backwards=True)
        of_steps = (x, mask, trace.hs, trace.saved, d_hs)
        tiled = cut.for_chunks(weights)
        of_tiled = None if of_weights is None else jax.eval_shape(cut.for_chunks, of_weights)

        def pull(
            weights: Weights, like: Any, starts: Carry, ends: Carry, inputs: Any, *, dx: bool
        ) -> Operands:
            x, mask, hs, saved, d_hs = inputs
            at = (weights, x, starts, mask, hs, saved)
            return self.inner.pull(at, (like, x if dx else None, starts), (d_hs, ends))

        def sweep(ends: Carry, some: slice | None = None) -> tuple[Any, Carry]:
            # A guess runs over some steps, and only its carry is used.
            guess = some is not None
            inputs = _pick(of_steps, some if self.inner.saves_steps else None)
            wanted = None if guess else of_tiled
            with_dx = of_x is not None and not guess
            dweights, dx, start = pull(tiled, wanted, trace.starts, ends, inputs, dx=with_dx)
            return (None if guess else (cut.for_rows(dweights), dx)), start

        def in_order() -> tuple[Any, Carry]:
            def chunk(state: Any, inputs: Any) -> tuple[Any, Any]:
                end, total = state
                with_dx = of_x is not None
                more, dx, start = pull(weights, of_weights, inputs[0], end, inputs[1], dx=with_dx)
                return (start, jax.tree.map(jnp.add, total, more)), dx

            inputs = (cut.rows(trace.starts), jax.tree.map(cut.one_by_one, of_steps))
            zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), of_weights)
            (first, total), dx = lax.scan(chunk, (d_last, zero), inputs, reverse=True)
            return (total, jax.tree.map(cut.side_by_side, dx)), first

        (dweights, dx), first, info = shoot(
            self.knobs,
            boundaries,
            d_last,
            sweep,
            in_order,
            guess=cut.cotangent(d_hs, d_last),
            near=slice(0, self.knobs.burn_in),
            everywhere=True,
        )
        dx = None if dx is None else cut.join(dx)[:steps]
        return (dweights, dx, first), info

    def _cut(self, x: Array, mask: Array | None) -> tuple[Cut, Array, Array | None]:
        """The cut, and x and the mask in chunks; the steps of the padding are masked out."""
        steps, batch = x.shape[:2]
        cut = Cut(self.chunks, batch)
        spare = -steps % self.chunks
        if spare:
            whole = jnp.ones((steps, batch), bool) if mask is None else mask
            mask = jnp.pad(whole, ((0, spare), (0, 0)))
            x = jnp.pad(x, ((0, spare), (0, 0), (0, 0)))
        return cut, cut.split(x), None if mask is None else cut.split(mask)


@dataclasses.dataclass(frozen=True)
class Flipped(Recurrence):
    """`inner` on flipped sequences: from the last step to the first."""

    inner: Recurrence

    def plain(
        self, weights: Weights, x: Array, carry: Carry, mask: Array | None
    ) -> tuple[Array, Carry]:
        ys, last = self.inner.plain(weights, flip(x), carry, flip(mask))
        return flip(ys), last

    def run(
        self, weights: Weights, x: Array, carry: Carry, mask: Array | None, *, save: bool
    ) -> tuple[Array, Carry, Any, Any]:
        ys, *rest = self.inner.run(weights, flip(x), carry, flip(mask), save=save)
        return flip(ys), *rest

    def push(self, fixed: Fixed, operands: Operands) -> Tangents:
        dweights, dx, dcarry = operands
        dys, last = self.inner.push(_flipped(fixed), (dweights, flip(dx), dcarry))
        return flip(dys), last

    def pull(self, fixed: Fixed, like: Any, cotangents: Tangents) -> Operands:
        return self.pull_with_info(fixed, like, cotangents)[0]

    def pull_with_info(self, fixed: Fixed, like: Any, cotangents: Tangents) -> tuple[Operands, Any]:
        flipped = (flip(cotangents[0]), cotangents[1])
        (dweights, dx, dcarry), info = self.inner.pull_with_info(_flipped(fixed), like, flipped)
        return (dweights, flip(dx), dcarry), info


def flip(a: Any) -> Any:
    return None if a is None else lax.rev(a, (0,))


def _flipped(fixed: Fixed) -> Fixed:
    weights, x, carry, mask, ys, saved = fixed
    return weights, flip(x), carry, flip(mask), flip(ys), saved


def _pick(of_steps: Any, some: slice | None) -> Any:
    return of_steps if some is None else jax.tree.map(lambda a: a[some], of_steps)
