"""Decide whether the sum of a sequence of tokens is odd, learnt by a curriculum.

    python examples/train_classifier.py
    python examples/train_classifier.py --as-written --no-solve

A model is trained by a curriculum (`support/curriculum.py`) until it gets all of the notebook's 200
validation sequences right. They are never trained on, no decision depends on them, and a run is
scored on them once, at its end. A killed run continues with --resume to the same bits.

`--as-written` first trains as the notebook does: an embedding, an LSTM of two layers, 800 padded
sequences in one batch, 30 steps of Adam, clipped gradients, and the state after the padding. The
label is the sum modulo 2, so an odd sum is 1; a comment in the notebook says the opposite. PyTorch
draws the sequences, the initial weights and the masks of its dropout as in the notebook. JAX starts
from the same weights but draws other masks, so there are two trainings: with dropout, where the
frameworks differ as two runs do, and without, where they differ by rounding.
"""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optax
from flax import nnx

from jaxrnn import data, interchange, models, training
from jaxrnn.data import Batch
from support import curriculum
from support.options import launch, require, require_counts, require_rate, require_torch, tqdm
from support.output import make_folder, new_figure, print_written, save_figure
from support.runs import RESUMED, begin

VOCABULARY = 50
SIZES = (VOCABULARY, 32, 64, 2, 2)  # the notebook's: embedding, hidden units, classes, layers
LEARNING_RATE = 1e-3
MAX_NORM = 1.0
DROPOUT = 0.3
LINES = 6  # printed while training
PARTS = ("training", "validation")

Scores = dict[str, np.ndarray]  # part -> (epochs, 2): loss and accuracy


@dataclasses.dataclass(frozen=True)
class Options:
    """Train a classifier of sums modulo 2 until it works, or as the notebook does."""

    as_written: bool = False
    """Train as the notebook does first, in both frameworks, which ends no better than guessing."""
    epochs: int = 30
    """As written: steps, each on the whole training set."""
    solve: bool = True
    """Train by a curriculum until all validation sequences are right."""
    cells: tuple[Literal["LSTM", "GRU", "RNN"], ...] = ("LSTM", "GRU", "RNN")
    """To solve it: the recurrent layers."""
    seeds: int = 3
    """To solve it: trainings of each cell."""
    stages: tuple[int, ...] = (2, 5, 10, 20)
    """To solve it: the longest sequence of each stage, rising to 20. Only 20: no curriculum."""
    max_steps: int = 2000
    """To solve it: steps at most, for each cell and seed."""
    batch_size: int = 256
    """To solve it: new sequences in each step."""
    hidden_size: int = 64
    """To solve it: hidden units of the cell."""
    learning_rate: float = 5e-3
    """To solve it: of Adam."""
    resume: bool = False
    """To solve it: continue a killed run with the same options. Without it a new run replaces the
    old one."""
    out: Path = Path("runs/train_classifier")
    """Folder for the figures, and to solve it for metrics and checkpoints."""

    def check(self) -> None:
        """Raise ValueError for options that cannot run. Make the folder."""
        require_counts(self, "epochs", "seeds", "max_steps", "batch_size", "hidden_size")
        rising = sorted({0, *self.stages}) == [0, *self.stages]
        once = len({*self.cells}) == len(self.cells) > 0
        require(self, once, "cells", "one or more, each once")
        rising = rising and self.stages[-1:] == (20,)
        require(self, rising, "stages", "rising from 1 or more to 20")
        require(self, self.solve or self.as_written, "solve", "on without --as-written")
        require_rate(self)
        require_torch("The data")
        make_folder(self.out)


def main(options: Options) -> None:
    import torch

    import torch_ref.data
    import torch_ref.models

    # First, as it may refuse the folder.
    folder = begin(options, "train_classifier") if options.solve else None
    # The products are too small to be worth several threads, and on a busy machine threads that
    # wait for each other take a hundred times as long.
    torch.set_num_threads(1)
    sequences, labels = torch_ref.data.create_synthetic_sequences(VOCABULARY)
    twin = torch_ref.models.SequenceClassifier(*SIZES)  # from the generator's state after the data
    parts = torch_ref.data.split_in_order(sequences, labels)
    train, validation = (whole(*part) for part in parts)
    ones, count = int(validation.labels.sum()), len(validation.labels)
    print(f"Is the sum odd? Tokens 1 to {VOCABULARY - 1}, sequences of 5 to 20")
    print(f"  training      {len(train.labels)}, of which {train.labels.sum()} are odd")
    print(f"  validation    {count}, of which {ones} are odd")
    print(f"  parameters    {sum(array.numel() for array in twin.parameters()):,}")

    written = [train_as_written(options, twin, train, validation)] if options.as_written else []
    if folder is not None:
        written.append(solve(options, validation, folder))
    print_written(*written)


def whole(sequences: Sequence[Any], labels: Any) -> Batch:
    """One padded batch of all sequences."""
    return data.batches(sequences, labels, len(sequences), dtype=np.int32)[0]


def train_as_written(options: Options, twin: Any, train: Batch, validation: Batch) -> Path:
    """Train as the notebook does with its dropout and without; print and draw the scores."""
    weights = {name: tensor.clone() for name, tensor in twin.state_dict().items()}
    results = {}
    with tqdm(total=4 * options.epochs, unit="epoch", disable=None) as bar:
        for dropout in (DROPOUT, 0.0):
            twin.load_state_dict(weights)
            model = models.SequenceClassifier(*SIZES, rngs=nnx.Rngs(0))
            interchange.load_state_dict(model, weights)
            twin.dropout.p = model.dropout.rate = dropout
            results[dropout] = as_written(options, twin, model, train, validation, bar)
            tell(bar, dropout, results[dropout])
    print_agreement(results)
    verdicts = print_verdict(results[DROPOUT], len(validation.labels))
    path = options.out / "as_written.png"
    draw(path, results, verdicts)
    return path


def as_written(
    options: Options, twin: Any, model: nnx.Module, train: Batch, validation: Batch, bar: tqdm
) -> dict[str, Scores]:
    """Train both models as the notebook does; framework -> scores."""
    import torch

    import torch_ref.training

    tx = optax.chain(training.clip_grad_norm(MAX_NORM), optax.adam(LEARNING_RATE))
    adam = torch.optim.Adam(twin.parameters(), lr=LEARNING_RATE)
    sides = {
        "PyTorch": (torch_ref.training, twin, torch_ref.training.clip_grad_norm(adam, MAX_NORM)),
        "JAX": (training, model, nnx.Optimizer(model, tx, wrt=nnx.Param)),
    }
    # Without lengths the state is read after the padding.
    train, validation = (part._replace(lengths=None) for part in (train, validation))
    results = {}
    for name, (functions, side, optimizer) in sides.items():
        side.train()
        scores = []
        for _ in range(options.epochs):
            metrics = {"accuracy": functions.accuracy}
            seen = functions.train_step(side, optimizer, train, metrics=metrics)
            held = functions.evaluate(side, [validation], metrics=metrics)
            scores.append(
                [[float(part[name]) for name in ("loss", "accuracy")] for part in (seen, held)]
            )
            bar.update()
        results[name] = dict(zip(PARTS, np.moveaxis(scores, 0, 1), strict=True))
    return results


def tell(bar: tqdm, dropout: float, results: dict[str, Scores]) -> None:
    named = "as written" if dropout else "otherwise as written"
    bar.write(f"\nDropout {dropout}, {named} (losses in nats)")
    columns = ("training loss", "training accuracy", "validation loss", "validation accuracy")
    bar.write("       " + "".join(f"{column:>22}" for column in columns))
    bar.write("  epoch" + "".join(f"{name:>11}" for name in results) * len(columns))
    epochs = len(results["JAX"]["training"])
    every = -(-epochs // LINES)
    for epoch in range(epochs):
        if epoch % every == 0 or epoch + 1 == epochs:
            line = f"{epoch:>7}"
            for part in PARTS:
                rows = [scores[part][epoch] for scores in results.values()]
                line += "".join(f"{row[0]:>11.4f}" for row in rows)
                line += "".join(f"{row[1]:>11.3f}" for row in rows)
            bar.write(line)


def apart(results: dict[str, Scores], part: str) -> np.ndarray:
    """The absolute difference of the frameworks' losses in each epoch."""
    return np.abs(results["JAX"][part][:, 0] - results["PyTorch"][part][:, 0])


def print_agreement(results: dict[float, dict[str, Scores]]) -> None:
    print("\nLosses of JAX and PyTorch apart, at most, in nats")
    for dropout, sides in results.items():
        told = ", ".join(f"{part} {apart(sides, part).max():.1e}" for part in PARTS)
        why = "each draws its own masks" if dropout else "rounding alone"
        print(f"  dropout {dropout}   {told}: {why}")


def print_verdict(results: dict[str, Scores], count: int) -> list[str]:
    """Print and return how each framework's accuracy at the end compares with guessing."""
    deviation = np.sqrt(count) / 2
    print(
        f"\nAs written: validation sequences right, of {count}. Guessing gets {count / 2:.0f}, "
        f"give or take {2 * deviation:.0f} (two standard deviations)."
    )
    verdicts = []
    for name, scores in results.items():
        right = round(float(scores["validation"][-1, 1]) * count)
        off = (right - count / 2) / deviation
        verdict = "no better than guessing" if off <= 2 else "better than guessing"
        print(f"  {name:<10}{right} ({right / count:.3f}), {verdict}")
        verdicts.append(f"{name} {verdict}")
    return verdicts


def draw(path: Path, results: dict[float, dict[str, Scores]], verdicts: Sequence[str]) -> None:
    same = max(apart(results[0.0], part).max() for part in PARTS)
    title = (
        f"Trained as written: {', '.join(verdicts)}. Without dropout losses differ by {same:.0e}"
    )
    figure, rows = new_figure(3, title, rows=2)
    styles = {
        "PyTorch": {"linewidth": 5.0, "alpha": 0.4, "solid_capstyle": "round"},
        "JAX": {"linewidth": 1.4, "linestyle": (0, (4, 2))},
    }
    for (dropout, sides), (losses, accuracies, differences) in zip(
        results.items(), rows, strict=True
    ):
        for part, colour in zip(PARTS, ("tab:blue", "tab:orange"), strict=True):
            for name, scores in sides.items():
                label, look = f"{name}, {part}", {"color": colour, **styles[name]}
                losses.plot(scores[part][:, 0], label=label, **look)
                accuracies.plot(100 * scores[part][:, 1], label=label, **look)
            difference = apart(sides, part)
            seen = np.where(difference > 0, difference, np.nan)  # a logarithmic axis has no 0
            differences.plot(seen, ".-", color=colour, label=part)
        accuracies.axhline(50, color="black", linestyle=":", linewidth=1)
        losses.set(title=f"Loss, dropout {dropout}", ylabel="cross entropy (nats)")
        accuracies.set(
            title=f"Accuracy, dropout {dropout} (dotted: guessing)",
            ylabel="sequences classified correctly (%)",
            ylim=(0, 100),
        )
        differences.set(
            title=f"Losses apart, dropout {dropout} (gaps: no difference)",
            ylabel="|JAX - PyTorch| (nats)",
            yscale="log",
            ylim=(1e-9, 1),
        )
        accuracies.legend(loc="lower right")
        differences.legend(loc="upper right")
        for axis in (losses, accuracies, differences):
            axis.set_xlabel("epoch (one step on the whole training set)")
            axis.grid(alpha=0.3)
    save_figure(figure, path)


def solve(options: Options, validation: Batch, folder: Path) -> Path:
    """Train each cell with each seed; print and draw the results."""
    chosen = ("stages", "batch_size", "hidden_size", "learning_rate", "max_steps")
    values = {name: getattr(options, name) for name in chosen}
    regime = curriculum.Regime(vocabulary=VOCABULARY, **values)
    count = len(validation.labels)
    print(
        f"\nSolving it in JAX: lengths respected, {regime.batch_size} new random sequences "
        f"in each step,\nof up to {', '.join(map(str, regime.stages))} tokens in turn; one layer, "
        f"Adam at {regime.learning_rate}, {regime.max_steps} steps at most."
    )
    runs = []
    total = len(options.cells) * options.seeds
    with tqdm(unit="step", disable=None) as bar:
        for cell in options.cells:
            for seed in range(options.seeds):
                bar.set_description(f"{cell}, run {len(runs) + 1} of {total}")
                kept = folder / f"{cell}_seed{seed}"
                run = curriculum.learn(cell, seed, regime, kept, options.resume, bar.update)
                scores = training.evaluate(
                    run.model, [validation], metrics={"accuracy": training.accuracy}
                )
                run.right = round(scores["accuracy"] * count)
                runs.append(run)
    columns = f"{'stages':>9}{'steps':>8}{'compiled':>11}{'seconds':>10}"
    print(f"  {'':<6}{'seed':>4}{'validation right':>19}{columns}")
    for run in runs:
        stages = f"{len(run.ends)} of {len(regime.stages)}"
        print(
            f"  {run.cell:<6}{run.seed:>4}{f'{run.right} of {count}':>19}{stages:>9}"
            f"{run.steps:>8}{run.compilations:>11}{run.seconds:>10.1f}"
        )
    print(
        "  Compiled: training steps, at most one for each stage; other seeds use the first one's."
    )
    print(f"  {RESUMED if options.resume else 'Seconds with compilation.'}\n")
    for cell in options.cells:
        mine = [run for run in runs if run.cell == cell]
        solved = sum(run.right == count for run in mine)
        print(
            f"  {cell:<5} all {count} right in {solved} of {len(mine)} runs, "
            f"{statistics.median(run.steps for run in mine):.0f} steps (median)"
            + ("" if options.resume else f", {max(run.seconds for run in mine):.0f} s at most")
        )
    path = options.out / "solved.png"
    curriculum.draw(path, runs, regime, count)
    return path


if __name__ == "__main__":
    launch(Options, main)
