"""`Shooting` over the CPU kernel, whose two calls take the weights and the inputs themselves."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from jaxrnn.cells import Carry, Weights
from jaxrnn.strategies import linear
from jaxrnn.strategies.chunks import Boundaries, Cut, Info, Knobs, excited, shoot
from jaxrnn.strategies.native import AdjointCall, Call, Saved, adjoint, forward, materialise
from jaxrnn.strategies.rule import no_tangent


class Way(NamedTuple):
    """How the chunks run."""

    call: Call
    cut: Cut
    knobs: Knobs


class Trace(NamedTuple):
    """What the adjoint takes over from the forward pass."""

    starts: Carry
    saved: Saved


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def recurrence(way: Way, weights: Weights, x: Array, carry: Carry, mask: Array | None):
    """(hs, last carry, trace, info), of x and mask that are cut; so are hs and the trace."""
    cut, knobs = way.cut, way.knobs
    boundaries = Boundaries(cut, mask)

    def sweep(starts: Carry, steps: slice = slice(None)):
        at = None if mask is None else mask[steps]
        ys, ends, saved = forward(way.call, weights, x[steps], starts, at)
        return (ys, Trace(starts, saved)), ends

    def in_order():
        def chunk(start: Carry, inputs: Any):
            ys, end, saved = forward(way.call, weights, inputs[0], start, inputs[1])
            return end, (ys, start, saved)

        one_by_one = jax.tree.map(cut.one_by_one, (x, mask))
        last, (ys, starts, saved) = lax.scan(chunk, carry, one_by_one)
        ys, saved = jax.tree.map(cut.side_by_side, (ys, saved))
        return (ys, Trace(tuple(s.reshape(-1, s.shape[-1]) for s in starts), saved)), last

    near = slice(x.shape[0] - knobs.burn_in, None)
    (hs, trace), last, info = shoot(
        knobs, boundaries, carry, sweep, in_order, guess=excited(carry), near=near, everywhere=False
    )
    return hs, last, trace, info


@partial(recurrence.defjvp, symbolic_zeros=True)
def _recurrence_jvp(way: Way, primals: Any, tangents: Any):
    weights, x, carry, mask = primals
    dweights, dx, dcarry, _ = tangents
    saving = way._replace(call=way.call._replace(save=True))
    hs, last, trace, info = recurrence(saving, *primals)
    constant = isinstance(dx, SymbolicZero)  # then its cotangent is not computed either
    operands = materialise((dweights, None if constant else dx, dcarry))
    fixed = (weights, x, carry, mask, hs, trace)
    dhs, dlast = linear.apply(Tangent(way), fixed, operands)
    if not way.call.save:
        trace = jax.eval_shape(partial(recurrence, way), *primals)[2]
        trace = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), trace)
    out = (hs, last, trace, info)
    return out, (dhs, dlast, *jax.tree.map(no_tangent, (trace, info)))


@dataclasses.dataclass(frozen=True)
class Tangent(linear.LinearMap):
    """The tangent recurrence in order, as `Scan` would run it; its adjoint by shooting."""

    way: Way

    def plain(self, fixed: Any, operands: Any) -> Any:
        weights, x, carry, mask, _, _ = fixed
        dweights, dx, dcarry = operands
        dx = jnp.zeros_like(x) if dx is None else dx
        join = self.way.cut.join
        whole = None if mask is None else join(mask)
        run = lambda weights, x, carry: self.way.call.plain(weights, join(x), carry, whole)  # noqa: E731
        dys, dlast = jax.jvp(run, (weights, x, carry), (dweights, dx, dcarry))[1]
        return self.way.cut.split(dys), dlast

    def adjoint(self, fixed: Any, like: Any, cotangents: Any) -> Any:
        return self.shoot_back(fixed, like[1] is not None, cotangents)[0]

    def shoot_back(self, fixed: Any, with_dx: bool, cotangents: Any) -> tuple[Any, Info]:
        """The cotangents of weights, x and carry, handed on from each chunk to the one before."""
        weights, x, _, mask, hs, (starts, saved) = fixed
        d_hs, d_last = cotangents
        cut, knobs = self.way.cut, self.way.knobs
        boundaries = Boundaries(cut, mask, backwards=True)
        pull = partial(adjoint, AdjointCall(self.way.call, with_dx))
        of_steps = (x, mask, hs, saved, d_hs)

        def sweep(ends: Carry, steps: slice | None = None):
            some = of_steps if steps is None else jax.tree.map(lambda a: a[steps], of_steps)
            x, mask, hs, saved, d_hs = some
            fixed = (weights, x, starts, mask, hs, saved)
            if steps is not None:  # for a guess, of which the carry alone counts
                call = AdjointCall(self.way.call, with_dx=False, with_weights=False)
                return None, adjoint(call, fixed, (d_hs, ends))[2]
            dweights, dx, d_starts = pull(fixed, (d_hs, ends))
            return (dweights, dx), d_starts

        def in_order():
            def chunk(state: Any, inputs: Any):
                end, total = state
                start, (x, mask, hs, saved, d_hs) = inputs
                fixed = (weights, x, start, mask, hs, saved)
                dweights, dx, d_start = pull(fixed, (d_hs, end))
                return (d_start, jax.tree.map(jnp.add, total, dweights)), dx

            carries = tuple(s.reshape(cut.chunks, cut.batch, s.shape[-1]) for s in starts)
            one_by_one = (carries, jax.tree.map(cut.one_by_one, of_steps))
            zero = (d_last, jax.tree.map(jnp.zeros_like, weights))
            (first, total), dx = lax.scan(chunk, zero, one_by_one, reverse=True)
            return (total, jax.tree.map(cut.side_by_side, dx)), first

        guess = cut.cotangent(d_hs, d_last)
        near = slice(0, knobs.burn_in)
        (dweights, dx), first, info = shoot(
            knobs, boundaries, d_last, sweep, in_order, guess=guess, near=near, everywhere=True
        )
        return (dweights, dx, first), info
