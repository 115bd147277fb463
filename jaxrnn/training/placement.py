"""Placement of batches, models and optimizers on the devices of a run."""

import math
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxrnn import sharding
from jaxrnn.training import state
from jaxrnn.training.batches import as_arrays, rows


def join_rows(batch: Any, placement: NamedSharding) -> Any:
    """A global batch from the rows that each process holds, in the order of the processes.

    Use it for data of which each process reads its own rows. `fit`, `evaluate` and `predict` take
    the result as it is. Every process must give the same number of rows.

    Args:
        batch: any pytree of arrays with this process's rows along their first axes.
        placement: placement of the rows, as in `fit(sharding=...)`.

    Returns:
        The same pytree of `jax.Array`s, whose rows are those of all processes.

    Raises:
        ValueError: for a placement that divides anything but rows.

    Example:
        >>> import jax, numpy as np
        >>> from jax.sharding import NamedSharding, PartitionSpec
        >>> from jaxrnn import data, training
        >>> mesh = jax.make_mesh((1,), ("data",))
        >>> batch = data.Batch(np.zeros((2, 3, 4)), np.array([0, 1]), np.array([3, 2]))
        >>> joined = training.join_rows(batch, NamedSharding(mesh, PartitionSpec("data")))
        >>> joined.inputs.shape, tuple(joined.labels.sharding.spec)
        ((2, 3, 4), ('data',))
    """
    check("join_rows(batch, placement)", placement)
    return jax.tree.map(
        lambda a: jax.make_array_from_process_local_data(placement, a), as_arrays(batch)
    )


def place_batch(batch: Any, placement: NamedSharding | None) -> Any:
    """The batch with its rows divided over the devices.

    Rows that the devices cannot divide evenly, and arrays without rows, are placed whole on each
    device. Arrays that are on several devices already stay where they are.
    """
    if placement is None:
        return batch
    count = rows(batch)
    whole = NamedSharding(placement.mesh, PartitionSpec())

    def place(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1:
            return leaf
        even = leaf.shape[:1] == (count,) and count % _parts(placement) == 0
        return sharding.put(np.asarray(leaf), placement if even else whole)

    return jax.tree.map(place, batch)


def place_modules(placement: NamedSharding | None, *modules: Any) -> None:
    """Copy arrays that are not on the devices yet to each of them."""
    if placement is None:
        return
    whole = NamedSharding(placement.mesh, PartitionSpec())
    devices = whole.device_set

    def place(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array):
            return leaf
        there = leaf.sharding.device_set == devices and leaf.committed
        return leaf if there else state.place(leaf, np.asarray(state.numbers(leaf)), whole)

    for module in modules:
        nnx.update(module, jax.tree.map(place, nnx.state(module)))


def placements(placement: NamedSharding | None, *modules: Any) -> tuple[Any, ...]:
    """Shardings of the modules' arrays, which a compiled step keeps.

    Empty on a mesh of explicit axes, where the types of the arrays contain them.
    """
    if placement is None or set(placement.mesh.axis_types) != {AxisType.Auto}:
        return ()
    leaves = [leaf for module in modules for leaf in jax.tree.leaves(nnx.state(module))]
    return tuple(leaf.sharding if isinstance(leaf, jax.Array) else None for leaf in leaves)


def keep_placements(kept: tuple[Any, ...], *modules: Any) -> None:
    """Keep each array of the modules at its placement, inside a compiled step."""
    if not kept:
        return
    left = iter(kept)

    def keep(leaf: Any) -> Any:
        place = next(left)
        return leaf if place is None else jax.lax.with_sharding_constraint(leaf, place)

    for module in modules:
        nnx.update(module, jax.tree.map(keep, nnx.state(module)))


def check(call: str, placement: Any) -> None:
    """Require a placement that divides rows and nothing else.

    Raises:
        ValueError: for any other placement.
    """
    named = isinstance(placement, NamedSharding)
    if not named or not any(placement.spec) or any(placement.spec[1:]):
        raise ValueError(
            f"`{call}` needs a placement of the rows, such as `NamedSharding(mesh, "
            f'PartitionSpec("data"))`, got {placement}.'
        )


def _parts(placement: NamedSharding) -> int:
    """Number of parts that the rows are divided into."""
    axes = placement.spec[0]
    names = axes if isinstance(axes, tuple) else (axes,)
    return math.prod(placement.mesh.shape[name] for name in names)
