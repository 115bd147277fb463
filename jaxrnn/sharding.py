"""Placement of arrays on several devices and in several processes."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import multihost_utils
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, NamedSharding, PartitionSpec, Sharding

from jaxrnn.cells import Carry, Weights


def spread(*trees: Any) -> bool:
    """True if an array's type names axes of a mesh.

    This is the case inside `jax.shard_map`, unless `check_vma=False`, and on a mesh with explicit
    axes. JAX's own operations follow the placement there; a kernel runs on each device's rows.
    """
    arrays = jax.tree.leaves(trees)
    return any(_varying(a) or any(jax.typeof(a).sharding.spec) for a in arrays)


def placed_as(x: Array, weights: Any, carry: Carry) -> Carry:
    """The initial carry (·, B, ·), placed as a loop over x (T, B, ·) requires.

    It varies over the devices of `jax.shard_map` if any argument does. On an explicit mesh its rows
    are placed like those of x.
    """
    varying = frozenset().union(*map(_varying, jax.tree.leaves((x, weights, carry))))
    spec = jax.typeof(x).sharding.spec

    def placed(c: Array) -> Array:
        axes = tuple(varying - _varying(c))
        if axes:
            c = lax.pcast(c, axes, to="varying")
        return _reshard(c, x, None, spec[1]) if any(spec) else c

    return tuple(placed(c) for c in carry)


def run_on_rows(run: Any, weights: Weights, x: Array, carry: Carry, mask: Any) -> Any:
    """`run(weights, x, carry, mask) -> (ys, last)` on each device's rows of an explicit mesh."""
    kind = jax.typeof(x).sharding
    rows = kind.spec[1]
    steps, states = PartitionSpec(None, rows), PartitionSpec(rows)
    shared = jax.tree.map(lambda _: PartitionSpec(), weights._replace(initial=None))
    specs = shared._replace(initial=jax.tree.map(lambda _: states, weights.initial))
    given = (specs, steps, jax.tree.map(lambda _: states, carry), mask if mask is None else steps)
    if mask is not None:
        mask = _reshard(mask, x, None, rows)
    return jax.shard_map(
        run, mesh=kind.mesh, in_specs=given, out_specs=(steps, given[2]), axis_names=free_axes(x)
    )(weights, x, carry, mask)


def gather_weights(weights: Weights) -> Weights:
    """Weights gathered onto every device if an explicit mesh divides them."""

    def whole(a: Array) -> Array:
        divided = any(jax.typeof(a).sharding.spec)
        return _reshard(a, a) if divided else a

    shared = jax.tree.map(whole, weights._replace(mask=None, initial=None))
    return shared._replace(mask=weights.mask, initial=weights.initial)


def gather_features(x: Array) -> Array:
    """A sequence (T, B, I), divided over an explicit mesh only by its rows."""
    spec = jax.typeof(x).sharding.spec
    if not any((spec[0], spec[2])):
        return x
    return _reshard(x, x, None, spec[1])


def varies(*trees: Any) -> bool:
    """True inside a `jax.shard_map` whose types say over which devices an array varies."""
    return any(map(_varying, jax.tree.leaves(trees)))


def free_axes(x: Array) -> set[str]:
    """Axes of the mesh of an array's type that no `jax.shard_map` has taken yet."""
    mesh = jax.typeof(x).sharding.mesh
    axes = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name for name, kind in axes if kind != AxisType.Manual}


def vary_alike(trees: Any) -> Any:
    """Arrays that vary over the same devices of a `jax.shard_map`, as custom primitives need it.

    The gradient of an array that varied over fewer devices is summed over the others.
    """
    leaves = jax.tree.leaves(trees)
    union = frozenset().union(*map(_varying, leaves))

    def cast(a: Array) -> Array:
        axes = tuple(union - _varying(a))
        return lax.pcast(a, axes, to="varying") if axes else a

    return jax.tree.map(cast, trees)


def shapes_like(shapes: Any, arrays: Any) -> Any:
    """Shapes and dtypes of a pytree, varying over the devices that some arrays vary over."""
    first, *_ = map(jax.typeof, jax.tree.leaves(arrays))
    if not _varying(first):
        return shapes
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(
            s.shape, s.dtype, sharding=_whole(first, s), manual_axis_type=first.manual_axis_type
        ),
        shapes,
    )


def result_types(shapes: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """Types of a custom primitive's results, which vary over the same devices as its arguments."""
    first, make = arguments[0], jax.core.ShapedArray
    if not _varying(first):
        return [make(s.shape, s.dtype) for s in shapes]
    kind = first.manual_axis_type
    return [
        make(s.shape, s.dtype, sharding=_whole(first, s), manual_axis_type=kind) for s in shapes
    ]


def without_variation(avals: Sequence[Any]) -> list[Any]:
    """Types for the lowering of a custom primitive, inside which no device matters."""
    return [
        jax.core.ShapedArray(a.shape, a.dtype, sharding=a.sharding) if _varying(a) else a
        for a in avals
    ]


def _whole(like: Any, shape: Any) -> NamedSharding:
    """Undivided, on the mesh of a type."""
    return NamedSharding(like.sharding.mesh, PartitionSpec(*[None] * len(shape.shape)))


def _reshard(a: Array, like: Array, *spec: Any) -> Array:
    """An array placed anew on the explicit mesh of another, which need not be the current mesh."""
    mesh = jax.typeof(like).sharding.mesh
    return jax.sharding.reshard(a, NamedSharding(mesh, PartitionSpec(*spec)))


def _varying(a: Any) -> frozenset[Any]:
    """Axes of `jax.shard_map` over which the values of an array, or of a type, differ."""
    kind = getattr(
        a if isinstance(a, jax.core.AbstractValue) else jax.typeof(a), "manual_axis_type", None
    )
    return kind.varying if kind else frozenset()


@functools.cache
def needs_devices() -> Any:
    """A jaxpr with a partitioned operation, to be a parameter of primitives that lower to one.

    JAX passes the devices to the lowering of a program only if it finds such an operation in it.
    """
    nothing = custom_partitioning(lambda x: x)
    nothing.def_partition(partition=None, sharding_rule="i -> i")
    return jax.make_jaxpr(nothing)(jnp.zeros(1))


def is_divided(a: Any) -> bool:
    """True if other processes hold parts of an array that this process does not."""
    return isinstance(a, Array) and not (a.is_fully_addressable or a.is_fully_replicated)


def fetch(a: Any) -> np.ndarray:
    """All of an array in NumPy. If `is_divided(a)`, every process must call it."""
    return multihost_utils.process_allgather(a, tiled=True) if is_divided(a) else np.asarray(a)


def put(a: np.ndarray, placement: Sharding) -> Array:
    """An array that is the same in every process, placed on devices of any of them."""
    if placement.is_fully_addressable:
        return jax.device_put(a, placement)
    return jax.make_array_from_callback(a.shape, placement, lambda index: a[index])
