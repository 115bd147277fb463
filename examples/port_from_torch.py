"""Move a PyTorch checkpoint to JAX, train it further there, and move it back.

    python examples/port_from_torch.py

The model is a two-layer bidirectional LSTM that classifies noisy waves by their form: sine, square,
triangle, sawtooth. Recordings differ in length and frequency. It is trained in PyTorch and saved.
JAX reads the file and computes the same logits to rounding. Then it is trained further in JAX on
other recordings, whose level drifts, and saved. PyTorch reads that file and computes the same
logits and the same accuracy. For runs that can be resumed see `appliances.py`.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optax
from flax import nnx

import jaxrnn
from jaxrnn import data, models, training
from jaxrnn.data import Batch
from support.options import launch, require, require_counts, require_rate, require_torch, tqdm
from support.output import make_folder, new_figure, print_written, save_figure, write_whole

FORMS = ("sine", "square", "triangle", "sawtooth")
LINES = 5  # printed while training


@dataclasses.dataclass(frozen=True)
class Options:
    """Move a PyTorch checkpoint to JAX, train it further there, and move it back."""

    epochs: int = 25
    """Passes over the training set in PyTorch."""
    more_epochs: int = 15
    """Passes over the other training set in JAX."""
    recordings: int = 512
    """Of the training set, and of the test set."""
    batch_size: int = 64
    """Recordings in a batch."""
    hidden_size: int = 24
    """Hidden units of the LSTM, in each direction and layer."""
    learning_rate: float = 5e-3
    """Of Adam, in both frameworks."""
    seed: int = 0
    """Of weights, recordings and batches."""
    out: Path = Path("runs/port_from_torch")
    """Folder for the checkpoints and the figure."""

    def check(self) -> None:
        """Raise ValueError for options that cannot run. Make the folder."""
        require_counts(self, "epochs", "more_epochs", "recordings", "batch_size", "hidden_size")
        require(self, self.seed >= 0, "seed", "0 or more")
        require_rate(self)
        require_torch("The model to port")
        make_folder(self.out)


def waves(count: int, noise: float, drift: float, seed: data.Seed) -> tuple[list, np.ndarray]:
    """Recordings (T_n, 1) of 20 to 40 steps, and the form of each, 0 to 3."""
    rng = np.random.default_rng(seed)
    forms = rng.integers(0, len(FORMS), count)
    recordings = []
    for form in forms:
        steps = np.arange(rng.integers(20, 40, endpoint=True))
        phase = (rng.uniform() + steps * rng.uniform(0.06, 0.14)) % 1.0
        x = [
            np.sin(2 * np.pi * phase),
            np.sign(0.5 - phase),
            4 * np.abs(phase - 0.5) - 1,
            2 * phase - 1,
        ][form]
        x = x + drift * np.linspace(-1, 1, len(x)) * rng.choice([-1, 1])
        x = x + noise * rng.standard_normal(len(x))
        recordings.append(x[:, None].astype(np.float32))
    return recordings, forms.astype(np.int32)


class Recordings:
    """A training and a test set under one condition."""

    def __init__(self, options: Options, *, noise: float, drift: float, seed: data.Seed):
        self.batch_size = options.batch_size
        self.seed = seed
        self.training = waves(options.recordings, noise, drift, (*seed, 0))
        self.test = self.whole(*waves(options.recordings, noise, drift, (*seed, 1)))

    def epoch(self, number: int) -> list[Batch]:
        return data.batches(*self.training, self.batch_size, seed=(*self.seed, 2, number))

    @staticmethod
    def whole(sequences: Sequence[np.ndarray], labels: np.ndarray) -> list[Batch]:
        """One batch of all sequences."""
        return data.batches(sequences, labels, len(sequences))


def main(options: Options) -> None:
    import torch

    import torch_ref.training
    from torch_ref.models import SpeakerClassifier

    # The products are too small to be worth several threads, and on a busy machine threads that
    # wait for each other take a hundred times as long.
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    studio = Recordings(options, noise=0.3, drift=0.0, seed=(options.seed, 0))
    field = Recordings(options, noise=0.3, drift=1.5, seed=(options.seed, 1))
    sizes = (1, options.hidden_size, len(FORMS), 2)
    print(f"Which form has the wave: {', '.join(FORMS)}? 20 to 40 steps, noise 0.3.")
    print("A bidirectional LSTM of two layers.\n\nTraining in PyTorch")
    theirs = SpeakerClassifier(*sizes)
    adam = torch.optim.Adam(theirs.parameters(), lr=options.learning_rate)
    scores = train(torch_ref.training, theirs, adam, studio, options.epochs)

    print("\nFrom PyTorch to JAX")
    ported = options.out / "from_torch.safetensors"
    save_torch(theirs, ported)
    ours = models.SpeakerClassifier(*sizes, rngs=nnx.Rngs(options.seed))
    jaxrnn.load_safetensors(ours, ported)
    print(f"  {ported} read into JAX: {count(ours):,} parameters")
    same = side_by_side(theirs, ours, studio.test)

    print("\nTraining further in JAX, on recordings that drift by 1.5 up or down")
    optimizer = nnx.Optimizer(ours, optax.adam(options.learning_rate), wrt=nnx.Param)
    before = accuracy(training, ours, field.test)
    print(f"  before: {before:.1%} of the new test recordings right")
    more = train(training, ours, optimizer, field, options.more_epochs)

    print("\nFrom JAX to PyTorch")
    written = options.out / "from_jax.safetensors"
    jaxrnn.save_safetensors(ours, written)
    returned = SpeakerClassifier(*sizes)
    load_torch(returned, written)
    print(f"  {written} read into PyTorch")
    side_by_side(returned, ours, field.test)

    figure_path = options.out / "port_from_torch.png"
    logits = [
        torch_ref.training.predict(returned, field.test).ravel(),
        training.predict(ours, field.test).ravel(),
    ]
    draw(figure_path, scores, same, [before, *more], logits)
    print_written(ported, written, figure_path)


def save_torch(model: Any, path: Path) -> None:
    """Save a state_dict as a PyTorch user does, without jaxrnn."""
    from safetensors.torch import save

    write_whole(path, save(model.state_dict()))


def load_torch(model: Any, path: Path) -> None:
    from safetensors.torch import load_file

    model.load_state_dict(load_file(path))


def count(model: nnx.Module) -> int:
    return sum(array.size for array in jaxrnn.state_dict(model).values())


def train(
    functions: Any, model: Any, optimizer: Any, recordings: Recordings, epochs: int
) -> list[float]:
    """The accuracy on the test set after each epoch; `functions` are those of one framework."""
    accuracies = []
    with tqdm(total=epochs, unit="epoch", disable=None) as bar:
        for number in range(epochs):
            losses = [
                float(functions.train_step(model, optimizer, batch)["loss"])
                for batch in recordings.epoch(number)
            ]
            accuracies.append(accuracy(functions, model, recordings.test))
            bar.update()
            if number + 1 == epochs or (number + 1) % -(-epochs // LINES) == 0:
                bar.write(
                    f"  epoch {number + 1:>3}   training loss {np.mean(losses):.4f} nats   "
                    f"test accuracy {accuracies[-1]:.1%}"
                )
    return accuracies


def accuracy(functions: Any, model: Any, batches: Sequence[Batch]) -> float:
    return functions.evaluate(model, batches, metrics={"accuracy": functions.accuracy})["accuracy"]


def side_by_side(theirs: Any, ours: nnx.Module, test: Sequence[Batch]) -> float:
    """Print the logits of three recordings and the largest difference; return JAX's accuracy."""
    import torch_ref.training

    logits = torch_ref.training.predict(theirs, test), training.predict(ours, test)
    print(f"  {'logits':<13}{'PyTorch':<40}JAX")
    for row in range(min(3, len(logits[0]))):
        shown = ["".join(f"{value:>9.4f}" for value in side[row]) for side in logits]
        print(f"  recording {row}" + "    ".join(shown))
    apart = np.abs(logits[0] - logits[1]).max()
    decisions = int((logits[0].argmax(-1) != logits[1].argmax(-1)).sum())
    scores = accuracy(torch_ref.training, theirs, test), accuracy(training, ours, test)
    print(f"  logits apart, at most    {apart:.1e}, of {logits[0].size:,}")
    print(f"  other decisions          {decisions} of {len(logits[0])}")
    print(f"  accuracy                 {' and '.join(f'{score:.1%}' for score in scores)}")
    return scores[1]


def draw(
    path: Path, first: list[float], ported: float, then: list[float], logits: Sequence[np.ndarray]
) -> None:
    """A panel for each set of recordings, as their accuracies say nothing of each other."""
    theirs, ours = logits
    apart = np.abs(theirs - ours)
    title = (
        f"The port keeps the accuracy: {first[-1]:.1%} in PyTorch, {ported:.1%} in JAX; "
        f"and back, logits differ by {apart.max():.0e} at most"
    )
    figure, (left, middle, right) = new_figure(3, title)
    epochs = np.arange(1, len(first) + 1)
    left.plot(epochs, 100 * np.array(first), ".-", color="tab:orange", label="trained in PyTorch")
    marks = {"marker": "o", "markersize": 11, "fillstyle": "none", "linestyle": ""}
    left.plot(epochs[-1], 100 * ported, color="tab:blue", label="read into JAX", **marks)
    left.set(title="The first recordings: PyTorch, then JAX")
    epochs = np.arange(len(then))
    middle.plot(epochs, 100 * np.array(then), ".-", color="tab:blue", label="trained in JAX")
    middle.set(title="Other recordings, which drift: JAX")
    for axis in (left, middle):
        axis.set(
            xlabel="epoch (passes over the training set)",
            ylabel="test recordings classified correctly (%)",
            ylim=(0, 102),
        )
        axis.legend(loc="lower right")
    right.plot(theirs, np.where(apart > 0, apart, np.nan), ".", color="black", markersize=3)
    right.set(
        title="Read back into PyTorch: differences of logits",
        xlabel="logit in PyTorch",
        ylabel="|PyTorch - JAX|",
        yscale="log",
    )
    for axis in (left, middle, right):
        axis.grid(alpha=0.3)
    save_figure(figure, path)


if __name__ == "__main__":
    launch(Options, main)
