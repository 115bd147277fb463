"""The two sides of `spoken_vowels.py`: one model in JAX and in PyTorch, and their scores."""

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optax
from flax import nnx

from datasets.japanese_vowels import CHANNELS, SPEAKERS, Utterances
from jaxrnn import interchange, models, training
from jaxrnn.data import Batch

WEIGHT_DECAY = 0.01
SMOOTHING = 0.1
LOSS = functools.partial(training.cross_entropy, smoothing=SMOOTHING)  # one for all seeds
SCORES = ("loss", "accuracy")
SHAPES = 2  # of batches: full ones, and the last one


@dataclasses.dataclass
class Side:
    """One framework: a model, its optimiser, and the functions to train it with."""

    name: str
    model: Any
    optimizer: Any
    training: Any  # jaxrnn.training or torch_ref.training: the same functions by the same names
    loss: Any  # to be minimised

    @property
    def metrics(self) -> dict[str, Any]:
        return {"accuracy": self.training.accuracy}

    def train(self, batches: Sequence[Batch]) -> np.ndarray:
        """One epoch: the loss and the accuracy of each batch, (batches, 2)."""
        scores = [
            self.training.train_step(
                self.model, self.optimizer, batch, loss=self.loss, metrics=self.metrics
            )
            for batch in batches
        ]
        return np.array([[float(score[name]) for name in SCORES] for score in scores])

    def evaluate(self, batches: Sequence[Batch]) -> np.ndarray:
        """Loss and accuracy over all batches together, (2,)."""
        scores = self.training.evaluate(self.model, batches, loss=self.loss, metrics=self.metrics)
        return np.array([float(scores[name]) for name in SCORES])

    def predict(self, batches: Sequence[Batch]) -> np.ndarray:
        """Logits, (N, 9)."""
        return self.training.predict(self.model, batches)


def jax_side(options: Any, seed: int, tx: optax.GradientTransformation) -> Side:
    model = new_model(options, seed)
    return Side("JAX", model, nnx.Optimizer(model, tx, wrt=nnx.Param), training, LOSS)


def torch_side(options: Any, seed: int, steps: int) -> Side:
    """The twin, with the initial weights of `jax_side`."""
    import torch

    import torch_ref.training

    # The products are too small to be worth several threads, and on a busy machine threads that
    # wait for each other take a hundred times as long.
    torch.set_num_threads(1)

    model = new_twin(options, interchange.state_dict(new_model(options, seed)))
    optimizer = torch_ref.training.adamw(model, options.learning_rate, WEIGHT_DECAY, steps)
    loss = functools.partial(torch_ref.training.cross_entropy, smoothing=SMOOTHING)
    return Side("PyTorch", model, optimizer, torch_ref.training, loss)


def new_model(options: Any, seed: int) -> models.SpeakerClassifier:
    return models.SpeakerClassifier(
        CHANNELS, options.hidden_size, SPEAKERS, options.layers, rngs=nnx.Rngs(seed)
    )


def new_twin(options: Any, weights: Mapping[str, Any]) -> Any:
    """The PyTorch model with the given weights, by PyTorch's names."""
    import torch

    from torch_ref.models import SpeakerClassifier

    twin = SpeakerClassifier(CHANNELS, options.hidden_size, SPEAKERS, options.layers)
    twin.load_state_dict({name: torch.as_tensor(array) for name, array in weights.items()})
    return twin


class Run:
    """One side trained with one seed. Scores are pairs: a loss in nats, an accuracy in [0, 1]."""

    def __init__(self, side: Side):
        self.side = side
        self.steps: list[np.ndarray] = []  # (batches, 2) each epoch, as trained: with noise
        self.validation: list[np.ndarray] = []  # (2,) each epoch
        self.seconds: list[float] = []  # of training, each epoch
        self.logits = np.zeros((0, SPEAKERS))  # of the test set
        self.accuracy = float("nan")  # on the test set

    def epoch(self, batches: Sequence[Batch], validation: Sequence[Batch]) -> None:
        start = time.perf_counter()
        self.steps.append(self.side.train(batches))
        self.seconds.append(time.perf_counter() - start)
        self.validation.append(self.side.evaluate(validation))

    def keep(self, history: training.History) -> None:
        """Store the history of a whole call of `fit`, as repeated calls of `epoch` would."""
        scores = np.column_stack([history["loss"], history["accuracy"]])
        watched = np.column_stack([history["validation_loss"], history["validation_accuracy"]])
        self.steps = np.split(scores, len(watched))
        self.validation = list(watched)

    def test(self, tests: Sequence[Batch]) -> None:
        self.logits = self.side.predict(tests)
        _, self.accuracy = self.side.evaluate(tests)


def held_back(utterances: Utterances) -> list[Batch]:
    """All of them in one batch."""
    return utterances.batches(len(utterances))
