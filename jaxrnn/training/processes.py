"""Agreement between the processes that train one model together."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Processes:
    """The processes of a run: all of `jax.distributed`, or this one alone.

    The first one writes the files. Every method must be called by all of them, in the same order.

    Args:
        together: False for a run of this process alone.
    """

    def __init__(self, *, together: bool) -> None:
        self.count = jax.process_count() if together else 1
        self.first = self.count == 1 or jax.process_index() == 0

    def largest(self, value: int) -> int:
        """Largest value that any process gives, from -2**31 to 2**31 - 1."""
        if self.count == 1:
            return value
        placement, largest = _largest()
        given = np.array([value], np.int32)
        return int(largest(jax.make_array_from_process_local_data(placement, given)))

    def same(self, value: int) -> bool:
        """True if all processes give the same value, from 0 to 2**31 - 1."""
        return self.largest(value) == -self.largest(-value)

    @contextlib.contextmanager
    def all_or_none(self, what: str) -> Iterator[None]:
        """A context whose exception in one process becomes an exception in each.

        Raises:
            RuntimeError: in the processes where nothing failed.
        """
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        failed = self.largest(failure is not None)
        if failure is not None:
            raise failure
        if failed:
            raise RuntimeError(f"{what} failed in another process, whose error says why.")


ALONE = Processes(together=False)
"""This process alone."""


@functools.cache
def _largest() -> tuple[NamedSharding, Callable[[Any], Any]]:
    """A placement with one number in each process, and a function that takes the largest."""
    first_of = {device.process_index: device for device in reversed(jax.devices())}
    devices = np.array([first_of[index] for index in sorted(first_of)])
    mesh = Mesh(devices, "processes")
    whole = NamedSharding(mesh, PartitionSpec())
    return NamedSharding(mesh, PartitionSpec("processes")), jax.jit(jnp.max, out_shardings=whole)
