"""Choice of the items of each minibatch, and of those set aside, from a seed alone."""

from collections.abc import Sequence

import numpy as np
from numpy import ndarray as Array
from numpy.typing import ArrayLike

# NumPy treats 7 and (7, 0) as the same seed.
Seed = int | Sequence[int]


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
