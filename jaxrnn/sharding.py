"""Placement of arrays on several devices, according to their types."""

from typing import Any

import jax
from jax import Array, lax
from jax.sharding import PartitionSpec

from jaxrnn.cells import Carry


def spread(*trees: Any) -> bool:
    """True if an array's type names axes of a mesh.

    This is the case inside `jax.shard_map`, unless `check_vma=False`, and on a mesh with explicit
    axes. Only JAX's own operations can follow the placement there.
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
        return jax.sharding.reshard(c, PartitionSpec(None, spec[1])) if any(spec) else c

    return tuple(placed(c) for c in carry)


def _varying(a: Array) -> frozenset[Any]:
    """Axes of `jax.shard_map` over which an array's values differ."""
    kind = getattr(jax.typeof(a), "manual_axis_type", None)
    return kind.varying if kind else frozenset()
