"""Minibatches from sequences of different lengths, and three synthetic tasks, in NumPy alone.

All random choices depend on a seed alone, so that two frameworks, or a run and its continuation,
see the same batches in the same order.

Letters: N sequences, B batch, T steps, I inputs.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array
from numpy.typing import ArrayLike, DTypeLike

# NumPy treats 7 and (7, 0) as the same seed.
Seed = int | Sequence[int]


class Batch(NamedTuple):
    """Inputs, labels and lengths of one training step; a pytree of arrays.

    inputs: (B, T, I), or (B, T) of tokens.
    labels: (B,) or (B, K) for each row, (B, T) or (B, T, K) for each step, (B, N) for label
        sequences; integers for classes, floats for real values.
    lengths: (B,) integers, the true steps of each row, or None if every row has T.
    """

    inputs: Array
    labels: Array
    lengths: Array | None = None


def pad(
    sequences: Sequence[ArrayLike],
    steps: int | None = None,
    *,
    value: int | float = 0,
    dtype: DTypeLike | None = None,
) -> tuple[Array, Array]:
    """Stacks sequences of different lengths, batch first, and returns their lengths.

    Args:
        sequences: arrays (T_n, ...) that agree in all axes but the first.
        steps: T of the result; None for the length of the longest sequence.
        value: value of the steps past each length.
        dtype: dtype of the result; None for that of the first sequence.

    Returns:
        inputs (N, T, ...) and lengths (N,), int32.

    Raises:
        ValueError: for no sequences, shapes that do not agree, or too few `steps`.

    Example:
        >>> from jaxrnn import data
        >>> inputs, lengths = data.pad([[1, 2, 3], [4]])
        >>> inputs.tolist(), lengths.tolist()
        ([[1, 2, 3], [4, 0, 0]], [3, 1])
    """
    arrays = [np.asarray(sequence) for sequence in sequences]
    if not arrays:
        raise ValueError("`pad` needs at least one sequence, got none.")
    for n, array in enumerate(arrays):
        if array.ndim == 0 or array.shape[1:] != arrays[0].shape[1:]:
            raise ValueError(
                "`pad` needs sequences that agree in all axes but the first, got shapes "
                f"{arrays[0].shape} for number 0 and {array.shape} for number {n}."
            )
    lengths = np.array([len(array) for array in arrays], np.int32)
    longest = int(lengths.max())
    if steps is None:
        steps = longest
    elif steps < longest:
        raise ValueError(f"`pad(steps={steps})` needs as many steps as the longest, {longest}.")
    shape = (len(arrays), steps, *arrays[0].shape[1:])
    inputs = np.full(shape, value, arrays[0].dtype if dtype is None else dtype)
    for row, array in zip(inputs, arrays, strict=True):
        row[: len(array)] = array
    return inputs, lengths


def split(labels: ArrayLike, fraction: float, *, seed: Seed) -> tuple[Array, Array]:
    """Set aside a fraction of every class for validation.

    Args:
        labels: (N,), the class of each item.
        fraction: fraction to set aside, in [0, 1), rounded to whole items in each class.
        seed: seed of the choice.

    Returns:
        The indices of the training items and of the validation items, each ascending.

    Raises:
        ValueError: for a fraction outside [0, 1) or labels that are not (N,).

    Example:
        >>> from jaxrnn import data
        >>> train, validation = data.split([0] * 8 + [1] * 4, 0.25, seed=0)
        >>> len(train), [int(n < 8) for n in validation]
        (9, [1, 1, 0])
    """
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(f"`split` needs labels of shape (N,), got {labels.shape}.")
    if not 0 <= fraction < 1:
        raise ValueError(f"`split` needs 0 <= fraction < 1, got {fraction}.")
    rng = np.random.default_rng(seed)
    aside = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        (members,) = np.nonzero(labels == label)
        aside[rng.permutation(members)[: round(fraction * len(members))]] = True
    return np.nonzero(~aside)[0], np.nonzero(aside)[0]


def plan(
    lengths: ArrayLike,
    batch_size: int,
    *,
    seed: Seed | None = None,
    buckets: Sequence[int] | None = None,
) -> list[tuple[Array, int]]:
    """Items of each minibatch of one epoch, and the number of steps to pad it to.

    Each item is in exactly one batch. Under jit each new shape is compiled: there are at most two
    for each bucket, one for full batches and one for the remainder.

    Args:
        lengths: (N,) integers, the steps of each item.
        batch_size: number of items in a full batch.
        seed: shuffles items and batches; None keeps them in order. Include the epoch, `seed=(run,
            epoch)`, to shuffle each epoch differently and repeatably.
        buckets: ascending numbers of steps to pad to. An item goes to the first bucket that holds
            it, and batches do not mix buckets. None for one bucket with the longest length.

    Returns:
        For each batch, the indices of its items and its number of steps.

    Raises:
        ValueError: for a batch size below 1, lengths that are not (N,) integers, or buckets that do
            not ascend or do not hold the longest item.

    Example:
        >>> from jaxrnn import data
        >>> for items, steps in data.plan([3, 9, 4, 2, 10], 2, buckets=[4, 10]):
        ...     print(items, steps)
        [0 2] 4
        [3] 4
        [1 4] 10
    """
    lengths = np.asarray(lengths)
    if lengths.ndim != 1 or not (np.issubdtype(lengths.dtype, np.integer) or lengths.size == 0):
        raise ValueError(
            f"`plan` needs integer lengths of shape (N,), got {lengths.dtype} of {lengths.shape}."
        )
    if batch_size < 1:
        raise ValueError(f"`plan` needs a batch size of 1 or more, got {batch_size}.")
    if lengths.size == 0:
        return []
    longest = int(lengths.max())
    edges = np.asarray([longest] if buckets is None else buckets)
    if edges.size == 0 or (np.diff(edges) <= 0).any() or edges[-1] < longest:
        raise ValueError(
            f"`plan` needs rising buckets that hold the longest item, {longest} steps, "
            f"got {edges.tolist()}."
        )
    rng = None if seed is None else np.random.default_rng(seed)
    order = np.arange(len(lengths)) if rng is None else rng.permutation(len(lengths))
    bucket_of = np.searchsorted(edges, lengths[order])
    batches = []
    for bucket, steps in enumerate(edges.tolist()):
        members = order[bucket_of == bucket]
        batches += [
            (members[start : start + batch_size], steps)
            for start in range(0, len(members), batch_size)
        ]
    if rng is not None:
        batches = [batches[n] for n in rng.permutation(len(batches))]
    return batches


def bucket_edges(lengths: ArrayLike, count: int) -> list[int]:
    """Numbers of steps to pad to, so that the buckets hold about equally many items.

    Args:
        lengths: (N,) integers, the steps of each item.
        count: largest number of buckets; equal quantiles are merged.

    Returns:
        The ascending `buckets` of `plan` and `batches`; the last is the longest length.

    Raises:
        ValueError: for no lengths, or a `count` below 1.

    Example:
        >>> from jaxrnn import data
        >>> data.bucket_edges([1, 2, 2, 3, 5, 9], count=3)
        [2, 4, 9]
    """
    lengths = np.asarray(lengths)
    if lengths.size == 0 or count < 1:
        raise ValueError(
            "`bucket_edges` needs at least one length and one bucket, "
            f"got {lengths.size} and {count}."
        )
    quantiles = np.quantile(lengths, np.arange(1, count + 1) / count)
    return sorted({int(edge) for edge in np.ceil(quantiles)})


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
    rows = _label_rows(labels, len(sequences))
    lengths = [len(np.asarray(sequence)) for sequence in sequences]
    per_step = all(row.ndim and len(row) == n for row, n in zip(rows, lengths, strict=True))
    ragged = len({row.shape for row in rows}) > 1
    longest = max((len(row) for row in rows), default=0) if ragged else 0
    if label_value is None:
        label_value = -1 if rows and rows[0].dtype.kind == "i" else 0
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


def _label_rows(labels: ArrayLike | Sequence[ArrayLike], count: int) -> list[Array]:
    """Label of each sequence as an array, of one dtype and equal in all axes but the first."""
    if isinstance(labels, Mapping | Set | str) or not isinstance(labels, Iterable):
        raise ValueError(
            f"`batches` needs labels in the order of the sequences, got a {type(labels).__name__}."
        )
    whole: Any = np.atleast_1d(np.asarray(labels)) if hasattr(labels, "ndim") else labels
    rows = [np.asarray(row) for row in whole]
    if len(rows) != count:
        shape = getattr(whole, "shape", (len(rows),))
        raise ValueError(f"`batches` needs a label for each of {count} sequences, got {shape}.")
    for n, row in enumerate(rows):
        if row.ndim != rows[0].ndim or row.shape[1:] != rows[0].shape[1:]:
            raise ValueError(
                "`batches` needs labels that agree in all axes but the first, got shapes "
                f"{rows[0].shape} for number 0 and {row.shape} for number {n}."
            )
    if not rows:
        return rows
    # An empty list has NumPy's default dtype, which carries no information.
    dtype = np.result_type(*({row.dtype for row in rows if row.size} or {rows[0].dtype}))
    if dtype.kind in "biu":
        bounds = np.iinfo(np.int32)
        if any(row.size and (row.min() < bounds.min or row.max() > bounds.max) for row in rows):
            raise ValueError("`batches` needs integer labels that fit into int32.")
        dtype = np.dtype(np.int32)
    elif dtype.kind not in "fc" and dtype.name != "bfloat16":
        raise ValueError(f"`batches` needs numeric labels, got {dtype}.")
    return [row.astype(dtype) for row in rows]


def create_synthetic_sequences(
    vocab_size: int = 100,
    n_samples: int = 1000,
    min_len: int = 5,
    max_len: int = 20,
    *,
    seed: Seed = 42,
) -> tuple[list[Array], Array]:
    """Sequences of tokens 1 to vocab_size - 1, each labelled with its sum modulo 2.

    An odd sum has the label 1. A comment in the original notebook says the opposite; this function
    follows the notebook's code.

    The random numbers are NumPy's and differ from those of the function with the same name in
    `torch_ref.data`. To train on its data, pass its tensors to `pad` or `batches`.

    Args:
        vocab_size: number of tokens, including the padding token 0; 2 or more.
        n_samples: N, number of sequences.
        min_len, max_len: the lengths are drawn uniformly from this range, both ends included.
        seed: seed of all draws.

    Returns:
        N sequences (T_n,) and the labels (N,), int32.

    Raises:
        ValueError: for a range without a token or a length.

    Example:
        >>> from jaxrnn import data
        >>> sequences, labels = data.create_synthetic_sequences(50, 3, min_len=2, max_len=4)
        >>> bool(labels[0] == sequences[0].sum() % 2)
        True
        >>> data.pad(sequences)[0].shape
        (3, 4)
    """
    if vocab_size < 2 or n_samples < 0 or not 0 <= min_len <= max_len:
        raise ValueError(
            "`create_synthetic_sequences` needs vocab_size >= 2, n_samples >= 0 and "
            f"0 <= min_len <= max_len, got {vocab_size}, {n_samples}, {min_len} and {max_len}."
        )
    rng = np.random.default_rng(seed)
    lengths = rng.integers(min_len, max_len, n_samples, endpoint=True)
    sequences = [rng.integers(1, vocab_size, length, np.int32) for length in lengths]
    return sequences, np.array([sequence.sum() % 2 for sequence in sequences], np.int32)


def create_variable_length_batch() -> tuple[list[Array], list[int]]:
    """Five sequences of consecutive tokens, and their lengths: 8, 4, 6, 2, 5.

    Example:
        >>> from jaxrnn import data
        >>> sequences, lengths = data.create_variable_length_batch()
        >>> sequences[3], sum(lengths), data.pad(sequences)[0].size
        (array([30, 31], dtype=int32), 25, 40)
    """
    lengths = [8, 4, 6, 2, 5]
    starts = [1, 10, 20, 30, 40]
    return [
        np.arange(s, s + n, dtype=np.int32) for s, n in zip(starts, lengths, strict=True)
    ], lengths


def create_memory_task(
    seq_len: int = 50, batch_size: int = 32, *, seed: Seed = 42
) -> tuple[Array, Array]:
    """Noise labelled by the sign of its first step, which a model must remember to the end.

    As in `create_synthetic_sequences`, the random numbers are NumPy's.

    Returns:
        x (B, T, 1), float32, from a standard normal distribution, and labels (B,), int32.

    Raises:
        ValueError: for a `seq_len` below 1, or a negative `batch_size`.

    Example:
        >>> from jaxrnn import data
        >>> x, labels = data.create_memory_task(seq_len=50, batch_size=2)
        >>> x.shape, bool((labels == (x[:, 0, 0] > 0)).all())
        ((2, 50, 1), True)
    """
    if seq_len < 1 or batch_size < 0:
        raise ValueError(
            "`create_memory_task` needs seq_len >= 1 and batch_size >= 0, "
            f"got {seq_len} and {batch_size}."
        )
    x = np.random.default_rng(seed).standard_normal((batch_size, seq_len, 1), np.float32)
    return x, (x[:, 0, 0] > 0).astype(np.int32)
