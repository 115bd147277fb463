"""Padded minibatches of sequences in memory."""

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
from numpy import ndarray as Array
from numpy.typing import ArrayLike, DTypeLike

from jaxrnn.data.padding import Batch, pad
from jaxrnn.data.plans import Seed, plan


def batches(
    sequences: Sequence[ArrayLike],
    labels: ArrayLike | Sequence[ArrayLike],
    batch_size: int,
    *,
    seed: Seed | None = None,
    buckets: Sequence[int] | None = None,
    value: int | float = 0,
    label_value: int | float | None = None,
    dtype: DTypeLike | None = None,
) -> list[Batch]:
    """Padded minibatches of one epoch.

    Args:
        sequences: N arrays (T_n, ...).
        labels: a number or an array for each sequence: a class, a real value, K of either, one for
            each step (T_n, ...), or a label sequence (N_n, ...). Labels for each step are padded
            like the inputs, label sequences to the longest of all. Floats stay floats; integers and
            booleans become int32.
        batch_size, seed, buckets: as in `plan`.
        value, dtype: for the inputs, as in `pad`.
        label_value: value of padded labels; None for -1 in integers, which is not a class, and 0 in
            floats.

    Returns:
        The batches, each with its lengths.

    Raises:
        ValueError: for labels that do not match the sequences in number, that differ in more than
            their first axis, or that do not fit into int32.

    Example:
        >>> from jaxrnn import data
        >>> for batch in data.batches([[1, 2], [3], [4, 5, 6]], [0, 1, 0], batch_size=2):
        ...     print(batch.inputs.tolist(), batch.labels, batch.lengths)
        [[1, 2, 0], [3, 0, 0]] [0 1] [2 1]
        [[4, 5, 6]] [0] [3]
        >>> tags = [[7, 7], [8], [9, 9, 9]]
        >>> data.batches([[1, 2], [3], [4, 5, 6]], tags, batch_size=3)[0].labels.tolist()
        [[7, 7, -1], [8, -1, -1], [9, 9, 9]]
    """
    rows = label_rows("batches", labels, len(sequences))
    lengths = [len(np.asarray(sequence)) for sequence in sequences]
    per_step = all(row.ndim and len(row) == n for row, n in zip(rows, lengths, strict=True))
    ragged = len({row.shape for row in rows}) > 1
    longest = max((len(row) for row in rows), default=0) if ragged else 0
    label_value = padding_of(rows) if label_value is None else label_value
    result = []
    for items, steps in plan(np.array(lengths, np.int32), batch_size, seed=seed, buckets=buckets):
        inputs, found = pad([sequences[n] for n in items], steps, value=value, dtype=dtype)
        mine = [rows[n] for n in items]
        if per_step or ragged:
            padded, _ = pad(mine, steps if per_step else longest, value=label_value)
        else:
            padded = np.stack(mine)
        result.append(Batch(inputs, padded, found))
    return result


def padding_of(rows: Sequence[Array]) -> int:
    """Value of padded labels: -1 in integers, which is not a class, and 0 in floats."""
    return -1 if rows and rows[0].dtype.kind == "i" else 0


def label_rows(call: str, labels: ArrayLike | Sequence[ArrayLike], count: int) -> list[Array]:
    """Label of each sequence as an array, of one dtype and equal in all axes but the first."""
    if isinstance(labels, Mapping | Set | str) or not isinstance(labels, Iterable):
        raise ValueError(
            f"`{call}` needs labels in the order of the sequences, got a {type(labels).__name__}."
        )
    whole: Any = np.atleast_1d(np.asarray(labels)) if hasattr(labels, "ndim") else labels
    rows = [np.asarray(row) for row in whole]
    if len(rows) != count:
        shape = getattr(whole, "shape", (len(rows),))
        raise ValueError(f"`{call}` needs a label for each of {count} sequences, got {shape}.")
    for n, row in enumerate(rows):
        if row.ndim != rows[0].ndim or row.shape[1:] != rows[0].shape[1:]:
            raise ValueError(
                f"`{call}` needs labels that agree in all axes but the first, got shapes "
                f"{rows[0].shape} for number 0 and {row.shape} for number {n}."
            )
    if not rows:
        return rows
    # An empty list has NumPy's default dtype, which carries no information.
    dtype = np.result_type(*({row.dtype for row in rows if row.size} or {rows[0].dtype}))
    if dtype.kind in "biu":
        bounds = np.iinfo(np.int32)
        if any(row.size and (row.min() < bounds.min or row.max() > bounds.max) for row in rows):
            raise ValueError(f"`{call}` needs integer labels that fit into int32.")
        dtype = np.dtype(np.int32)
    elif dtype.kind not in "fc" and dtype.name != "bfloat16":
        raise ValueError(f"`{call}` needs numeric labels, got {dtype}.")
    return [row.astype(dtype) for row in rows]
