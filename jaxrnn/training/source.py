"""The batches of a run in order: from a function of the epoch, or from any iterable."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeAlias

from jaxrnn.training.batches import as_arrays

Data: TypeAlias = Callable[[int], Iterable[Any]] | Iterable[Any]


class Source:
    """Batches by epoch.

    A function of the epoch is asked for the epochs that are needed. An iterable is gone through
    once for each epoch, from the first on, so that one with a state of its own (a loader that
    shuffles, a generator) comes to the same batches in a resumed run.

    Args:
        data: the function or the iterable.
        epoch_steps: batches of an epoch at most; None for all that there are.
    """

    def __init__(self, data: Data, epoch_steps: int | None):
        self._data, self._epoch_steps = data, epoch_steps
        self._next = 0  # the epoch after the one that `_open` is of
        self._open: Iterator[Any] = iter(())

    def left(self, epoch: int) -> Iterator[Any]:
        """What is left of an epoch: all of it, unless `seek` has gone into it."""
        if epoch != self._next - 1:
            self._begin(epoch)
        return map(as_arrays, self._open)

    def seek(self, epoch: int, number: int) -> Any | None:
        """Goes to just after one batch and returns it; None if there is none."""
        self._begin(epoch)
        return next(map(as_arrays, islice(self._open, number, None)), None)

    def _begin(self, epoch: int) -> None:
        if callable(self._data):
            self._open = islice(iter(self._data(epoch)), self._epoch_steps)
        else:
            for _ in range(self._next, epoch):
                deque(islice(iter(self._data), self._epoch_steps), maxlen=0)
            self._open = islice(iter(self._data), self._epoch_steps)
        self._next = epoch + 1
