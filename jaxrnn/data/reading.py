"""Padded minibatches of sequences that do not fit into memory, read when they are needed."""

from collections.abc import Sequence
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from jaxrnn.data.minibatches import label_rows, padding_of
from jaxrnn.data.padding import Batch, pad
from jaxrnn.data.plans import Seed, plan


class RandomAccess(Protocol):
    """Items by their numbers, as Grain's `RandomAccessDataSource` has them."""

    def __getitem__(self, number: int, /) -> tuple[ArrayLike, ArrayLike]:
        """A sequence (T_n, ...) and its label."""


def read_batches(
    source: RandomAccess,
    lengths: ArrayLike,
    batch_size: int,
    *,
    seed: Seed | None = None,
    buckets: Sequence[int] | None = None,
    per_step: bool = False,
    value: int | float = 0,
    label_value: int | float | None = None,
    dtype: DTypeLike | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Sequence[Batch]:
    """Padded minibatches of one epoch, each of which is read when it is taken.

    The order is that of `batches` with the same seed. Only the lengths must be in memory. `fit`
    resumes at any batch without reading those before it.

    Args:
        source: `source[n]` is a sequence (T_n, ...) and its label, for n of 0 to N - 1: a list of
            pairs, a memory-mapped file, or a data source of Grain.
        lengths: (N,) integers, the steps of each sequence.
        batch_size, seed, buckets: as in `plan`.
        per_step: True for labels (T_n, ...) with one entry for each step, which are padded like the
            inputs. Other labels must be of one shape. Floats stay floats; integers and booleans
            become int32.
        value, dtype: for the inputs, as in `pad`.
        label_value: value of padded labels, as in `batches`.
        shard: (index, count): read one of `count` equal parts of the rows of each batch, for
            `training.join_rows`. Rows that are left over, fewer than `count` in a batch, are left
            out.

    Returns:
        The batches by number. The result is a random-access source itself, which Grain can read
        ahead in threads.

    Raises:
        ValueError: as `plan`; for a shard that does not exist; when a batch is taken, for a
            sequence of another length than `lengths` says, and for labels as in `batches`.

    Example:
        >>> from jaxrnn import data
        >>> source = [([1, 2], 0), ([3], 1), ([4, 5, 6], 0)]
        >>> batches = data.read_batches(source, [2, 1, 3], batch_size=2)
        >>> len(batches), batches[1].inputs.tolist(), batches[0].labels.tolist()
        (2, [[4, 5, 6]], [0, 1])
    """
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(f"`read_batches(shard)` needs 0 <= index < count, got {shard}.")
    parts = []
    for items, steps in plan(lengths, batch_size, seed=seed, buckets=buckets):
        share = len(items) // count
        if share:
            parts.append((items[index * share : (index + 1) * share], steps))
    return _Batches(source, np.asarray(lengths), parts, per_step, value, label_value, dtype)


class _Batches(Sequence[Batch]):
    """Batches that are read by number."""

    def __init__(
        self,
        source: RandomAccess,
        lengths: np.ndarray,
        parts: list[tuple[np.ndarray, int]],
        per_step: bool,
        value: int | float,
        label_value: int | float | None,
        dtype: DTypeLike | None,
    ) -> None:
        self._source, self._lengths, self._parts = source, lengths, parts
        self._per_step, self._value, self._label_value = per_step, value, label_value
        self._dtype = dtype

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, number: int) -> Batch: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Batch]: ...
    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        items, steps = self._parts[number]
        found, labels = zip(*(self._source[int(n)] for n in items), strict=True)
        sequences = [np.asarray(sequence) for sequence in found]
        for n, sequence in zip(items, sequences, strict=True):
            if len(sequence) != self._lengths[n]:
                raise ValueError(
                    f"`read_batches(lengths)` says that sequence {n} has {self._lengths[n]} steps, "
                    f"and it has {len(sequence)}."
                )
        inputs, lengths = pad(sequences, steps, value=self._value, dtype=self._dtype)
        rows = label_rows("read_batches", labels, len(items))
        if not self._per_step:
            return Batch(inputs, np.stack(rows), lengths)
        value = padding_of(rows) if self._label_value is None else self._label_value
        return Batch(inputs, pad(rows, steps, value=value)[0], lengths)
