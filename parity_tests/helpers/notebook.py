"""Models of the notebook with its sizes and tasks: rows of a table in docs/parity.md."""

import dataclasses

import numpy as np
import torch
from flax import nnx

import torch_ref.data
import torch_ref.models
from jaxrnn import data, models, training
from jaxrnn.testing import Report, compare
from twins import compare_classifiers

VOCABULARY, EMBEDDING = 50, 32
MAX_NORM = 1.0


@dataclasses.dataclass(frozen=True)
class Task:
    """Inputs (B, T, I) or tokens (B, T), labels (B,), and the lengths (B,) or None."""

    inputs: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray | None = None


def classification() -> Task:
    """64 of the token sequences that the notebook's classifier is trained on."""
    sequences, labels = torch_ref.data.create_synthetic_sequences(VOCABULARY)
    inputs, lengths = data.pad(sequences[:64])
    return Task(inputs, labels[:64].numpy(), lengths)


def variable_lengths() -> Task:
    """The five sequences, embedded."""
    sequences, lengths = data.create_variable_length_batch()
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(VOCABULARY, 16)
    inputs = embedding(torch.from_numpy(data.pad(sequences)[0])).detach().numpy()
    return Task(inputs, np.arange(5) % 2, np.array(lengths))


def memory() -> Task:
    """Noise labelled by the sign of its first step, after 50 steps."""
    torch.manual_seed(0)
    x, labels = torch_ref.data.create_memory_task()
    return Task(x.numpy(), labels.numpy())


def noise() -> Task:
    """Inputs that the notebook passes to its two hand-written models."""
    rng = np.random.default_rng(0)
    return Task(rng.standard_normal((3, 15, 10)), np.arange(3))


# row: (class, arguments, task, True if lengths are passed)
ROWS = {
    "`VanillaRNN`, noise": ("VanillaRNN", (10, 32, 5), noise, False),
    "`SimpleLSTM`, noise": ("SimpleLSTM", (10, 32, 5), noise, False),
    "`SequenceClassifier`, classification": (
        "SequenceClassifier",
        (VOCABULARY, EMBEDDING, 64, 2, 2),
        classification,
        False,
    ),
    "`SequenceClassifier`, classification with lengths": (
        "SequenceClassifier",
        (VOCABULARY, EMBEDDING, 64, 2, 2),
        classification,
        True,
    ),
    "`EfficientLSTM`, variable lengths": ("EfficientLSTM", (16, 32, 2), variable_lengths, True),
    "`RNNComparison`, RNN, memory": ("RNNComparison", (1, 64, 2, "RNN"), memory, False),
    "`RNNComparison`, LSTM, memory": ("RNNComparison", (1, 64, 2, "LSTM"), memory, False),
    "`RNNComparison`, GRU, memory": ("RNNComparison", (1, 64, 2, "GRU"), memory, False),
}


class Pair:
    """Both models of one row, on its task."""

    def __init__(self, row: str):
        name, arguments, task, with_lengths = ROWS[row]
        torch.manual_seed(0)
        self.theirs = getattr(torch_ref.models, name)(*arguments)
        self.ours = getattr(models, name)(*arguments, rngs=nnx.Rngs(0))
        self.task = task()
        self.lengths = self.task.lengths if with_lengths else None

    @property
    def steps(self) -> int:
        """T."""
        return self.task.inputs.shape[1]

    def compare(self, dtype: str) -> Report:
        return compare(
            self.theirs,
            self.ours,
            self.task.inputs,
            lengths=self.lengths,
            dtype=dtype,
            steps=self.steps,
        )

    def train(self, steps: int) -> Report:
        return compare_classifiers(
            self.theirs,
            self.ours,
            [(self.task.inputs, self.task.labels)],
            steps,
            lengths=self.lengths,
            clip=training.clip_grad_norm,
            max_norm=MAX_NORM,
        )
