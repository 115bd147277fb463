"""The notebook's three tasks, with the random numbers that its own code draws.

`jaxrnn.data` has the same functions by the same names, with NumPy's random numbers: PyTorch's
cannot be drawn without PyTorch. To train both frameworks on the same data, draw it here and hand
it to `jaxrnn.data.pad` or `batches`, which take tensors as they take arrays.
"""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def create_synthetic_sequences(
    vocab_size: int = 100, n_samples: int = 1000, min_len: int = 5, max_len: int = 20
) -> tuple[list[Tensor], Tensor]:
    """Sequences of tokens 1 to vocab_size - 1, each labelled by its sum modulo 2.

    So an odd sum has label 1. The notebook's comment says that an even one has; the code is what
    its results come from, and is kept. Seeds PyTorch's global generator with 42, as the notebook
    does: what is drawn afterwards, an initial weight say, is thereby determined too.
    """
    torch.manual_seed(42)
    sequences = []
    for _ in range(n_samples):
        length = int(torch.randint(min_len, max_len + 1, (1,)))
        sequences.append(torch.randint(1, vocab_size, (length,)))
    return sequences, torch.tensor([int(sequence.sum()) % 2 for sequence in sequences])


def split_in_order(sequences: list[Tensor], labels: Tensor, fraction: float = 0.8):
    """The first part to train on and the rest to validate, each (sequences, labels)."""
    count = int(fraction * len(sequences))
    return (sequences[:count], labels[:count]), (sequences[count:], labels[count:])


def collate_batch(
    sequences: list[Tensor], labels: Tensor, pad_token: int = 0
) -> tuple[Tensor, Tensor]:
    """The sequences padded to the longest, batch first, and the labels."""
    return pad_sequence(sequences, batch_first=True, padding_value=pad_token), labels


def create_variable_length_batch() -> tuple[list[Tensor], list[int]]:
    """Five sequences of consecutive tokens, and their lengths: 8, 4, 6, 2, 5."""
    lengths = [8, 4, 6, 2, 5]
    starts = [1, 10, 20, 30, 40]
    sequences = [torch.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)]
    return sequences, lengths


def create_memory_task(seq_len: int = 50, batch_size: int = 32) -> tuple[Tensor, Tensor]:
    """Noise x (B, T, 1), and whether its first step is positive, (B,) of 0 and 1.

    Drawn from PyTorch's global generator, as it stands.
    """
    x = torch.randn(batch_size, seq_len, 1)
    return x, (x[:, 0, 0] > 0).long()
