"""Kernels on a batch sharded over a mesh of automatic axes: each device runs its own rows.

XLA treats a kernel as opaque, so it would gather the whole batch onto every device. A Shardy rule
names the axis of the rows in each array, and XLA then runs the kernel on each device's share.
Results without rows (the gradients of weights) are summed over the devices.
"""

from collections.abc import Callable, Sequence
from typing import Any

from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from jaxrnn.rows import NO_ROWS


def run_by_rows(
    run: Callable[..., list[Any]], operands: Sequence[int], results: Sequence[int]
) -> Callable[..., list[Any]]:
    """`run(*arrays) -> list of arrays` on each device's rows.

    Args:
        operands: axis of the rows in each operand, or `NO_ROWS`.
        results: the same for the results; results without rows are summed over the devices.
    """

    def shardings(mesh: Any, arrays: Sequence[Any], axes: Sequence[int], over: Any) -> list[Any]:
        def spec(a: Any, axis: int) -> PartitionSpec:
            return PartitionSpec(*(over if i == axis else None for i in range(len(a.shape))))

        return [NamedSharding(mesh, spec(a, axis)) for a, axis in zip(arrays, axes, strict=True)]

    def partition(mesh: Any, given: Any, wanted: Any) -> Any:
        over = next(
            (a.sharding.spec[i] for a, i in zip(given, operands, strict=True) if i != NO_ROWS),
            None,
        )

        def local(*arrays: Any) -> list[Any]:
            found = run(*arrays)
            if over is None:
                return found
            return [
                lax.psum(a, over) if axis == NO_ROWS else a
                for a, axis in zip(found, results, strict=True)
            ]

        return (
            mesh,
            local,
            shardings(mesh, wanted, results, over),
            tuple(shardings(mesh, given, operands, over)),
        )

    def rule(mesh: Any, given: Any, wanted: Any) -> str:
        """Shardy rule with one factor for the rows; a summed result is laid out like its weight."""

        def named(axis: int, name: str, rank: int) -> str:
            return " ".join("rows" if i == axis else f"{name}{i}" for i in range(rank))

        def name(i: int) -> str:
            summed = results[i] == NO_ROWS and i < len(operands) and operands[i] == NO_ROWS
            return f"x{i}_" if summed and wanted[i].shape == given[i].shape else f"y{i}_"

        left = [named(axis, f"x{i}_", len(given[i].shape)) for i, axis in enumerate(operands)]
        right = [named(axis, name(i), len(wanted[i].shape)) for i, axis in enumerate(results)]
        return f"{', '.join(left)} -> {', '.join(right)}"

    partitioned = custom_partitioning(run)
    partitioned.def_partition(partition=partition, sharding_rule=rule)
    return partitioned
