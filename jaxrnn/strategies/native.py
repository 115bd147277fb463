"""A kernel for the whole sequence: C++ on a CPU, CUDA on an NVIDIA GPU.

Forward and backward are one call each (`jaxrnn/native`). Between them stand the gates of every step
(4 H numbers a step for LSTM and GRU, and the LSTM's c): the backward pass reads them and overwrites
them with the projections' cotangents. With `proj_size` it also overwrites c with o tanh(c), and the
cotangents of the outputs with those of h: the gradient of W_hr is a product of the two.

Under `vmap` over inputs the kernel runs once with more rows, and over stacked weights, on a CPU,
once for each member. What it does not serve runs on `Scan`, with the same numbers to rounding:
forward mode, the second derivative, `jax.export`, and every platform without a kernel.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxrnn import cells, native, rows
from jaxrnn.cells import Carry, Cell, Weights
from jaxrnn.checks import InputError
from jaxrnn.derivative import linear_map, rule
from jaxrnn.derivative.rule import Fixed, Operands, Recurrence, Tangents
from jaxrnn.native import primitive
from jaxrnn.native.cuda import calls
from jaxrnn.strategies.base import Base, Capabilities, require
from jaxrnn.strategies.scan import ScanRecurrence, steps_per_iteration

CELLS = (cells.rnn_tanh, cells.rnn_relu, cells.lstm, cells.gru)
"""The cells that the kernel knows, in the order in which it numbers them."""

CAPABILITIES = Capabilities(
    cells=CELLS,
    projections=(cells.lstm,),
    parameters=False,
    recurrent_dropout=False,
    dtypes=("float32", "float64"),
    narrow=("bfloat16",),
    side_by_side=256,
    units_side_by_side=32_768,
)
ON_GPU = CAPABILITIES._replace(dtypes=None, projections=())
"""`refusal` judges the dtypes itself: bfloat16 multiplies, float32 sums, float64 is `Scan`'s."""


@dataclasses.dataclass(frozen=True)
class Native(Base):
    """A kernel for the whole sequence, C++ on a CPU and CUDA on an NVIDIA GPU; elsewhere `Scan`.

    Weights in bfloat16 and a carry in float32: with AVX-512 BF16 the products are of values rounded
    to bfloat16, states too, and their sums float32. On other CPUs, and with a projection, weights
    and rounded inputs are multiplied in float32 with states that are not rounded. On a GPU products
    follow JAX's precision: TF32 for float32 by default, float32 itself at `precision="highest"`,
    bfloat16 for `dtype=bfloat16`. Float64 and single steps run there as `Scan`.

    Args:
        build: the instruction set, "avx512", "avx2" or "portable"; None takes the best that this
            machine has.
        products: "bfloat16" rounds weights, inputs and states in float32 for the products, on a CPU
            with AVX-512 BF16. It saves the conversions that weights in bfloat16 cost.

    Raises:
        InputError: the kernel is not installed, the machine lacks the instructions, or the cell,
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
    products: str | None = None

    def __post_init__(self) -> None:
        builds = native.load()
        if self.products not in (None, "bfloat16"):
            raise InputError(
                f"strategies.Native takes products=None or 'bfloat16', not {self.products!r}."
            )
        if self.products and not (on_cpu() and native.multiplies_bfloat16(self.build)):
            raise InputError(
                "strategies.Native(products='bfloat16') needs a CPU with AVX-512 BF16 and a kernel "
                "built by a compiler that knows it."
            )
        if self.build is not None and builds and self.build not in builds:
            raise InputError(
                f"strategies.Native has no build {self.build!r} for this machine, "
                f"only {', '.join(builds)}."
            )

    @property
    def capabilities(self) -> Capabilities:
        return ON_GPU if jax.default_backend() == "gpu" else CAPABILITIES

    def refusal(self, cell: Cell, weights: Weights, x: Array, carry: Carry) -> str:
        if not native.load():
            return (
                "strategies.Native needs jaxrnn's CPU kernel, and this installation has none: "
                "with a C++17 compiler, `pip install --force-reinstall --no-deps .` in a clone of "
                "jaxrnn builds it."
            )
        why = super().refusal(cell, weights, x, carry)
        # A symbolic size is exported.
        steps = [size for size in x.shape[:2] if isinstance(size, int)]
        if not why and jax.default_backend() == "gpu" and carry[0].dtype != jnp.float64:
            lacks = calls.refusal(CELLS.index(cell), weights, x, carry)
            why = lacks and f"strategies.Native cannot run here: {lacks}."
        if not why and self.products and (weights.hr is not None or carry[0].dtype != jnp.float32):
            why = "strategies.Native(products='bfloat16') takes float32 and no projection."
        if not why and math.prod(steps) >= rows.MOST:
            why = f"strategies.Native takes T * B below 2**31, got {x.shape[:2]}."
        return why

    def recurrence(
        self, cell: Cell, weights: Weights, x: Array, carry: Carry, **options: Any
    ) -> Recurrence:
        require(self, cell, weights, x, carry)
        build = 0 if self.build is None else native.load().index(self.build)
        low = on_cpu() and weights.ih.dtype != carry[0].dtype
        rounds = low and weights.hr is None and native.multiplies_bfloat16(self.build)
        narrow = rounds or self.products is not None
        return NativeRecurrence(cell, build, low and not narrow, narrow, **options)


def on_cpu() -> bool:
    return jax.default_backend() == "cpu"


class Saved(NamedTuple):
    """Saved for the backward pass by the forward pass; empty arrays where a cell has none."""

    gates: Any
    cs: Any


@dataclasses.dataclass(frozen=True)
class NativeRecurrence(Recurrence):
    cell: Cell
    build: int
    widens: bool = False
    """Products of arguments in bfloat16 are computed in float32."""
    narrow: bool = False
    """Products of bfloat16 or float32 are of values rounded to bfloat16 on a CPU, states too."""
    precision: lax.PrecisionLike = None
    reverse: bool = False
    local = True

    def attributes(self) -> dict[str, Any]:
        numbers = {"cell": CELLS.index(self.cell), "build": self.build}
        flags = {"reverse": self.reverse, "narrow": self.narrow}
        return {k: np.int32(v) for k, v in numbers.items()} | flags

    def plain(
        self, weights: Weights, x: Array, carry: Carry, mask: Array | None
    ) -> tuple[Array, Carry]:
        unroll = steps_per_iteration()
        scan = ScanRecurrence(self.cell, unroll, self.precision, self.reverse)
        weights, x = self.convert(weights, x)
        if self.narrow:
            ih, hh, x = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (weights.ih, weights.hh, x))
            weights = weights._replace(ih=ih, hh=hh)
        return scan.plain(weights, x, carry, mask)

    def convert(self, weights: Weights, x: Array) -> tuple[Weights, Array]:
        """The weights and x in the dtype of the products; x is first rounded to the weights'.

        With `narrow` the kernel rounds both.
        """
        if self.narrow:
            return weights, x
        x = x.astype(weights.ih.dtype)
        if not self.widens:
            return weights, x
        return jax.tree.map(lambda w: w.astype(jnp.float32), weights), x.astype(jnp.float32)

    def run(
        self, weights: Weights, x: Array, carry: Carry, mask: Array | None, *, save: bool
    ) -> tuple[Array, Carry, Any, Any]:
        weights, x = self.convert(weights, x)
        ys, last, saved = forward(ForwardCall(self, save), weights, x, carry, mask)
        return ys, last, saved if save else (), ()

    def pull(self, fixed: Fixed, like: Any, cotangents: Tangents) -> Operands:
        weights, x, *rest = fixed
        call = AdjointCall(self, with_dx=like[1] is not None, with_weights=like[0] is not None)
        dweights, dx, dcarry = adjoint(call, (*self.convert(weights, x), *rest), cotangents)
        if self.widens and dweights is not None:
            dweights = jax.tree.map(lambda d, w: d.astype(w.dtype), dweights, like[0])
        return dweights, None if dx is None else dx.astype(x.dtype), dcarry


class ForwardCall(NamedTuple):
    kernel: NativeRecurrence
    save: bool


class AdjointCall(NamedTuple):
    """Cotangents of the carry are always computed, the others if asked for, or else None."""

    kernel: NativeRecurrence
    with_dx: bool
    with_weights: bool = True


def _empty(dtype: Any) -> Array:
    return jnp.zeros((0,), dtype)


def _like(a: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(a.shape, a.dtype)


def _widened(weights: Weights, x: Array, dtype: Any) -> tuple[Weights, Array]:
    """Operands in the dtype of the CPU kernel's arrays; with `narrow` it rounds them again."""
    return jax.tree.map(lambda w: w.astype(dtype), (weights, x))


def _saved_shapes(call: ForwardCall, x: Any, carry: Any) -> Saved:
    dtype, cell = carry[0].dtype, call.kernel.cell
    (steps, batch, _), hidden = x.shape, carry[-1].shape[-1]
    gates = (steps, batch, 4 * hidden) if cell.gates > 1 else (0,)
    cs = (steps, batch, hidden) if cell.states > 1 else (0,)
    if not call.save:
        gates = cs = (0,)
    products = dtype if call.kernel.narrow else x.dtype
    return Saved(jax.ShapeDtypeStruct(gates, products), jax.ShapeDtypeStruct(cs, dtype))


def _forward_plain(call: ForwardCall, weights: Weights, x: Array, carry: Carry, mask: Array | None):
    ys, last = call.kernel.plain(weights, x, carry, mask)
    saved = _saved_shapes(call, x, carry)
    return ys, last, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), saved)


def _forward_on_cpu(
    call: ForwardCall, weights: Weights, x: Array, carry: Carry, mask: Array | None
):
    h, *c = carry
    weights, x = _widened(weights, x, h.dtype)
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
        absent if weights.hr is None else weights.hr,
        h,
        c0,
        _empty(bool) if mask is None else mask,
        *(weights.initial or ()),
        **call.kernel.attributes(),
    )
    return ys, (h_last, c_last) if c else (h_last,), Saved(gates, cs)


def _adjoint_plain(call: AdjointCall, fixed: Any, cotangents: Any):
    weights, x, carry, _, _, _ = fixed
    like = (
        weights._replace(cell=[]) if call.with_weights else None,
        x if call.with_dx else None,
        carry,
    )
    push = rule.TangentMap(call.kernel).plain
    return linear_map.transpose(lambda operands: push(fixed, operands), like, cotangents)


def _adjoint_on_cpu(call: AdjointCall, fixed: Any, cotangents: Any):
    given, given_x, (h, *c), mask, ys, saved = fixed
    weights, x = _widened(given, given_x, h.dtype)
    d_ys, (d_h, *d_c) = cotangents
    absent = _empty(h.dtype)
    c0 = c[0] if c else absent
    has_gates, projects = saved.gates.size > 0, weights.hr is not None
    wanted = [None if w is None or not call.with_weights else _like(w) for w in weights[:5]]
    run = jax.ffi.ffi_call(
        native.ADJOINT,
        (
            _like(saved.gates if has_gates else ys),
            _like(saved.cs if projects else absent),
            _like(d_ys if projects else absent),
            _like(x if call.with_dx else absent),
            *(w or _like(absent) for w in wanted),
            _like(h),
            _like(c0),
            *map(_like, weights.initial or ()),
        ),
        # In the place of the gates the kernel leaves the cotangents of the projections.
        input_output_aliases=({9: 0} if has_gates else {}) | ({8: 1, 10: 2} if projects else {}),
    )
    results = run(
        x,
        weights.ih,
        weights.hh,
        absent if weights.hr is None else weights.hr,
        h,
        c0,
        _empty(bool) if mask is None else mask,
        ys,
        saved.cs,
        saved.gates,
        d_ys,
        d_h,
        d_c[0] if d_c else absent,
        *(weights.initial or ()),
        **call.kernel.attributes(),
    )
    dx, *dweights = results[3:9]
    dh0, dc0, *d_initial = results[9:]
    gradients: list[Any] = [
        d.astype(w.dtype) if w is not None and call.with_weights else None
        for d, w in zip(dweights, given[:5], strict=True)
    ]
    initial = None if weights.initial is None else tuple(d_initial)
    return (
        Weights(*gradients)._replace(initial=initial, cell=[]) if call.with_weights else None,
        dx.astype(given_x.dtype) if call.with_dx else None,
        (dh0, dc0) if c else (dh0,),
    )


def _direction(kernel: NativeRecurrence) -> calls.Direction:
    return calls.Direction(kernel.cell, CELLS.index(kernel.cell), kernel.precision, kernel.reverse)


def _served_on_cuda(kernel: NativeRecurrence, weights: Weights, x: Any, carry: Any) -> bool:
    """Batches without rows have no kernel; a single step costs less without."""
    steps, batch, _ = x.shape
    refused = calls.refusal(CELLS.index(kernel.cell), weights, x, carry)
    runs = steps > 1 and batch > 0 and weights.hr is None and not refused
    return runs and not kernel.narrow  # chosen for a CPU


def _serves_forward(call: ForwardCall, weights: Weights, x: Any, carry: Any, _: Any) -> bool:
    return _served_on_cuda(call.kernel, weights, x, carry)


def _serves_adjoint(call: AdjointCall, fixed: Any, _: Any) -> bool:
    return _served_on_cuda(call.kernel, *fixed[:3])


def _fits_forward(call: ForwardCall, _: Weights, x: Any, carry: Any, mask: Any) -> bool:
    """False for bfloat16 where the default backend is a GPU, for which nothing was converted."""
    return call.kernel.narrow or x.dtype == carry[0].dtype


def _fits_adjoint(call: AdjointCall, fixed: Any, _: Any) -> bool:
    return call.kernel.narrow or fixed[1].dtype == fixed[2][0].dtype


def _faster_for_each(x: Any, carry: Any) -> bool:
    """One row of many units waits for its threads at each step."""
    return x.shape[1] > 1 or carry[-1].shape[-1] <= 64


def _serves_each_forward(call: ForwardCall, weights: Weights, x: Any, carry: Any, _: Any) -> bool:
    return _faster_for_each(x, carry)


def _serves_each_adjoint(call: AdjointCall, fixed: Any, _: Any) -> bool:
    return _faster_for_each(*fixed[1:3])


def _forward_on_cuda(
    call: ForwardCall, weights: Weights, x: Array, carry: Carry, mask: Array | None
):
    ys, last, gates, cs = calls.forward(_direction(call.kernel), call.save, weights, x, carry, mask)
    return ys, last, Saved(gates, cs)


def _adjoint_on_cuda(call: AdjointCall, fixed: Any, cotangents: Any):
    weights, x, carry, mask, ys, saved = fixed
    dweights, dx, dcarry = calls.adjoint(
        _direction(call.kernel),
        (weights, x, carry, mask, ys, *saved),
        cotangents,
        with_dx=call.with_dx,
        with_weights=call.with_weights,
    )
    return None if dweights is None else dweights._replace(cell=[]), dx, dcarry


def _forward_rows(call: ForwardCall, weights: Weights, x: Any, carry: Any, mask: Any) -> Any:
    saved = rows.axis_of(1, _saved_shapes(call, x, carry))
    return rows.of_arguments(weights, x, carry, mask), (rows.of_results(x, carry), saved)


def _adjoint_rows(call: AdjointCall, fixed: Any, cotangents: Any) -> Any:
    weights, x, carry, *_ = fixed
    dweights = weights._replace(cell=[]) if call.with_weights else None
    found = rows.of_cotangents(dweights, x if call.with_dx else None, carry)
    return (rows.of_arguments(*fixed), rows.of_results(*cotangents)), found


forward = primitive.make_primitive(
    "jaxrnn_forward",
    _forward_plain,
    {
        "cpu": primitive.Kernel(_forward_on_cpu, _fits_forward, _serves_each_forward),
        "cuda": primitive.Kernel(_forward_on_cuda, _serves_forward),
    },
    _forward_rows,
)
adjoint = primitive.make_primitive(
    "jaxrnn_adjoint",
    _adjoint_plain,
    {
        "cpu": primitive.Kernel(_adjoint_on_cpu, _fits_adjoint, _serves_each_adjoint),
        "cuda": primitive.Kernel(_adjoint_on_cuda, _serves_adjoint),
    },
    _adjoint_rows,
)
