"""The notebook's three tasks, with the random numbers that its own code draws.

`jaxrnn.data` has functions with the same names that use NumPy's random numbers, because PyTorch's
require PyTorch. To train both frameworks on the same data, draw it here and pass the tensors to
`jaxrnn.data.pad` or `batches`.
"""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def create_synthetic_sequences(
    vocab_size: int = 100, n_samples: int = 1000, min_len: int = 5, max_len: int = 20
) -> tuple[list[Tensor], Tensor]:
    """Sequences of tokens 1 to vocab_size - 1, each labelled with its sum modulo 2.

    An odd sum has the label 1. The notebook's comment says the opposite; this function follows the
    notebook's code, which produced its results. It seeds PyTorch's global generator with 42, as the
    notebook does, and so also determines later draws such as initial weights.
    """
    torch.manual_seed(42)
    sequences = []
    for _ in range(n_samples):
        length = int(torch.randint(min_len, max_len + 1, (1,)))
        sequences.append(torch.randint(1, vocab_size, (length,)))
    return sequences, torch.tensor([int(sequence.sum()) % 2 for sequence in sequences])


def split_in_order(sequences: list[Tensor], labels: Tensor, fraction: float = 0.8):
    """Split into a first part for training and the rest for validation, without shuffling."""
    count = int(fraction * len(sequences))
    return (sequences[:count], labels[:count]), (sequences[count:], labels[count:])


def collate_batch(
    sequences: list[Tensor], labels: Tensor, pad_token: int = 0
) -> tuple[Tensor, Tensor]:
    """Sequences padded to the longest, batch first, and the labels."""
    return pad_sequence(sequences, batch_first=True, padding_value=pad_token), labels


def create_variable_length_batch() -> tuple[list[Tensor], list[int]]:
    """Five sequences of consecutive tokens, and their lengths: 8, 4, 6, 2, 5."""
    lengths = [8, 4, 6, 2, 5]
    starts = [1, 10, 20, 30, 40]
    sequences = [torch.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)]
    return sequences, lengths


def create_memory_task(seq_len: int = 50, batch_size: int = 32) -> tuple[Tensor, Tensor]:
    """Noise x (B, T, 1) labelled by the sign of its first step, (B,) of 0 and 1.

    Drawn from PyTorch's global generator in its current state.
    """
    x = torch.randn(batch_size, seq_len, 1)
    return x, (x[:, 0, 0] > 0).long()
