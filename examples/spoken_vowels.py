"""A bidirectional LSTM that recognises speakers, trained in JAX and in PyTorch side by side.

    python examples/spoken_vowels.py

Both frameworks start from the same weights and see the same batches, so they differ by rounding
alone. The regularisation is the same too: weight decay, smoothed labels, and noise drawn by NumPy.
There is no dropout, whose masks would differ.

The settings were chosen by cross-validation within the 270 training utterances: five folds of six
consecutive utterances of each speaker, two seeds. Noise, offset and smoothed labels each removed
errors; hidden size, layers and weight decay made little difference. A learning rate of 5e-3 made as
few errors as 3e-3, but training then amplifies rounding until the frameworks differ visibly; 1e-3
made more. The test set is scored once, after training. A part of the training set is held out to
show the progress: it is never trained on, and no decision depends on it.

JAX is trained by `jaxrnn.training.fit`, which keeps metrics and checkpoints in a folder for each
seed. A run that is killed and restarted with --resume ends with the same weights, bit for bit.
PyTorch has a loop of its own without checkpoints, and starts from the beginning.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optax
from flax import nnx

from datasets.japanese_vowels import CHANNELS, SPEAKERS, Task, Utterances
from jaxrnn import interchange, models, training
from jaxrnn.data import Batch
from support.curves import draw
from support.options import (
    launch,
    require,
    require_counts,
    require_module,
    require_rate,
    require_torch,
    tqdm,
)
from support.output import make_folder, print_written
from support.runs import METRICS, begin, fit

WEIGHT_DECAY = 0.01
SMOOTHING = 0.1
LOSS = functools.partial(training.cross_entropy, smoothing=SMOOTHING)  # one for all seeds
SCORES = ("loss", "accuracy")
SHAPES = 2  # of batches: full ones, and the last one
SAVE_EPOCHS = 10  # between checkpoints
LINES = 10  # printed of each training


@dataclasses.dataclass(frozen=True)
class Options:
    """Train a speaker classifier on the JapaneseVowels recordings, in JAX and in PyTorch."""

    seeds: int = 1
    """The number of runs, each with its own initial weights, split, batches and noise."""
    epochs: int = 60
    """Passes over the training set."""
    batch_size: int = 27
    """Utterances in a batch."""
    hidden_size: int = 64
    """Hidden units of the LSTM, in each direction."""
    layers: int = 1
    """Stacked layers of the LSTM."""
    learning_rate: float = 3e-3
    """Of AdamW at the start; it falls to 0 along a cosine."""
    noise: float = 0.6
    """Added to every input value in training: its standard deviation over the channel's."""
    offset: float = 0.4
    """Like noise, but the same at all steps of an utterance, as another microphone would."""
    validation: float = 0.1
    """Share of the training set to keep back and watch the training by."""
    resume: bool = False
    """Go on where a killed run with the same options stood. Without it a new run replaces it."""
    out: Path = Path("runs/spoken_vowels")
    """Folder for metrics, checkpoints, the weights and the figure."""
    torch: bool = True
    """Train the PyTorch twin too. Without it PyTorch need not be installed."""

    def check(self) -> None:
        """Raise ValueError for options that cannot run. Make the folder."""
        require_counts(self, "seeds", "epochs", "batch_size", "hidden_size", "layers")
        for name in ("noise", "offset"):
            require(self, 0 <= getattr(self, name) < float("inf"), name, "0 or more")
        require_rate(self)
        require(self, 0.02 <= self.validation <= 0.9, "validation", "between 0.02 and 0.9")
        require_module("sktime", "The data")
        if self.torch:
            require_torch("The twin", ", or pass --no-torch")
        make_folder(self.out)


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


def jax_side(options: Options, seed: int, tx: optax.GradientTransformation) -> Side:
    model = new_model(options, seed)
    return Side("JAX", model, nnx.Optimizer(model, tx, wrt=nnx.Param), training, LOSS)


def torch_side(options: Options, seed: int, steps: int) -> Side:
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


def new_model(options: Options, seed: int) -> models.SpeakerClassifier:
    return models.SpeakerClassifier(
        CHANNELS, options.hidden_size, SPEAKERS, options.layers, rngs=nnx.Rngs(seed)
    )


def new_twin(options: Options, weights: Mapping[str, Any]) -> Any:
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


def main(options: Options) -> None:
    recordings, tests = Utterances.load("train"), Utterances.load("test")
    print(f"JapaneseVowels: which of {SPEAKERS} men says /ae/? {CHANNELS} channels at each step.")
    print(f"  training set   {recordings}, {options.validation:.0%} of them for validation")
    print(f"  test set       {tests}, scored once, at the end")
    if options.torch:
        print_parity(options, recordings)

    tasks = [
        Task(recordings, tests, validation=options.validation, seed=seed)
        for seed in range(options.seeds)
    ]
    steps = options.epochs * -(-len(tasks[0].training) // options.batch_size)
    # One for all seeds, as a new one would compile anew.
    tx = optax.adamw(
        optax.cosine_decay_schedule(options.learning_rate, steps), weight_decay=WEIGHT_DECAY
    )
    folder = begin(options, "spoken_vowels")
    compilation = Compilation()
    results = []
    sides_each = 1 + options.torch
    with tqdm(total=options.seeds * sides_each * options.epochs, unit="epoch", disable=None) as bar:
        for task in tasks:
            sides = [jax_side(options, task.seed, tx)]
            if options.torch:
                sides.append(torch_side(options, task.seed, steps))
            compilation.ahead(sides[0], options, task)
            runs = [Run(side) for side in sides]
            train(options, task, runs, folder / f"seed{task.seed}", bar)
            tell(task, runs, bar)
            results.append(runs)
    print_accuracy(results, tests)
    if options.torch:
        print_agreement(results)
    print_time(results, compilation)
    save(options, tasks, results, folder)


@dataclasses.dataclass
class Compilation:
    """The seconds that JAX takes to compile `train`'s programs, once for all seeds."""

    seconds: float = 0.0
    steps: int = 0  # shapes of the training step

    def ahead(self, side: Side, options: Options, task: Task) -> None:
        """Compile it, by running it on copies."""
        model, optimizer = nnx.clone((side.model, side.optimizer))
        batches = epoch(options, task, 0)
        one_of_each_shape = list({batch.inputs.shape: batch for batch in batches}.values())
        start = time.perf_counter()
        history = training.fit(
            model,
            optimizer,
            lambda _: one_of_each_shape,
            epochs=1,
            loss=LOSS,
            metrics=side.metrics,
            validation=held_back(task.validation),
            most_compilations=SHAPES,
        )
        dataclasses.replace(side, model=model).evaluate(held_back(task.tests))
        self.seconds += time.perf_counter() - start
        self.steps += history.compilations


def epoch(options: Options, task: Task, number: int) -> list[Batch]:
    return task.epoch(number, options.batch_size, noise=options.noise, offset=options.offset)


def held_back(utterances: Utterances) -> list[Batch]:
    """All of them in one batch."""
    return utterances.batches(len(utterances))


def train(options: Options, task: Task, runs: Sequence[Run], folder: Path, bar: tqdm) -> None:
    """Train all sides on the same batches, one after the other, and test them."""
    validation = held_back(task.validation)
    ours, *others = runs
    fit_jax(options, task, ours, validation, folder, bar)
    for run in others:
        bar.set_description(f"{run.side.name}, seed {task.seed}")
        for number in range(options.epochs):
            run.epoch(epoch(options, task, number), validation)
            bar.update()
    for run in runs:
        run.test(held_back(task.tests))


def fit_jax(
    options: Options,
    task: Task,
    run: Run,
    validation: Sequence[Batch],
    folder: Path,
    bar: tqdm,
) -> None:
    """JAX's side, kept in a folder, and resumed from it."""
    begun = stepped = 0.0

    def batches(number: int) -> list[Batch]:
        nonlocal begun
        drawn = epoch(options, task, number)
        begun = time.perf_counter()
        return drawn

    def watch(record: dict[str, Any]) -> None:
        """Times each epoch's steps, without its validation and its checkpoint."""
        nonlocal stepped
        if "loss" in record:  # of a step
            stepped = time.perf_counter()
        else:
            run.seconds.append(stepped - begun)
            bar.update()

    bar.set_description(f"{run.side.name}, seed {task.seed}")
    history = fit(
        folder,
        options.resume,
        run.side.model,
        run.side.optimizer,
        batches,
        epochs=options.epochs,
        loss=LOSS,
        metrics=run.side.metrics,
        validation=validation,
        save_epochs=SAVE_EPOCHS,
        most_compilations=SHAPES,
        log=watch,
    )
    bar.update(options.epochs - len(run.seconds))  # those before a resumption
    run.keep(history)


def tell(task: Task, runs: Sequence[Run], bar: tqdm) -> None:
    width = 20 // len(runs)
    titles = [
        f"{title:>22}" for title in ("training loss", "validation loss", "validation accuracy")
    ]
    names = "  " + "".join(f"{run.side.name:>{width}}" for run in runs)
    bar.write(
        f"\nTraining, seed {task.seed} (losses in nats; in training with noise and smoothed labels)"
    )
    bar.write("       " + "".join(titles))
    bar.write("  epoch" + names * 3)
    epochs = len(runs[0].steps)
    for number in range(epochs):
        if number + 1 == epochs or (number + 1) % -(-epochs // LINES) == 0:
            line = f"{number + 1:>7}"
            line += "  " + "".join(f"{run.steps[number][:, 0].mean():>{width}.4f}" for run in runs)
            line += "  " + "".join(f"{run.validation[number][0]:>{width}.4f}" for run in runs)
            line += "  " + "".join(f"{run.validation[number][1]:>{width}.1%}" for run in runs)
            bar.write(line)


def print_parity(options: Options, recordings: Utterances) -> None:
    """Compare outputs, loss and every gradient of the untrained models on recordings."""
    from jaxrnn.testing import compare

    model = new_model(options, seed=0)
    twin = new_twin(options, interchange.state_dict(model))
    batch = recordings.batches(options.batch_size, seed=0)[0]
    steps = batch.inputs.shape[1]
    for dtype in ("float64", "float32"):
        report = compare(twin, model, batch.inputs, lengths=batch.lengths, dtype=dtype, steps=steps)
        print(f"\n{report}")


def print_accuracy(results: Sequence[Sequence[Run]], tests: Utterances) -> None:
    print(f"\nAccuracy on the test set, {len(tests)} utterances")
    print("         " + "".join(f"{run.side.name:>10}" for run in results[0]))
    for seed, runs in enumerate(results):
        print(f"  seed {seed:<2}" + "".join(f"{run.accuracy:>10.2%}" for run in runs))
    if len(results) > 1:
        sides = zip(*results, strict=True)
        medians = [statistics.median(run.accuracy for run in runs) for runs in sides]
        print("  median " + "".join(f"{median:>10.2%}" for median in medians))


def print_agreement(results: Sequence[Sequence[Run]]) -> None:
    """The largest differences that rounding has caused, over all seeds."""
    apart = np.stack([losses_apart(*runs) for runs in results])
    ours, theirs = (np.stack([run.logits for run in side]) for side in zip(*results, strict=True))
    logits = np.abs(ours - theirs).max()
    decisions = (ours.argmax(-1) != theirs.argmax(-1)).sum()
    print("\nLargest differences of JAX and PyTorch after training in float32")
    for name, value in {
        "loss of a batch, first epoch": f"{apart[:, 0].max():.1e}",
        "loss of a batch, last epoch": f"{apart[:, -1].max():.1e}",
        "loss of a batch, any epoch": f"{apart.max():.1e}",
        "logits of the test set": f"{logits:.1e}, where the largest is {np.abs(theirs).max():.1f}",
        "speakers of the test set": f"{decisions} of {ours[..., 0].size} not the same",
    }.items():
        print(f"  {name:<30}{value}")
    print("  They come from rounding alone, which every step of training amplifies.")


def losses_apart(ours: Run, theirs: Run) -> np.ndarray:
    """The largest difference of a batch's loss in each epoch, (epochs,)."""
    losses = [np.stack(run.steps)[..., 0] for run in (ours, theirs)]
    return np.abs(losses[0] - losses[1]).max(axis=1)


def print_time(results: Sequence[Sequence[Run]], compilation: Compilation) -> None:
    print("\nTime")
    first = f"{compilation.seconds:.1f} s to compile once, then "
    for runs in zip(*results, strict=True):
        seconds = [second for run in runs for second in run.seconds]
        told = (
            f"{1000 * statistics.median(seconds):.0f} ms an epoch (median)"
            if seconds
            else ("no epoch was left to train")
        )
        print(f"  {runs[0].side.name:<9}{first}{told}")
        first = ""
    print(f"  {compilation.steps} compilations of JAX's training step, {SHAPES} at most")


def save(
    options: Options, tasks: Sequence[Task], results: Sequence[Sequence[Run]], folder: Path
) -> None:
    """Write weights and figure, and read the weights back into every framework there is."""
    written = []
    print("\nWeights in a file, read back")
    for task, runs in zip(tasks, results, strict=True):
        path = options.out / f"weights_seed{task.seed}.safetensors"
        interchange.save_safetensors(runs[0].side.model, path)
        print(read_back(options, path, task, runs))
        written += [folder / f"seed{task.seed}" / METRICS, path]
    path = options.out / "curves.png"
    runs = results[0]
    accuracies = " and ".join(f"{run.accuracy:.1%} in {run.side.name}" for run in runs)
    draw(
        path,
        f"The same training in {' and '.join(run.side.name for run in runs)}: of {SPEAKERS} "
        f"speakers' test utterances {accuracies} are right (seed {tasks[0].seed})",
        {
            run.side.name: {
                "training (noise added)": np.stack(run.steps).mean(axis=1),
                "validation": np.stack(run.validation),
            }
            for run in runs
        },
        losses_apart(*runs) if options.torch else None,
    )
    print_written(*written, path)


def read_back(options: Options, path: Path, task: Task, runs: Sequence[Run]) -> str:
    """Check what the weights in the file predict in new models; raise where it differs."""
    tests, logits = held_back(task.tests), runs[0].logits
    model = new_model(options, seed=task.seed + 1)
    interchange.load_safetensors(model, path)
    if not np.array_equal(training.predict(model, tests), logits):
        raise RuntimeError(f"{path} read back into JAX predicts something else.")
    told = f"  seed {task.seed}, into JAX      the same test logits, bit for bit"
    if options.torch:
        import safetensors.torch

        twin = new_twin(options, safetensors.torch.load_file(path))
        theirs = dataclasses.replace(runs[1].side, model=twin).predict(tests)
        if not np.array_equal(theirs.argmax(-1), logits.argmax(-1)):
            raise RuntimeError(f"{path} read into PyTorch predicts other speakers.")
        told += (
            f"\n  seed {task.seed}, into PyTorch  the same speakers, "
            f"test logits within {np.abs(theirs - logits).max():.1e}"
        )
    return told


if __name__ == "__main__":
    launch(Options, main)
