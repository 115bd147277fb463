"""Products of rows by the CPU kernel, for loops whose other parts XLA compiles.

XLA's own product arranges the weight anew at every step. Here `pack` arranges it once, before the
loop, and `multiply` multiplies at each step. Elsewhere than on a CPU, and in exported programs,
`multiply` is a product of XLA.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxrnn import native
from jaxrnn.native import primitive
from jaxrnn.rows import NO_ROWS

LEAST = 2**15
"""Multiplications of a product from which the kernel is faster than XLA on a CPU."""


def is_faster(weight: Array, rows: int) -> bool:
    """True if the kernel multiplies rows with a weight faster than XLA, on one CPU device."""
    if jax.default_backend() != "cpu" or jax.device_count() > 1 or not native.load():
        return False
    if weight.dtype not in (jnp.float32, jnp.float64):
        return False
    known = all(isinstance(size, int) for size in weight.shape)
    return known and rows > 1 and rows * weight.size >= LEAST


class Packing(NamedTuple):
    transposed: bool
    """The packed weight is the transpose of the one that is given."""


def _packed(call: Packing, weight: Any) -> jax.ShapeDtypeStruct:
    depth, columns = weight.shape[::-1] if call.transposed else weight.shape
    return jax.ShapeDtypeStruct((depth * (-(-columns // 64) * 64),), weight.dtype)


def _pack_plain(call: Packing, weight: Array) -> Array:
    packed = _packed(call, weight)
    return jnp.zeros(packed.shape, packed.dtype)


def _pack_on_cpu(call: Packing, weight: Array) -> Array:
    run = jax.ffi.ffi_call(native.PACK, _packed(call, weight))
    return run(weight, build=np.int32(0), transposed=call.transposed)


class Step(NamedTuple):
    """Step t of a sequence x (T, B, I), and the weight (I, N) to multiply it with, also packed."""

    x: Any
    t: Any
    weight: Any
    packed: Any


def plain(
    precision: lax.PrecisionLike,
    rows: Array,
    weight: Array,
    packed: Any = None,
    bias: Array | None = None,
    step: Step | None = None,
) -> Array:
    """`multiply` as operations of JAX; the kernel always multiplies at full precision."""

    def product(rows: Array, weight: Array) -> Array:
        dims, dtype = (((1,), (0,)), ((), ())), rows.dtype
        return lax.dot_general(
            rows, weight, dims, precision=precision, preferred_element_type=dtype
        )

    y = product(rows, weight)
    if bias is not None:
        y = y + jnp.broadcast_to(bias, y.shape)
    if step is None:
        return y
    return y + product(lax.dynamic_index_in_dim(step.x, step.t, keepdims=False), step.weight)


def _multiply_on_cpu(
    _: Any,
    rows: Array,
    weight: Array,
    packed: Array,
    bias: Array | None = None,
    step: Step | None = None,
) -> Array:
    like = jax.ShapeDtypeStruct((rows.shape[0], weight.shape[1]), rows.dtype)
    absent = jnp.zeros((0,), rows.dtype)
    bias = absent if bias is None else bias
    x, t, _, x_packed = step or Step(absent, jnp.zeros((), jnp.int32), absent, absent)
    run = jax.ffi.ffi_call(native.MULTIPLY, like)
    return run(rows, packed, bias, x, t.astype(jnp.int32), x_packed, build=np.int32(0))


def _rows_of_product(
    call: Any, rows: Any, weight: Any, packed: Any, bias: Any = None, step: Any = None
) -> Any:
    shared = jax.tree.map(lambda _: NO_ROWS, (weight, packed, bias))
    return (0, *shared, step and Step(1, NO_ROWS, NO_ROWS, NO_ROWS)), 0


pack = primitive.make_primitive(
    "jaxrnn_pack",
    _pack_plain,
    {"cpu": primitive.Kernel(_pack_on_cpu)},
    lambda call, weight: ((NO_ROWS,), NO_ROWS),
)
"""`pack(Packing(transposed), weight)`, in the arrangement of this machine's kernel."""

multiply = primitive.make_primitive(
    "jaxrnn_multiply",
    plain,
    {"cpu": primitive.Kernel(_multiply_on_cpu)},
    _rows_of_product,
)
"""`multiply(precision, rows, weight, packed, bias=None, step=None)`.

Rows (B, K) times weight (K, N), plus the bias (N,), plus the product of a `Step`.
"""


def sum_outer(dy: Array, x: Array, *, with_bias: bool) -> tuple[Array, Array]:
    """(dy^T x, the sum of dy's rows or an empty array), summed in blocks of 128 rows on a CPU."""
    like = (
        jax.ShapeDtypeStruct((dy.shape[1], x.shape[1]), x.dtype),
        jax.ShapeDtypeStruct((dy.shape[1] if with_bias else 0,), x.dtype),
    )
    dweight, dbias = jax.ffi.ffi_call(native.OUTER, like)(dy, x, build=np.int32(0))
    return dweight, dbias


class Empty(NamedTuple):
    """An array without values. XLA would merge equal calls, so each has a number of its own."""

    number: int
    shape: tuple[int, ...]
    dtype: str


def _empty_on_cpu(call: Empty, _: Array) -> Array:
    like = jax.ShapeDtypeStruct(call.shape, call.dtype)
    return jax.ffi.ffi_call(native.EMPTY, like)(number=np.int32(call.number))


_empty = primitive.make_primitive(
    "jaxrnn_empty",
    lambda call, _: jnp.zeros(call.shape, call.dtype),
    {"cpu": primitive.Kernel(_empty_on_cpu)},
    lambda call, _: ((NO_ROWS,), NO_ROWS),
)


def empty(call: Empty) -> Array:
    """An array for a loop that writes all of it; `lax.scan` would write zeros first."""
    return _empty(call, jnp.zeros((), call.dtype))
