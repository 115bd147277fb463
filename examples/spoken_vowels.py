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
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optax
from flax import nnx

from datasets.japanese_vowels import CHANNELS, SPEAKERS, Task, Utterances
from jaxrnn import training
from jaxrnn.data import Batch
from support.options import (
    launch,
    require,
    require_counts,
    require_module,
    require_rate,
    require_torch,
    tqdm,
)
from support.output import make_folder
from support.runs import begin, fit
from support.speaker_report import (
    print_accuracy,
    print_agreement,
    print_parity,
    print_time,
    save,
    tell,
)
from support.speakers import LOSS, SHAPES, WEIGHT_DECAY, Run, Side, held_back, jax_side, torch_side

SAVE_EPOCHS = 10  # between checkpoints


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


if __name__ == "__main__":
    launch(Options, main)
