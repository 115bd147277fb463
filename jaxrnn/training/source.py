"""Batches of a run in order, from a function of the epoch or from any iterable."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeAlias

from jaxrnn.training.batches import as_arrays

Data: TypeAlias = Callable[[int], Iterable[Any]] | Iterable[Any]


class Source:
    """Batches by epoch.

    A function is called for the needed epochs only. An iterable is consumed once for each epoch,
    starting with the first, so that an iterable with internal state (a loader that shuffles, a
    generator) yields the same batches in a resumed run.

    Args:
        data: the function or the iterable.
        epoch_steps: largest number of batches in an epoch; None for no limit.
    """

    def __init__(self, data: Data, epoch_steps: int | None):
        self._data, self._epoch_steps = data, epoch_steps
        self._next = 0  # the epoch after that of `_open`
        self._open: Iterator[Any] = iter(())

    def left(self, epoch: int) -> Iterator[Any]:
        """Remaining batches of an epoch: all of them, unless `seek` has consumed some."""
        if epoch != self._next - 1:
            self._begin(epoch)
        return map(as_arrays, self._open)

    def seek(self, epoch: int, number: int) -> Any | None:
        """Move to just after one batch and return that batch; None if there is none."""
        self._begin(epoch, number)
        return next(map(as_arrays, self._open), None)

    def _begin(self, epoch: int, start: int = 0) -> None:
        """Open an epoch at one of its batches; a sequence is not read up to there."""
        if callable(self._data):
            found, end = self._data(epoch), self._epoch_steps
            if isinstance(found, Sequence):
                self._open = map(found.__getitem__, range(len(found))[start:end])
            else:
                self._open = islice(iter(found), start, end)
        else:
            for _ in range(self._next, epoch):
                deque(islice(iter(self._data), self._epoch_steps), maxlen=0)
            self._open = islice(iter(self._data), start, self._epoch_steps)
        self._next = epoch + 1
