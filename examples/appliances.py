"""A bidirectional GRU or LSTM that names an appliance from the current it draws.

    python examples/appliances.py

The 1,074 traces of PLAID have 100 to 1,344 steps. Padded to one length, a batch would consist
mostly of padding, so minibatches are bucketed by length. One step of the network is a frame of ten
samples, divided by the trace's own level and compressed, because levels differ by eight powers of
ten; the level is one more feature. In training the frames begin at another sample in each epoch. A
fifth of the training traces is held out for validation: training stops when their loss no longer
falls, and the best weights are used. The test traces are scored once for each seed, at the end.

The settings were chosen by the validation traces of the first two seeds. Dividing each trace by its
own median removed most errors. Frames of 5 or 20 samples, another compression of the peaks, noise
and less dropout made little difference.

Each seed has a folder with its metrics and checkpoints. A run that is killed and restarted with
--resume ends with the same weights, bit for bit.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
from flax import nnx

import jaxrnn
from datasets.plaid import APPLIANCES, Task, Traces, labels, nearest_neighbour
from jaxrnn import training
from support.options import launch, require, require_counts, require_module, require_rate, tqdm
from support.output import make_folder, new_figure, print_written, save_figure
from support.runs import METRICS, RESUMED, begin, fit

CELLS = {"GRU": jaxrnn.GRU, "LSTM": jaxrnn.LSTM}
WEIGHT_DECAY = 0.01
MAX_NORM = 1.0
NEIGHBOUR_STEPS = 500  # the length of the nearest neighbour's traces
SAVE_EPOCHS = 5  # between checkpoints
# From the archive's own table of its data sets, which has errors: accuracies are 1 less them.
PUBLISHED = (
    "Published, on the same split: 1-NN with DTW 83.4% (learnt window), 83.6% (no window),\n"
    "1-NN Euclidean 52.3%. Dau and others, The UCR Time Series Archive, 2018: errors of 0.1657,\n"
    "0.1639 and 0.4767 in its DataSummary.csv."
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Train an appliance classifier on the PLAID traces; compare it with a nearest neighbour."""

    cell: Literal["GRU", "LSTM"] = "GRU"
    """The recurrent layer."""
    seeds: int = 5
    """Trainings, each with its own weights, validation split and batches."""
    epochs: int = 80
    """Passes over the training traces, at most."""
    patience: int = 20
    """Epochs without a lower validation loss that end a training."""
    frame: int = 10
    """Samples in one step of the network."""
    hidden_size: int = 64
    """Hidden units, in each direction."""
    layers: int = 1
    """Stacked layers."""
    dropout: float = 0.3
    """Dropout rate of the averaged outputs."""
    batch_size: int = 32
    """Traces in a batch."""
    buckets: int = 4
    """Numbers of steps to pad to. Each costs at most two compilations of the training step."""
    learning_rate: float = 5e-3
    """Of AdamW at the start; it falls to 0 along a cosine."""
    validation: float = 0.2
    """Share of the training traces that is held out to decide when to stop."""
    resume: bool = False
    """Continue a killed run with the same options. Without it a new run replaces the old one."""
    out: Path = Path("runs/appliances")
    """Folder for metrics, checkpoints and the figure."""

    def check(self) -> None:
        """Raise ValueError for options that cannot run. Make the folder."""
        require_counts(self, "seeds", "epochs", "patience", "hidden_size", "layers")
        require_counts(self, "batch_size", "buckets")
        require(self, 1 <= self.frame <= 50, "frame", "between 1 and 50")
        require(self, 0 <= self.dropout < 1, "dropout", "0 or more and below 1")
        require(self, 0.02 <= self.validation <= 0.9, "validation", "between 0.02 and 0.9")
        require_rate(self)
        require_module("sktime", "The data")
        make_folder(self.out)


class Classifier(nnx.Module):
    """A bidirectional GRU or LSTM, its outputs averaged over the true steps, one linear layer."""

    def __init__(self, options: Options, inputs: int, *, rngs: nnx.Rngs):
        self.rnn = CELLS[options.cell](
            inputs,
            options.hidden_size,
            options.layers,
            batch_first=True,
            bidirectional=True,
            rngs=rngs,
        )
        self.dropout = nnx.Dropout(options.dropout, rngs=rngs)
        self.fc = nnx.Linear(2 * options.hidden_size, len(APPLIANCES), rngs=rngs)

    def __call__(self, x: jax.Array, lengths: jax.Array) -> jax.Array:
        """Logits (B, 11) from x (B, T, I) and lengths (B,)."""
        output, _ = self.rnn(x, lengths=lengths)
        mean = output.sum(axis=1) / lengths[:, None].astype(output.dtype)
        return self.fc(self.dropout(mean))


@dataclasses.dataclass
class Result:
    """One seed, trained and tested."""

    history: training.History
    appliances: np.ndarray  # of the test traces, in the order of their batches
    told: np.ndarray  # the network's predictions
    seconds: float

    @property
    def accuracy(self) -> float:
        """On the test traces."""
        return float((self.told == self.appliances).mean())

    @property
    def validation(self) -> float:
        """The accuracy on the validation traces, with the best weights."""
        return float(self.history["validation_accuracy"][self.history.best])


def main(options: Options) -> None:
    traces, tests = Traces.load("train"), Traces.load("test")
    tasks = [
        Task(
            traces,
            frame=options.frame,
            buckets=options.buckets,
            validation=options.validation,
            seed=seed,
        )
        for seed in range(options.seeds)
    ]
    print(f"PLAID: which of {len(APPLIANCES)} kinds of appliances is it?")
    print(f"  training set   {traces}, {options.validation:.0%} of them for validation")
    print(f"  test set       {tests}, scored once for each seed, at the end")
    print(f"  one step       {options.frame} samples and the trace's level")
    print(f"  buckets        padded to {', '.join(map(str, tasks[0].edges))} steps")
    folder = begin(options, "appliances")
    results = train(options, tasks, tests, folder)
    print_results(options, results)
    neighbour = nearest_neighbour(traces, tests, NEIGHBOUR_STEPS) == tests.appliances
    print_comparison(options, results, float(neighbour.mean()), len(tests))
    path = options.out / "confusion.png"
    draw(path, options, results)
    print_written(*(folder / f"seed{seed}" / METRICS for seed in range(options.seeds)), path)


def train(options: Options, tasks: Sequence[Task], tests: Traces, folder: Path) -> list[Result]:
    steps = options.epochs * len(tasks[0].epoch(0, options.batch_size))
    # One for all seeds, as a new one would compile anew.
    tx = optax.chain(
        training.clip_grad_norm(MAX_NORM),
        optax.adamw(
            optax.cosine_decay_schedule(options.learning_rate, steps), weight_decay=WEIGHT_DECAY
        ),
    )
    with tqdm(total=options.seeds * options.epochs, unit="epoch", disable=None) as bar:
        results = []
        for task in tasks:
            results.append(train_one(options, task, tests, folder / f"seed{task.seed}", tx, bar))
            bar.n = len(results) * options.epochs  # it may have stopped early
            bar.refresh()
    return results


def train_one(
    options: Options,
    task: Task,
    tests: Traces,
    folder: Path,
    tx: optax.GradientTransformation,
    bar: tqdm,
) -> Result:
    model = Classifier(options, task.framing.inputs, rngs=nnx.Rngs(task.seed))

    def show(record: dict[str, Any]) -> None:
        if "validation_loss" in record:
            bar.set_description(f"seed {task.seed}, {record['validation_accuracy']:.0%} right")
            bar.update()

    start = time.perf_counter()
    history = fit(
        folder,
        options.resume,
        model,
        nnx.Optimizer(model, tx, wrt=nnx.Param),
        lambda number: task.epoch(number, options.batch_size),
        epochs=options.epochs,
        metrics={"accuracy": training.accuracy},
        validation=task.validation,
        patience=options.patience,
        save_epochs=SAVE_EPOCHS,
        most_compilations=2 * len(task.edges),
        log=show,
    )
    seconds = time.perf_counter() - start
    scored = task.batches(tests)
    return Result(history, labels(scored), training.predict(model, scored).argmax(-1), seconds)


def print_results(options: Options, results: Sequence[Result]) -> None:
    print(
        f"\n{options.cell}, {options.hidden_size} hidden units in each direction, "
        f"{options.epochs} epochs at most"
    )
    print("          epochs   best   validation      test   compilations   seconds")
    for seed, result in enumerate(results):
        epochs = len(result.history["validation_loss"])
        print(
            f"  seed {seed:<2}{epochs:>7}{result.history.best + 1:>7}{result.validation:>13.1%}"
            f"{result.accuracy:>10.1%}{result.history.compilations:>15}{result.seconds:>10.1f}"
        )
    if options.resume:
        print(f"  {RESUMED}")
    print(
        "  Compilations of the training step: each seed may need two for each bucket, one for full"
    )
    print(f"  batches and one for what is left over, so {2 * options.buckets} at most.")


def print_comparison(
    options: Options, results: Sequence[Result], neighbour: float, count: int
) -> None:
    accuracies = np.array([result.accuracy for result in results])
    print(f"\nAccuracy on the test set, {count} traces")
    print(
        f"  {options.cell:<40}{accuracies.mean():>7.1%}   mean of {len(results)} seeds, "
        f"{accuracies.min():.1%} to {accuracies.max():.1%}"
    )
    print(f"  {'one nearest neighbour, Euclidean':<40}{neighbour:>7.1%}   ", end="")
    print(f"as recorded, stretched to {NEIGHBOUR_STEPS} steps")
    better = f"{(accuracies > neighbour).sum()} of {len(results)} seeds are better"
    print(f"  Against the nearest neighbour: {better}.\n{PUBLISHED}")


def draw(path: Path, options: Options, results: Sequence[Result]) -> None:
    """The confusion matrix of all seeds together, each row in percent of its appliance's traces."""
    counts = np.zeros((len(APPLIANCES), len(APPLIANCES)))
    for result in results:
        np.add.at(counts, (result.appliances, result.told), 1)
    sizes = counts.sum(axis=1) / len(results)
    shares = 100 * counts / counts.sum(axis=1, keepdims=True)
    accuracy = np.mean([result.accuracy for result in results])
    title = f"A {options.cell} names the appliance of {accuracy:.0%} of PLAID's test traces"
    figure, axis = new_figure(1, f"{title} (mean of {len(results)} seeds)", size=(8.6, 7.4))
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    for row, column in np.argwhere(shares >= 0.5):
        share = shares[row, column]
        colour = "white" if share > 50 else "black"
        axis.text(column, row, f"{share:.0f}", ha="center", va="center", color=colour, fontsize=8)
    places = range(len(APPLIANCES))
    names = [f"{name} ({size:.0f})" for name, size in zip(APPLIANCES, sizes, strict=True)]
    axis.set_yticks(places, names)
    axis.set_xticks(places, APPLIANCES, rotation=45, ha="right", rotation_mode="anchor")
    axis.set(ylabel="appliance (test traces)", xlabel="prediction")
    figure.colorbar(image, ax=axis, label="share of the appliance's traces (%)")
    save_figure(figure, path)


if __name__ == "__main__":
    launch(Options, main)
