"""A CPU kernel for the whole sequence, under the derivative rule of `Scan`.

Forward and backward are one call each into C++ (`jaxrnn/native`). Between them stand the gates of
every step (4 H numbers a step for LSTM and GRU, and the LSTM's c), from which the adjoint of the
recurrence is computed and in whose place it leaves the cotangents of the projections.

What the kernel does not serve runs on `Scan`, with the same numbers to rounding: forward mode, the
second derivative, `vmap`, `jax.export`, arrays whose types say that several devices share them, and
every platform that is not a CPU.
"""

import dataclasses
import math
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir
from jaxtyping import Bool, Float

from jaxrnn import cells, native
from jaxrnn.cells import Carry, Cell, Weights
from jaxrnn.checks import InputError
from jaxrnn.strategies import devices, linear
from jaxrnn.strategies.compiled import compiled
from jaxrnn.strategies.scan import Scan

CELLS = (cells.rnn_tanh, cells.rnn_relu, cells.lstm, cells.gru)
"""The cells that the kernel knows, in the order in which it numbers them."""


def refusal(cell: Cell, weights: Weights, x: Array, carry: Carry) -> str:
    """Why the kernel cannot run this, in one sentence; empty if it can."""
    if not native.load():
        return (
            "strategies.Native needs jaxrnn's CPU kernel, and this installation has none: "
            "with a C++17 compiler at hand, `pip install --force-reinstall --no-deps` of "
            "jaxrnn's sources builds it."
        )
    if cell not in CELLS:
        names = ", ".join(c.name for c in CELLS)
        return f"strategies.Native runs {names}, not {cell.name}; strategies.Scan runs every cell."
    if weights.hr is not None:
        return "strategies.Native has no projections (proj_size > 0); strategies.Scan has."
    dtypes = {a.dtype for a in (*jax.tree.leaves(weights), *carry)}
    if dtypes not in ({jnp.dtype("float32")}, {jnp.dtype("float64")}):
        found = ", ".join(sorted(str(d) for d in dtypes))
        return f"strategies.Native computes in float32 or in float64, not in {found}."
    steps = [size for size in x.shape[:2] if isinstance(size, int)]  # a symbolic one is exported
    if math.prod(steps) >= 2**31:
        return f"strategies.Native takes T * B below 2**31, got {x.shape[:2]}."
    return ""


@dataclasses.dataclass(frozen=True)
class Native:
    """A C++ kernel on the CPU; elsewhere, and where the kernel cannot serve, `Scan`.

    Args:
        build: the instruction set, "avx512", "avx2" or "portable"; None takes the best that this
            machine has.

    Raises:
        InputError: the kernel is not installed, the machine lacks the instruction set, or the cell,
            the projection or the dtype is none of the kernel's.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn import cells, native, strategies
        >>> weights = cells.Weights(ih=jnp.ones((4, 3)), hh=jnp.eye(4))
        >>> arguments = cells.rnn_tanh, weights, jnp.ones((5, 2, 3)), (jnp.zeros((2, 4)),)
        >>> fast = strategies.Native() if native.load() else strategies.Scan()
        >>> ys, last = fast(*arguments)
        >>> bool(jnp.allclose(ys, strategies.Scan()(*arguments)[0]))
        True
    """

    build: str | None = None
    _reverse: ClassVar[bool] = False

    def __post_init__(self) -> None:
        builds = native.load()
        if self.build is not None and builds and self.build not in builds:
            raise InputError(
                f"strategies.Native has no build {self.build!r} for this machine, "
                f"only {', '.join(builds)}."
            )

    def reversed(self) -> "Native":
        """The same from the last step to the first."""
        return _Reversed(self.build)

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
        call = self.call(cell, weights, x, carry, precision)
        x, mask = x.astype(weights.ih.dtype), None if mask is None else mask.astype(bool)
        if devices.spread(weights, x, carry, mask):
            return call.plain(weights, x, carry, mask)
        ys, last, _ = _recurrence(call, weights, x, carry, mask)
        return ys, last

    def call(
        self, cell: Cell, weights: Weights, x: Array, carry: Carry, precision: lax.PrecisionLike
    ) -> "Call":
        """What the kernel is to run. Raises InputError if it cannot."""
        why = refusal(cell, weights, x, carry)
        if why:
            raise InputError(why)
        build = 0 if self.build is None else native.load().index(self.build)
        return Call(cell, build, precision, self._reverse)


@dataclasses.dataclass(frozen=True, repr=False)
class _Reversed(Native):
    _reverse: ClassVar[bool] = True

    def reversed(self) -> Native:
        return Native(self.build)

    def __repr__(self) -> str:
        return f"{self.reversed()}.reversed()"


class Call(NamedTuple):
    cell: Cell
    build: int
    precision: lax.PrecisionLike
    reverse: bool = False
    save: bool = False

    def attributes(self) -> dict[str, Any]:
        numbers = {"cell": CELLS.index(self.cell), "build": self.build}
        return {k: np.int32(v) for k, v in numbers.items()} | {"reverse": self.reverse}

    def plain(self, weights: Weights, x: Array, carry: Carry, mask: Array | None):
        """The same recurrence by operations that JAX can differentiate, batch and export."""

        def turn(a: Array) -> Array:
            return lax.rev(a, (0,)) if self.reverse else a

        mask = None if mask is None else turn(mask)
        ys, last = Scan()(self.cell, weights, turn(x), carry, mask, precision=self.precision)
        return turn(ys), last


class Saved(NamedTuple):
    """What the adjoint takes over from the forward pass; empty arrays where a cell has none."""

    gates: Any
    cs: Any


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _recurrence(call: Call, weights: Weights, x: Array, carry: Carry, mask: Array | None):
    """(ys, last carry, what was saved)."""
    return forward(call, weights, x, carry, mask)


@partial(_recurrence.defjvp, symbolic_zeros=True)
def _recurrence_jvp(call: Call, primals: Any, tangents: Any):
    weights, x, carry, mask = primals
    dweights, dx, dcarry, _ = tangents
    # The rule applies to this call too, so derivatives of any order meet the rule again.
    ys, last, saved = _recurrence(call._replace(save=True), *primals)
    constant = isinstance(dx, SymbolicZero)  # then its cotangent is not computed either
    operands = materialise((dweights, None if constant else dx, dcarry))
    dys, dlast = linear.apply(_Tangent(call), (weights, x, carry, mask, ys, saved), operands)
    out = (ys, last, saved if call.save else _saved_like(call, x, carry))
    return out, (dys, dlast, jax.tree.map(jnp.zeros_like, out[2]))


def materialise(tree: Any) -> Any:
    is_zero = lambda t: isinstance(t, SymbolicZero)  # noqa: E731
    return jax.tree.map(
        lambda t: jnp.zeros(t.shape, t.dtype) if is_zero(t) else t, tree, is_leaf=is_zero
    )


@dataclasses.dataclass(frozen=True)
class _Tangent(linear.LinearMap):
    """The tangent recurrence, as `Scan` would run it; its adjoint is the kernel's.

    What the forward pass saved is a function of the other fixed arrays, so the plain way neither
    needs it nor has a derivative along it.
    """

    call: Call

    def plain(self, fixed: Any, operands: Any) -> Any:
        weights, x, carry, mask, _, _ = fixed
        dweights, dx, dcarry = operands
        dx = jnp.zeros_like(x) if dx is None else dx
        run = lambda weights, x, carry: self.call.plain(weights, x, carry, mask)  # noqa: E731
        return jax.jvp(run, (weights, x, carry), (dweights, dx, dcarry))[1]

    def adjoint(self, fixed: Any, like: Any, cotangents: Any) -> Any:
        call = AdjointCall(self.call, like[1] is not None)
        return adjoint(call, fixed, cotangents)

    def in_vmap(self) -> linear.LinearMap:
        return _PlainTangent(self.call)


class _PlainTangent(_Tangent):
    def adjoint(self, fixed: Any, like: Any, cotangents: Any) -> Any:
        return self.transposed(fixed, like, cotangents)


# --------------------------------------------------------------------------------------------------
# The kernel's two calls, as primitives
# --------------------------------------------------------------------------------------------------


def _empty(dtype: Any) -> Array:
    return jnp.zeros((0,), dtype)


def _like(a: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(a.shape, a.dtype)


def _saved_shapes(call: Call, x: Array, carry: Carry) -> Saved:
    dtype = carry[0].dtype
    (steps, batch, _), hidden = x.shape, carry[0].shape[-1]
    gates = (steps, batch, 4 * hidden) if call.cell.gates > 1 else (0,)
    cs = (steps, batch, hidden) if call.cell.states > 1 else (0,)
    if not call.save:
        gates = cs = (0,)
    return Saved(jax.ShapeDtypeStruct(gates, dtype), jax.ShapeDtypeStruct(cs, dtype))


def _saved_like(call: Call, x: Array, carry: Carry) -> Saved:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), _saved_shapes(call, x, carry))


def _forward_plain(call: Call, weights: Weights, x: Array, carry: Carry, mask: Array | None):
    ys, last = call.plain(weights, x, carry, mask)
    return ys, last, _saved_like(call, x, carry)


def _forward_kernel(call: Call, weights: Weights, x: Array, carry: Carry, mask: Array | None):
    h, *c = carry
    absent = _empty(h.dtype)
    c0 = c[0] if c else absent
    outputs = jax.ShapeDtypeStruct((*x.shape[:2], h.shape[-1]), h.dtype)
    run = jax.ffi.ffi_call(
        native.FORWARD, (outputs, _like(h), _like(c0), *_saved_shapes(call, x, carry))
    )
    ys, h_last, c_last, gates, cs = run(
        x,
        weights.ih,
        weights.hh,
        absent if weights.b_ih is None else weights.b_ih,
        absent if weights.b_hh is None else weights.b_hh,
        h,
        c0,
        _empty(bool) if mask is None else mask,
        **call.attributes(),
    )
    return ys, (h_last, c_last) if c else (h_last,), Saved(gates, cs)


class AdjointCall(NamedTuple):
    """Cotangents of the carry are always computed, the others if asked for, or else None."""

    call: Call
    with_dx: bool
    with_weights: bool = True


def _adjoint_plain(call: AdjointCall, fixed: Any, cotangents: Any):
    weights, x, carry, _, _, _ = fixed
    like = (weights, x if call.with_dx else None, carry)
    dweights, dx, dcarry = _Tangent(call.call).transposed(fixed, like, cotangents)
    return dweights if call.with_weights else None, dx, dcarry


def _adjoint_kernel(call: AdjointCall, fixed: Any, cotangents: Any):
    weights, x, (h, *c), mask, ys, saved = fixed
    d_ys, (d_h, *d_c) = cotangents
    absent = _empty(h.dtype)
    c0 = c[0] if c else absent
    has_gates = saved.gates.size > 0
    wanted = [None if w is None or not call.with_weights else _like(w) for w in weights[:4]]
    run = jax.ffi.ffi_call(
        native.ADJOINT,
        (
            _like(saved.gates if has_gates else ys),
            _like(x if call.with_dx else absent),
            *(w or _like(absent) for w in wanted),
            _like(h),
            _like(c0),
        ),
        # In the place of the gates the kernel leaves the cotangents of the projections.
        input_output_aliases={8: 0} if has_gates else None,
    )
    _, dx, *dweights, dh0, dc0 = run(
        x,
        weights.ih,
        weights.hh,
        h,
        c0,
        _empty(bool) if mask is None else mask,
        ys,
        saved.cs,
        saved.gates,
        d_ys,
        d_h,
        d_c[0] if d_c else absent,
        **call.call.attributes(),
    )
    gradients: list[Any] = [d if w else None for d, w in zip(dweights, wanted, strict=True)]
    return (
        Weights(*gradients) if call.with_weights else None,
        dx if call.with_dx else None,
        (dh0, dc0) if c else (dh0,),
    )


def _primitive(name: str, plain: Any, kernel: Any) -> Any:
    """f(call, *arguments): `kernel` on a CPU; `plain` elsewhere, under vmap, and when exported."""

    def flat(run: Any) -> Any:
        def flattened(*leaves: Array, call: Any, structure: Any) -> list[Array]:
            return jax.tree.leaves(run(call, *jax.tree.unflatten(structure, leaves)))

        return flattened

    def abstract(*leaves: Any, **options: Any) -> list[Any]:
        out = jax.eval_shape(partial(flat(plain), **options), *map(_like, leaves))
        return [jax.core.ShapedArray(o.shape, o.dtype) for o in out]

    def batch(arguments: Any, axes: Any, **options: Any) -> tuple[list[Array], list[int]]:
        out = jax.vmap(partial(flat(plain), **options), in_axes=tuple(axes))(*arguments)
        return out, [0] * len(out)

    def lower_on_cpu(context: Any, *arguments: Any, **options: Any) -> Any:
        exported = context.module_context.lowering_parameters.for_export
        return (lower_plain if exported else lower_kernel)(context, *arguments, **options)

    def call_primitive(call: Any, *arguments: Any) -> Any:
        leaves, structure = jax.tree.flatten(arguments)
        results = primitive.bind(*leaves, call=call, structure=structure)
        shapes = jax.eval_shape(partial(plain, call), *arguments)
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    primitive = Primitive(name)
    primitive.multiple_results = True
    lower_plain = mlir.lower_fun(flat(plain), multiple_results=True)
    lower_kernel = mlir.lower_fun(flat(kernel), multiple_results=True)
    primitive.def_abstract_eval(abstract)
    jitted = jax.jit(primitive.bind, static_argnames=("call", "structure"))

    def impl(*leaves: Array, **options: Any) -> list[Array]:
        with jax.disable_jit(False):  # or it would come back here
            return jitted(*leaves, **options)

    primitive.def_impl(impl)
    mlir.register_lowering(primitive, lower_plain)
    mlir.register_lowering(primitive, lower_on_cpu, platform="cpu")
    batching.primitive_batchers[primitive] = batch
    return call_primitive


forward = _primitive("jaxrnn_forward", _forward_plain, _forward_kernel)
adjoint = _primitive("jaxrnn_adjoint", _adjoint_plain, _adjoint_kernel)
