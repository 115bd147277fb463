"""What the types of arrays say of several devices."""

from typing import Any

import jax
from jax import Array, lax
from jax.sharding import PartitionSpec

from jaxrnn.cells import Carry


def spread(*trees: Any) -> bool:
    """Whether an array's type names axes of a mesh.

    It does inside `jax.shard_map`, unless `check_vma=False`, and on a mesh whose axes are explicit.
    There only operations that JAX knows can follow where each part is.
    """
    arrays = jax.tree.leaves(trees)
    return any(_varying(a) or any(jax.typeof(a).sharding.spec) for a in arrays)


def placed_as(x: Array, weights: Any, carry: Carry) -> Carry:
    """The initial carry (·, B, ·), often new zeros, as a loop over x (T, B, ·) must start with it.

    It varies over the devices of `jax.shard_map` if anything does, and its rows are where x has
    them on an explicit mesh.
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
    """The axes of `jax.shard_map` over which an array's values differ."""
    kind = getattr(jax.typeof(a), "manual_axis_type", None)
    return kind.varying if kind else frozenset()
