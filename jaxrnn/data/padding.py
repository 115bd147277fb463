"""`Batch`, and padding of sequences to a common length."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array
from numpy.typing import ArrayLike, DTypeLike


class Batch(NamedTuple):
    """Inputs, labels and lengths of one training step; a pytree of arrays.

    Attributes:
        inputs: (B, T, I), or (B, T) of tokens.
        labels: (B,) or (B, K) for each row, (B, T) or (B, T, K) for each step, (B, N) for label
            sequences; integers for classes, floats for real values.
        lengths: (B,) integers, the true steps of each row, or None if every row has T.

    Example:
        >>> import jax, numpy as np
        >>> from jaxrnn import data
        >>> inputs, lengths = data.pad([np.ones((2, 1)), np.ones((3, 1))])
        >>> batch = data.Batch(inputs, labels=np.array([0, 1]), lengths=lengths)
        >>> [leaf.shape for leaf in jax.tree.leaves(batch)]
        [(2, 3, 1), (2,), (2,)]
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
    """Stack sequences of different lengths, batch first, and return their lengths.

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
