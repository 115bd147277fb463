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
true state is 0 to the last bit. The outputs are those of the confirmed sweep: equal to the
sequential outputs up to a boundary error below the tolerance, a few ULP of the state. Where
`max_sweeps` do not confirm a sweep, where a state is non-finite on one side of a boundary, or where
the network is chaotic, the inner strategy runs over the whole sequence sequentially instead.

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
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from jaxrnn import checks, closures, sharding
from jaxrnn.cells import Carry, Cell, Size, Weights
from jaxrnn.checks import InputError
from jaxrnn.derivative import rule
from jaxrnn.derivative.rule import Recurrence
from jaxrnn.strategies.base import Base, Capabilities, Strategy, prepare
from jaxrnn.strategies.default import default
from jaxrnn.strategies.scan import Scan
from jaxrnn.strategies.shooting.chunks import Info, Knobs, one_chunk
from jaxrnn.strategies.shooting.recurrence import Flipped, ShootingRecurrence

_ULPS = 8
_NARROW_ULPS = 2  # of the products' dtype, where it is narrower than the carry's
_BURN_IN = 128
_SWEEPS = 3
_SHORTEST = 512
_ROWS_ON_CPU = 64
_MOST_ON_CPU = 1  # rows of a batch: with more of them, a step's products are efficient as they are
_LEAST_ON_CPU = 16_384  # steps: with fewer, burn-in and hand-over cost what the chunks gain
_NARROWEST_ON_CPU = 64  # units: with fewer, training gains nothing


@dataclasses.dataclass(frozen=True)
class Shooting(Base):
    """Multiple shooting: chunks of the sequence side by side, until their boundaries agree.

    On a GPU float32 products run at `Precision.HIGHEST` unless `precision` says otherwise: with the
    default's TF32 operands the boundaries never agree to a few ULP of float32.

    Args:
        chunks: P, the number of chunks, and at most T. None chooses by shape and platform, in
            chunks of no fewer than 512 steps. On a CPU it makes 64 rows of P*B; with B > 1, H < 64
            or fewer than 16,384 steps there is one chunk, which is the inner strategy alone. On a
            GPU it makes 512 rows over `Scan`; over `Native` 64 for H = 512, 128 for H = 256, and
            at most 256. A T that is symbolic under `jax.export` is one chunk. So are arrays whose
            types say that several devices share them, inside `jax.shard_map` or on an explicit
            mesh.
        inner: the strategy that runs the chunks, and the whole where it falls back; None for
            `strategies.default`.
        tolerance: the largest mismatch at a boundary, relative to the largest entry of the
            state there; None for 8 ULP of the state's dtype, or 2 ULP of the products' where that
            is narrower (bfloat16, float16). 0 asks for equal bits.
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

    @property
    def capabilities(self) -> Capabilities:
        return (self.inner or Scan()).capabilities

    def refusal(self, cell: Cell, weights: Weights, x: Array, carry: Carry) -> str:
        steps = x.shape[0]
        if not isinstance(steps, int) and self.chunks is not None:
            return (
                f"`Shooting(chunks={self.chunks})` needs a number of steps that is known, got "
                f"{steps}. Use `chunks=None`."
            )
        return "" if self.inner is None else self.inner.refusal(cell, weights, x, carry)

    def recurrence(
        self, cell: Cell, weights: Weights, x: Array, carry: Carry, **options: Any
    ) -> Recurrence:
        why = self.refusal(cell, weights, x, carry)
        if why:
            raise InputError(why)
        inner = self.inner or default(cell, weights, x, carry)
        steps, batch, _ = x.shape
        hidden = carry[-1].shape[-1]
        rows = max(1, inner.capabilities.rows_side_by_side(hidden))
        count = self.count(steps, batch, hidden, rows)
        if count == 1 or sharding.spread(weights, x, carry):
            return inner.recurrence(cell, weights, x, carry, **options)
        reverse = options.pop("reverse", False)
        options["precision"] = _agreeing(options.get("precision"), weights)
        knobs = self._knobs(-(-steps // count), weights, carry)
        shot = ShootingRecurrence(
            inner.recurrence(cell, weights, x, carry, **options), count, knobs
        )
        return Flipped(shot) if reverse else shot

    @closures.compiled
    def run(
        self,
        cell: Cell,
        weights: Weights,
        x: Float[Array, "T B I"],
        carry: Carry,
        mask: Array | None = None,
        *,
        precision: lax.PrecisionLike = None,
        reverse: bool = False,
    ) -> tuple[Float[Array, "T B P"], Carry, Info]:
        """Like `__call__`, and also returns an `Info` (sweeps, residual, fell_back)."""
        recurrence = self.recurrence(cell, weights, x, carry, precision=precision, reverse=reverse)
        weights, mask = prepare(weights, carry, mask)
        ys, last, info = rule.run(recurrence, weights, x, carry, mask)
        return ys, last, info or one_chunk(carry[0].dtype)

    @closures.compiled
    def run_adjoint(
        self,
        cell: Cell,
        weights: Weights,
        x: Float[Array, "T B I"],
        carry: Carry,
        mask: Array | None,
        cotangents: tuple[Float[Array, "T B P"], Carry],
        *,
        precision: lax.PrecisionLike = None,
        reverse: bool = False,
    ) -> tuple[Carry, Info]:
        """The cotangent of the initial carry, given those of `(ys, last)`, and its `Info`.

        The `Info` of a gradient cannot be returned from within it; this runs the same again.
        """
        recurrence = self.recurrence(cell, weights, x, carry, precision=precision, reverse=reverse)
        weights, mask = prepare(weights, carry, mask)
        ys, _, saved, _ = recurrence.run(weights, x, carry, mask, save=True)
        fixed, like = (weights, x, carry, mask, ys, saved), (None, None, carry)
        back, info = recurrence.pull_with_info(fixed, like, cotangents)
        return back[2], info or one_chunk(carry[0].dtype)

    def count(self, steps: Size, batch: Size, hidden: int, rows: int = 512) -> int:
        """P for T steps of B rows and H units: `chunks`, or what is chosen for it.

        `rows` is the number that runs side by side at no cost, off a CPU.
        """
        if batch == 0 or not isinstance(steps, int):
            return 1
        if self.chunks is None:
            if not isinstance(batch, int):
                return 1
            on_cpu = jax.default_backend() == "cpu"
            small = steps < _LEAST_ON_CPU or hidden < _NARROWEST_ON_CPU
            if on_cpu and (batch > _MOST_ON_CPU or small):
                return 1
            rows = _ROWS_ON_CPU if on_cpu else rows
            return max(1, min(rows // batch, steps // _SHORTEST))
        return max(1, min(self.chunks, steps))

    def _knobs(self, length: int, weights: Weights, carry: Carry) -> Knobs:
        tolerance = self.tolerance
        if tolerance is None:
            # Products of a narrower dtype round h to it, so that the boundaries agree to that.
            tolerance = _ULPS * float(jnp.finfo(carry[0].dtype).eps)
            tolerance = max(tolerance, _NARROW_ULPS * _rounding(weights, carry))
        return Knobs(
            tolerance,
            min(length, _BURN_IN if self.burn_in is None else self.burn_in),
            _SWEEPS if self.max_sweeps is None else self.max_sweeps,
        )


def _rounding(weights: Weights, carry: Carry) -> float:
    """The rounding unit of the products' operands where it is coarser than the carry's, else 0."""
    own, products = jnp.finfo(carry[0].dtype).eps, jnp.finfo(weights.ih.dtype).eps
    return float(products) if products > own else 0.0


def _agreeing(precision: Any, weights: Weights) -> Any:
    """The precision of products at which the boundaries agree.

    By default a GPU rounds the operands of float32 products to TF32's 10 bits. The recurrence does
    not contract differences that rounding makes anew at every step, so no two runs would agree to a
    few ULP of float32. At the highest precision they do.
    """
    configured = getattr(jax.config, "jax_default_matmul_precision", None)
    unsaid = precision is None and configured is None
    if unsaid and weights.ih.dtype == jnp.float32 and jax.default_backend() == "gpu":
        return lax.Precision.HIGHEST
    return precision
