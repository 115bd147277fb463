"""Parallel in time, on unchanged weights: multiple shooting.

T steps are cut into P chunks of L steps. The chunks run side by side, as a batch of P*B rows, each
from a guess at the carry on its boundary; then each hands its last carry to the next, and that is
repeated until the boundaries agree:

    ends = sweep(starts)                 P*B rows, L steps, in any strategy
    starts' = (carry_0, ends_0 .. ends_{P-2})
    residual = max |starts' - starts| / max |starts'|

Chunk p is exact after p+1 sweeps whatever the network does, so P sweeps are the sequential run. A
network that forgets needs fewer: the first guess is the end of a run over the last `burn_in` steps
before each boundary, and where the network forgets within that many, one sweep confirms it. That
run starts away from rest in every unit, so that a unit that does not forget shows, even one whose
true state is 0 to the last bit. The outputs are those of the sweep that was confirmed: of the run
in order but for a change of the state by less than the tolerance, a few ULP, on each boundary.
Where `max_sweeps` do not confirm it, where a state is NaN or infinite on one side of a boundary, or
the network is chaotic, the inner strategy runs over the whole sequence in order instead: right,
only later.

The tangent and the adjoint recurrence are linear, have the Jacobians of the same steps and so
forget as fast. They are cut in the same way, with a residual and a way back of their own; the
adjoint runs from the last chunk to the first. Its mismatch is measured against the largest
cotangent on any boundary of the row, for a cotangent that fades to nothing adds nothing. So every
derivative of first order is exact and parallel; the second runs through one sequential scan, and
over `Native` forward mode does too.

A sweep runs whole. Fewer rows would cost nearly as much where it pays at all, at small B: there a
step's time goes into reading W_hh and into overhead, not into rows.

When it pays: P*B rows must cost less than P times B rows, so on a CPU at B = 1, where T is tens of
thousands of steps (`benchmarks/results`); and the network must forget within a chunk. It does not
pay for an orthogonal tanh RNN, for gates held open over more than a chunk, or for chaotic weights:
there it costs up to `max_sweeps` sweeps more than the inner strategy alone.

Source: Bellen and Zennaro, "Parallel algorithms for initial-value problems for difference and
differential equations", 1989; Lions, Maday and Turinici, "A parareal in time discretization of
PDEs", 2001; Gander and Vandewalle, "Analysis of the parareal time-parallel time-integration
method", 2007. Newton's method instead of the plain hand-over is DEER (Lim et al., "Parallelizing
non-linear sequential models over the sequence length", 2024), which needs the H x H Jacobian of
each step; ParaRNN (Danieli et al., 2025) makes that Jacobian diagonal by changing the cell.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float

from jaxrnn import cells, checks
from jaxrnn.cells import Carry, Cell, Size, Weights
from jaxrnn.strategies import devices, linear, native_chunks, rule
from jaxrnn.strategies.choice import default
from jaxrnn.strategies.chunks import (
    Boundaries,
    Cut,
    Info,
    Knobs,
    excited,
    one_chunk,
    shoot,
)
from jaxrnn.strategies.compiled import compiled
from jaxrnn.strategies.contract import Strategy
from jaxrnn.strategies.linear import LinearMap
from jaxrnn.strategies.native import Native
from jaxrnn.strategies.rule import Fixed, Operands, Recurrent, Way
from jaxrnn.strategies.scan import Scan

_ULPS = 8
_BURN_IN = 128
_SWEEPS = 3
_SHORTEST = 512
_ROWS, _ROWS_ON_CPU = 512, 64
_MOST_ON_CPU = 1  # rows of a batch: with more of them, a step's products are efficient as they are
_LEAST_ON_CPU = 16_384  # steps: with fewer, burn-in and hand-over cost what the chunks gain
_NARROWEST_ON_CPU = 64  # units: with fewer, training gains nothing


@dataclasses.dataclass(frozen=True)
class Shooting:
    """Multiple shooting: chunks of the sequence side by side, until their boundaries agree.

    Args:
        chunks: P, the number of chunks, and at most T. None chooses by shape and platform: as many
            as make 64 rows of P*B on a CPU and 512 elsewhere, in chunks of no fewer than 512 steps;
            on a CPU with B > 1, H < 64 or fewer than 16,384 steps, and of a T that is symbolic
            under `jax.export`, one, which is the inner strategy alone. Where the arrays' types say
            that several devices share them, inside `jax.shard_map` or on an explicit mesh, it is
            always one.
        inner: the strategy that runs the chunks, and the whole where it falls back; None for
            `strategies.default`.
        tolerance: the largest mismatch at a boundary, relative to the largest entry of the
            state there; None for 8 ULP of the state's dtype. 0 asks for equal bits.
        burn_in: steps before each boundary that the first guess is made from; None for 128, or a
            whole chunk if that is shorter; 0 guesses the same near the initial carry everywhere.
        max_sweeps: after so many sweeps without agreement it falls back; None for 3.

    Raises:
        TypeError: an option that is no number, or no whole one where it counts something, or an
            `inner` that is no strategy.
        ValueError: an option out of range; `chunks` given and the number of steps not known.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn import cells, strategies
        >>> weights = cells.Weights(ih=jnp.ones((4, 3)), hh=0.2 * jnp.eye(4))
        >>> x = jnp.sin(jnp.arange(3000.0)).reshape(1000, 1, 3)
        >>> strategy = strategies.Shooting(chunks=4)
        >>> ys, (h,), info = strategy.run(cells.rnn_tanh, weights, x, (jnp.zeros((1, 4)),))
        >>> int(info.sweeps), bool(info.fell_back)
        (1, False)
        >>> wanted, _ = strategies.Scan()(cells.rnn_tanh, weights, x, (jnp.zeros((1, 4)),))
        >>> bool(jnp.allclose(ys, wanted, atol=1e-6))
        True
    """

    chunks: int | None = None
    inner: Strategy | None = None
    tolerance: float | None = None
    burn_in: int | None = None
    max_sweeps: int | None = None

    def __post_init__(self) -> None:
        least = {"chunks": 1, "tolerance": 0, "burn_in": 0, "max_sweeps": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is None:
                continue
            checks.number(f"strategies.Shooting({name}=...)", value, whole=name != "tolerance")
            if not value >= bound:
                raise ValueError(
                    f"`Shooting({name}={value})` needs {name} of {bound} or more, or None."
                )
        checks.strategy("strategies.Shooting(inner=...)", self.inner)

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
        ys, last, _ = self.run(cell, weights, x, carry, mask, precision=precision)
        return ys, last

    @compiled
    def run(
        self,
        cell: Cell,
        weights: Weights,
        x: Float[Array, "T B I"],
        carry: Carry,
        mask: Bool[Array, "T B"] | None = None,
        *,
        precision: lax.PrecisionLike = None,
    ) -> tuple[Float[Array, "T B P"], Carry, Info]:
        """What the call returns, and how it came about. Differentiable as the call is."""
        count = self._count(weights, x, carry, mask)
        inner = self.inner or default(cell, weights, x, carry)
        if count == 1:
            ys, last = inner(cell, weights, x, carry, mask, precision=precision)
            return ys, last, one_chunk(carry[0].dtype)
        cut, knobs, cut_x, mask = self._cut(count, x, mask, carry[0].dtype)
        if isinstance(inner, Native):
            call = inner.call(cell, weights, x, carry, precision)
            way = native_chunks.Way(call, cut, knobs)
            cut_x = cut_x.astype(weights.ih.dtype)
            hs, last, _, info = native_chunks.recurrence(way, weights, cut_x, carry, mask)
        else:
            shot = _Way.of(cell, inner, precision, cut, knobs)
            arguments = shot.arguments(weights, cut_x, carry, mask)
            hs, last, _, info = rule.recurrence(shot, *arguments)
        return cut.join(hs)[: x.shape[0]], last, info

    @compiled
    def run_adjoint(
        self,
        cell: Cell,
        weights: Weights,
        x: Float[Array, "T B I"],
        carry: Carry,
        mask: Bool[Array, "T B"] | None,
        cotangents: tuple[Float[Array, "T B P"], Carry],
        *,
        precision: lax.PrecisionLike = None,
    ) -> tuple[Carry, Info]:
        """The cotangent of the initial carry, given those of `(ys, last)`, and how it came about.

        What a gradient took cannot be returned from within it; this runs the same again.
        """
        count = self._count(weights, x, carry, mask)
        inner = self.inner or default(cell, weights, x, carry)
        if count == 1:
            run = lambda c: inner(cell, weights, x, c, mask, precision=precision)  # noqa: E731
            return jax.vjp(run, carry)[1](cotangents)[0], one_chunk(carry[0].dtype)
        cut, knobs, cut_x, mask = self._cut(count, x, mask, carry[0].dtype)
        d_ys, d_last = cotangents
        d_ys = jnp.pad(d_ys, ((0, cut.chunks * len(cut_x) - len(x)), (0, 0), (0, 0)))
        d_hs = rule.silence(mask, cut.split(d_ys))
        if isinstance(inner, Native):
            call = inner.call(cell, weights, x, carry, precision)._replace(save=True)
            way = native_chunks.Way(call, cut, knobs)
            cut_x = cut_x.astype(weights.ih.dtype)
            hs, _, trace, _ = native_chunks.recurrence(way, weights, cut_x, carry, mask)
            at = (weights, cut_x, carry, mask, hs, trace)
            got, info = native_chunks.Tangent(way).shoot_back(at, False, (d_hs, d_last))
            return got[2], info
        shot = _Way.of(cell, inner, precision, cut, knobs)
        arguments = shot.arguments(weights, cut_x, carry, mask)
        _, _, residuals, _ = shot.saving().run(*arguments)
        recurrent, gx, *_ = arguments
        kept = None if cell.additive else gx
        like = Operands(carry, kept, gx, None if weights.hr is None else d_hs)
        fixed = Fixed(recurrent, kept, mask, residuals)
        back, info = shot.linear_map().shoot_back(fixed, like, (d_hs, d_last, None))
        return back.carry, info

    def _count(self, weights: Weights, x: Array, carry: Carry, mask: Array | None) -> int:
        if devices.spread(weights, x, carry, mask):
            return 1
        steps, batch, _ = x.shape
        return self.count(steps, batch, carry[-1].shape[-1])

    def count(self, steps: Size, batch: Size, hidden: int) -> int:
        """P for T steps of B rows and H units: `chunks`, or what is chosen for it."""
        if not isinstance(steps, int):
            if self.chunks is None:
                return 1
            raise ValueError(
                f"`Shooting(chunks={self.chunks})` needs a number of steps that is known, got "
                f"{steps}. Use `chunks=None`."
            )
        if batch == 0:
            return 1
        if self.chunks is None:
            if not isinstance(batch, int):
                return 1
            on_cpu = jax.default_backend() == "cpu"
            small = steps < _LEAST_ON_CPU or hidden < _NARROWEST_ON_CPU
            if on_cpu and (batch > _MOST_ON_CPU or small):
                return 1
            rows = _ROWS_ON_CPU if on_cpu else _ROWS
            return max(1, min(rows // batch, steps // _SHORTEST))
        return max(1, min(self.chunks, steps))

    def _cut(self, count: int, x: Array, mask: Array | None, dtype: Any):
        """How to cut and to shoot, and x and the mask in chunks."""
        steps, batch = x.shape[:2]
        cut = Cut(count, batch)
        spare = -steps % count
        if spare:
            whole = jnp.ones((steps, batch), bool) if mask is None else mask
            mask = jnp.pad(whole, ((0, spare), (0, 0)))
            x = jnp.pad(x, ((0, spare), (0, 0), (0, 0)))
        x, mask = cut.split(x), None if mask is None else cut.split(mask.astype(bool))
        knobs = Knobs(
            _ULPS * float(jnp.finfo(dtype).eps) if self.tolerance is None else self.tolerance,
            min(x.shape[0], _BURN_IN if self.burn_in is None else self.burn_in),
            _SWEEPS if self.max_sweeps is None else self.max_sweeps,
        )
        return cut, knobs, x, mask


class _Foreign(NamedTuple):
    """A strategy that says nothing of its inside: its derivative is that of `Scan`."""

    cell: Cell
    strategy: Strategy
    precision: lax.PrecisionLike
    save: bool = False

    def saving(self) -> Way:
        return Scan().way(self.cell, self.precision).saving()

    def linear_map(self) -> LinearMap:
        return Scan().way(self.cell, self.precision).linear_map()

    def push(self, fixed: Fixed, operands: Operands):
        return linear.apply(self.linear_map(), fixed, operands)

    def run(self, weights: Recurrent, gx: Array, carry: Carry, mask: Array | None, raw: Any):
        layer, x = raw
        ys, last = self.strategy(self.cell, layer, x, carry, mask, precision=self.precision)
        return ys, last, None, None


class _Way(NamedTuple):
    """Shooting over the chunks of a cut sequence; all arrays of steps are (L, P*B, ·)."""

    cell: Cell
    precision: lax.PrecisionLike
    inner: Way
    cut: Cut
    knobs: Knobs
    save: bool = False

    @classmethod
    def of(
        cls, cell: Cell, inner: Strategy, precision: lax.PrecisionLike, cut: Cut, knobs: Knobs
    ) -> "_Way":
        make = getattr(inner, "way", None)
        way = _Foreign(cell, inner, precision) if make is None else make(cell, precision)
        return cls(cell, precision, way, cut, knobs)

    def arguments(self, weights: Weights, x: Array, carry: Carry, mask: Array | None):
        """Those of `rule.recurrence`."""
        gx = cells.project(x, weights.ih, weights.b_ih, carry[0].dtype, self.precision)
        return Recurrent.of(weights), gx, carry, mask, (weights, x)

    def saving(self) -> "_Way":
        return self._replace(inner=self.inner.saving(), save=True)

    def linear_map(self) -> "_Tangent":
        return _Tangent(self.inner.linear_map(), self.cut, self.knobs)

    def push(self, fixed: Fixed, operands: Operands):
        return linear.apply(self.linear_map(), fixed, operands)

    def run(self, weights: Recurrent, gx: Array, carry: Carry, mask: Array | None, raw: Any):
        boundaries, (layer, x) = Boundaries(self.cut, mask), raw

        def sweep(starts: Carry, steps: slice = slice(None)):
            cut = None if mask is None else mask[steps]
            ys, ends, residuals, _ = self.inner.run(
                weights, gx[steps], starts, cut, (layer, x[steps])
            )
            return (ys, residuals), ends

        def in_order():
            join, split = self.cut.join, self.cut.split
            whole = None if mask is None else join(mask)
            ys, last, residuals, _ = self.inner.run(
                weights, join(gx), carry, whole, (layer, join(x))
            )
            return jax.tree.map(split, (ys, residuals)), last

        near = slice(gx.shape[0] - self.knobs.burn_in, None)
        (ys, residuals), last, info = shoot(
            self.knobs,
            boundaries,
            carry,
            sweep,
            in_order,
            guess=excited(carry),
            near=near,
            everywhere=False,
        )
        return ys, last, residuals, info


@dataclasses.dataclass(frozen=True)
class _Tangent(LinearMap):
    """The tangent recurrence and its adjoint by shooting; the plain way is sequential."""

    inner: LinearMap
    cut: Cut
    knobs: Knobs

    def plain(self, fixed: Fixed, operands: Operands):
        return self._in_order(self.inner.plain, fixed, operands)

    def tangent(self, fixed: Fixed, operands: Operands):
        boundaries = Boundaries(self.cut, fixed.mask)

        def sweep(starts: Carry, steps: slice = slice(None)):
            some = partial(_each_step, lambda a: a[steps])
            moved = some(operands)._replace(carry=starts)
            hs, ends, residuals = self.inner.tangent(some(fixed), moved)
            return (hs, residuals), ends

        def in_order():
            hs, last, residuals = self._in_order(self.inner.tangent, fixed, operands)
            return (hs, residuals), last

        length = fixed.residuals.gh.shape[0]
        before = slice(length - self.knobs.burn_in, length)
        guess = self.cut.cotangent(operands.e, operands.carry)
        (hs, residuals), last, _ = self._shoot(
            sweep, before, boundaries, operands.carry, in_order, guess
        )
        return hs, last, residuals

    def adjoint(self, fixed: Fixed, like: Operands, cotangents) -> Operands:
        return self.shoot_back(fixed, like, cotangents)[0]

    def shoot_back(self, fixed: Fixed, like: Operands, cotangents) -> tuple[Operands, Info]:
        """The adjoint: each chunk ends with the cotangent that the next one starts with."""
        boundaries = Boundaries(self.cut, fixed.mask, backwards=True)
        join = self.cut.join
        hs, last, residuals = cotangents

        def sweep(ends: Carry, steps: slice = slice(None)):
            some = partial(_each_step, lambda a: a[steps])
            shapes = jax.eval_shape(lambda o, c: some(o)._replace(carry=c), like, ends)
            given = (hs[steps], ends, jax.tree.map(lambda a: a[steps], residuals))
            got = self.inner.adjoint(some(fixed), shapes, given)
            return got._replace(carry=()), got.carry

        def in_order():
            whole = (join(hs), last, jax.tree.map(join, residuals))
            shapes = jax.eval_shape(partial(_each_step, join), like)
            got = self.inner.adjoint(_each_step(join, fixed), shapes, whole)
            return _each_step(self.cut.split, got._replace(carry=())), got.carry

        after = slice(0, self.knobs.burn_in)
        guess = self.cut.cotangent(hs, last)
        got, first, info = self._shoot(sweep, after, boundaries, last, in_order, guess)
        return got._replace(carry=first), info

    def _shoot(
        self,
        sweep: Any,
        near: slice,
        boundaries: Boundaries,
        first: Carry,
        in_order: Any,
        guess: Carry,
    ):
        return shoot(
            self.knobs, boundaries, first, sweep, in_order, guess=guess, near=near, everywhere=True
        )

    def _in_order(self, run: Callable[..., Any], fixed: Fixed, operands: Operands):
        """`run` on the sequence in one piece."""
        join, split = partial(_each_step, self.cut.join), partial(jax.tree.map, self.cut.split)
        hs, last, residuals = run(join(fixed), join(operands))
        return split(hs), last, split(residuals)


def _each_step(change: Callable[[Array], Array], tree: Any) -> Any:
    """`Fixed` or `Operands` with the arrays of steps changed: all but the first field."""
    return type(tree)(tree[0], *jax.tree.map(change, tree[1:]))
