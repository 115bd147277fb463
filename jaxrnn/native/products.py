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
    return weight.dtype in (jnp.float32, jnp.float64) and rows > 1 and rows * weight.size >= LEAST


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


def plain(
    precision: lax.PrecisionLike,
    rows: Array,
    weight: Array,
    packed: Any = None,
    bias: Array | None = None,
) -> Array:
    """`multiply` as operations of JAX."""
    dims = (((1,), (0,)), ((), ()))
    y = lax.dot_general(rows, weight, dims, precision=precision, preferred_element_type=rows.dtype)
    return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


def _multiply_on_cpu(
    _: Any, rows: Array, weight: Array, packed: Array, bias: Array | None = None
) -> Array:
    like = jax.ShapeDtypeStruct((rows.shape[0], weight.shape[1]), rows.dtype)
    bias = jnp.zeros((0,), rows.dtype) if bias is None else bias
    return jax.ffi.ffi_call(native.MULTIPLY, like)(rows, packed, bias, build=np.int32(0))


def _rows_of_product(call: Any, rows: Any, *shared: Any) -> Any:
    return (0, *jax.tree.map(lambda _: NO_ROWS, shared)), 0


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
"""`multiply(precision, rows, weight, packed, bias=None)`: rows (B, K) times weight (K, N)."""


def sum_outer(dy: Array, x: Array, *, with_bias: bool) -> tuple[Array, Array]:
    """(dy^T x, the sum of dy's rows or an empty array), summed in blocks of 128 rows on a CPU."""
    like = (
        jax.ShapeDtypeStruct((dy.shape[1], x.shape[1]), x.dtype),
        jax.ShapeDtypeStruct((dy.shape[1] if with_bias else 0,), x.dtype),
    )
    dweight, dbias = jax.ffi.ffi_call(native.OUTER, like)(dy, x, build=np.int32(0))
    return dweight, dbias
