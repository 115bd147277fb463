"""`lax.scan` whose derivative is one reverse scan and one product for each weight.

Differentiating the loop step by step would add to every weight's gradient at every step. But each
matrix sits in a projection, so the tangent recurrence needs the weights' tangents only through

    e_t = dW_hh h_{t-1} + db_hh           for all t in one product, because h is already known
    dgh_t = e_t + W_hh dh_{t-1}
    dcarry_t = J_t (dcarry_{t-1}, dgx_t, dgh_t, dparams)        J_t the Jacobian of the cell

JAX transposes that recurrence into a reverse scan that carries the carry's cotangent alone (and the
sum of the cell's own parameters' gradients), and the gradient of each weight comes out as one
product over all steps.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxrnn import cells, checks
from jaxrnn.cells import Carry, Cell, Weights
from jaxrnn.checks import InputError
from jaxrnn.derivative import blocks, projections, rule
from jaxrnn.derivative.rule import Fixed, Operands, Recurrence, Tangents
from jaxrnn.native import products
from jaxrnn.strategies.base import Base, hold, restart, silence


@dataclasses.dataclass(frozen=True)
class Scan(Base):
    """`lax.scan` with the input projection as one product and a derivative of its own.

    Args:
        unroll: steps per iteration of the loop, as in `jax.lax.scan`; None chooses 8 on a GPU,
            where an iteration costs several launches, and 1 elsewhere. A T that is symbolic under
            `jax.export` is not unrolled.

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

    unroll: int | None = None

    def __post_init__(self) -> None:
        if self.unroll is None:
            return
        checks.number("strategies.Scan(unroll=...)", self.unroll, whole=True)
        if self.unroll < 1:
            raise InputError(f"strategies.Scan needs unroll >= 1, got {self.unroll}.")

    def recurrence(
        self, cell: Cell, weights: Weights, x: Array, carry: Carry, **options: Any
    ) -> Recurrence:
        return ScanRecurrence(cell, self.unroll or steps_per_iteration(), **options)


def steps_per_iteration() -> int:
    """The unrolling of `lax.scan` that is fastest on the default backend."""
    return 8 if jax.default_backend() == "gpu" else 1


class Saved(NamedTuple):
    """For each step the carry that enters it, its gh, and its gx.

    Of an additive cell `gh` stands for gx + gh, and gx need not be kept.
    """

    carry: Carry
    gh: Array
    gx: Array | None


@dataclasses.dataclass(frozen=True)
class ScanRecurrence(Recurrence):
    cell: Cell
    unroll: int = 1
    precision: lax.PrecisionLike = None
    reverse: bool = False

    transposable = True

    def _scan(self, step: Any, carry: Any, inputs: Any) -> Any:
        steps = jax.tree.leaves(inputs)[0].shape[0]
        unroll = self.unroll if isinstance(steps, int) else 1  # a symbolic number cannot be divided
        return lax.scan(step, carry, inputs, unroll=unroll, reverse=self.reverse)

    def _scan_ahead(self, step: Any, carry: Carry, inputs: Any) -> Any:
        """`_scan`, with the inputs of each step read in the step before and carried to it.

        XLA's CPU compiler fuses the read of step t from `inputs` into the loop over the gates, and
        then does not vectorise that loop.
        """
        steps = jax.tree.leaves(inputs)[0].shape[0]

        def at(t: Any) -> Any:
            return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, t, keepdims=False), inputs)

        def step_ahead(state: Any, t: Array) -> Any:
            carry, now = state
            carry, saved = step(carry, now)
            following = t - 1 if self.reverse else t + 1  # past the end: any step, and unused
            return (carry, at(following)), saved

        first = carry, at(steps - 1 if self.reverse else 0)
        (last, _), saved = self._scan(step_ahead, first, jnp.arange(steps))
        return last, saved

    def _scan_into(self, step: Any, carry: Carry, inputs: Any) -> Any:
        """`_scan` into arrays that are not zero before."""
        steps = inputs[0].shape[0]
        at_first = jax.tree.map(lambda a: a[0], inputs)
        leaves, structure = jax.tree.flatten(jax.eval_shape(step, carry, at_first)[1])
        kinds = (products.Empty(n, (steps, *a.shape), str(a.dtype)) for n, a in enumerate(leaves))
        outputs = jax.tree.unflatten(structure, list(map(products.empty, kinds)))

        def step_into(state: Any, now: Any) -> Any:
            carry, outputs = state
            carry, found = step(carry, now)
            t = now[0]
            write = partial(lax.dynamic_update_index_in_dim, index=t, axis=0)
            return (carry, jax.tree.map(write, outputs, found)), None

        return self._scan(step_into, (carry, outputs), inputs)[0]

    def _project(self, x: Array, weight: Array, bias: Array | None, dtype: Any) -> Array:
        return cells.project(x, weight, bias, dtype, self.precision)

    def plain(
        self, weights: Weights, x: Array, carry: Carry, mask: Array | None
    ) -> tuple[Array, Carry]:
        ys, last, _ = rule.run(self, weights, x, carry, mask)
        return ys, last

    def run(
        self, weights: Weights, x: Array, carry: Carry, mask: Array | None, *, save: bool
    ) -> tuple[Array, Carry, Any, Any]:
        dtype = carry[0].dtype
        gx: Any = None
        sums: Any = None
        recurrent: Any = None
        if self.cell.additive:
            sums = projections.of_both(weights, x, carry, self.precision)
        if sums is None:
            gx = projections.of_inputs(weights, x, carry, self.precision)
            recurrent = self._recurrent(weights, x, carry)

        def step(carry: Carry, inputs: Any):
            gx_t, mask_t = inputs
            carry = restart(mask_t, carry, weights.initial)
            if sums is None:
                gh = recurrent(carry[0], gx_t)
                seen = gx_t + gh if self.cell.additive else gh
            else:  # gx_t is the number of the step
                seen = gh = sums(carry[0], gx_t)
                gx_t = jnp.zeros_like(gh)
            m, *rest = cells.advance(self.cell, weights.cell, carry, gx_t, gh)
            h = m if weights.hr is None else self._project(m, weights.hr, None, dtype)
            new = hold(mask_t, (h, *rest), carry)
            return new, (new[0], (carry, seen) if save else ())

        if sums is not None:
            last, (hs, saved) = self._scan_into(step, carry, (jnp.arange(x.shape[0]), mask))
        else:
            scan = self._scan_ahead if _fetches_ahead(self.cell, gx) else self._scan
            last, (hs, saved) = scan(step, carry, (gx, mask))
        if save:
            carries, seen = saved
            saved = Saved(carries, seen, None if self.cell.additive else gx)
        return silence(mask, hs), last, saved, ()

    def _project_tangent(self, x: Array, weight: Array, bias: Array | None, dtype: Any) -> Array:
        """`_project` with the tangent of a weight: its transpose sums the weight's gradient."""
        return blocks.project(x, weight, bias, dtype, self.precision)

    def push(self, fixed: Fixed, operands: Operands) -> Tangents:
        dys, dlast, _ = self.push_saving(fixed, operands, save=False)
        return dys, dlast

    def push_saving(
        self, fixed: Fixed, operands: Operands, *, save: bool
    ) -> tuple[Array, Carry, Any]:
        weights, x, _, mask, _, (carries, gh, gx) = fixed
        dweights, dx, dcarry = operands
        dtype = gh.dtype
        dgx = self._inputs(weights, dweights, x, dx, dtype)
        e = f = None
        moved: list[Array] = []
        if dweights is not None:
            moved = dweights.cell
            e = self._product(carries[0], weights, dweights, dtype)
            if weights.hr is not None:
                run = partial(cells.advance, self.cell, weights.cell)
                m = jax.vmap(run)(carries, _or_zeros(gx, gh), gh)[0]
                f = (
                    None
                    if dweights.hr is None
                    else self._project_tangent(m, dweights.hr, None, dtype)
                )
        whole_dgx = dgx  # the tangent of the saved gx
        if self.cell.additive:
            e, dgx = self._sum(e, dgx), None
        floats, rebuild = rule.split(weights)
        first = len(floats) - len(moved)
        project = None
        if weights.hh is not None:
            project = projections.of_state(weights, x, dcarry, self.precision)

        # Without the checkpoint, reverse mode would stack every intermediate of the cell.
        @partial(jax.checkpoint, prevent_cse=False)
        def step(dcarry: Carry, inputs: Any):
            carry_t, gh_t, gx_t, mask_t, dgx_t, e_t, f_t = inputs
            dcarry = restart(mask_t, dcarry, None if dweights is None else dweights.initial)
            dh = dcarry[0] if weights.mask is None else dcarry[0] * weights.mask
            dgh = None if project is None else project(dh)
            dgh = _or_zeros(self._sum(e_t, dgh), gh_t)

            def run(own: list[Array], carry: Carry, gx: Array, gh: Array) -> Carry:
                params = rebuild([*floats[:first], *own]).cell if own else weights.cell
                return cells.advance(self.cell, params, carry, gx, gh)

            at = (floats[first:], carry_t, _or_zeros(gx_t, gh_t), gh_t)
            along = (moved, dcarry, _or_zeros(dgx_t, at[2]), dgh)
            _, (dm, *rest) = jax.jvp(run, at, along)
            dh = dm
            if weights.hr is not None:
                dh = self._project(dm, weights.hr, None, dtype)
                dh = dh if f_t is None else f_t + dh
            new = hold(mask_t, (dh, *rest), dcarry)
            return new, (new[0], (dcarry, dgh) if save else ())

        inputs = (carries, gh, gx, mask, dgx, e, f)
        dlast, (dhs, dsaved) = self._scan(step, dcarry, inputs)
        if save:
            dcarries, dgh = dsaved
            dsaved = Saved(dcarries, dgh, None if self.cell.additive else _or_zeros(whole_dgx, gx))
        return silence(mask, dhs), dlast, dsaved

    def _recurrent(self, weights: Weights, x: Array, carry: Carry) -> Any:
        """(h, gx) -> gh."""
        bias = weights.b_hh
        if weights.hh is None:
            return partial(cells.recurrent_input, weights)
        project = projections.of_state(weights, x, carry, self.precision)

        def run(h: Array, gx: Array) -> Array:
            gh = project(h if weights.mask is None else h * weights.mask)
            return gh if bias is None else gh + jnp.broadcast_to(bias.astype(gx.dtype), gh.shape)

        return run

    def _inputs(
        self, weights: Weights, dweights: Weights | None, x: Array, dx: Array | None, dtype: Any
    ) -> Array | None:
        """dW_ih x + db_ih + W_ih dx, and after it the tangents of what the cell gets as it is."""
        inputs = weights.ih.shape[1]
        part = None
        if dweights is not None:
            part = self._project_tangent(x[..., :inputs], dweights.ih, dweights.b_ih, dtype)
            spare = x.shape[-1] - inputs
            if spare:
                part = jnp.pad(part, ((0, 0), (0, 0), (0, spare)))
        if dx is None:
            return part
        return self._sum(
            part, cells.project_inputs(weights._replace(b_ih=None), dx, dtype, self.precision)
        )

    def _product(self, h: Array, weights: Weights, dweights: Weights, dtype: Any) -> Array | None:
        """dW_hh (m h) + db_hh + W_hh (dm h), for all steps at once; m is the mask, or absent."""
        if dweights.hh is not None and weights.mask is not None:
            assert weights.hh is not None
            assert dweights.mask is not None
            seen = h * jnp.broadcast_to(weights.mask, h.shape)
            moved = h * jnp.broadcast_to(dweights.mask, h.shape)
            e = self._project_tangent(seen, dweights.hh, dweights.b_hh, dtype)
            return e + self._project(moved, weights.hh, None, dtype)
        if dweights.hh is not None:
            return self._project_tangent(h, dweights.hh, dweights.b_hh, dtype)
        if dweights.b_hh is None:
            return None
        bias = dweights.b_hh.astype(dtype)
        return jnp.broadcast_to(bias, (*h.shape[:-1], bias.shape[0]))

    @staticmethod
    def _sum(a: Array | None, b: Array | None) -> Array | None:
        return b if a is None else a if b is None else a + b


def _fetches_ahead(cell: Cell, gx: Array) -> bool:
    """True where `_scan_ahead` is faster: on a CPU, for cells that split the projections."""
    is_known = isinstance(gx.shape[0], int) and gx.shape[0] > 1
    return is_known and cell.gates > 1 and jax.default_backend() == "cpu"


def _or_zeros(x: Array | None, like: Array) -> Array:
    return jnp.zeros_like(like) if x is None else x
