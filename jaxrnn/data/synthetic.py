"""Three synthetic tasks."""

import numpy as np
from numpy import ndarray as Array

from jaxrnn.data.plans import Seed


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
