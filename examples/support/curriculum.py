"""Training on sums of tokens modulo 2, from short sequences to long ones.

Each step of training gets a new batch of random sequences, so none can be memorised. The model gets
their lengths and reads its state at the last true token. The lengths grow in stages. Every decision
depends on training batches alone, so other sequences are a fair test.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

import jaxrnn
from jaxrnn import data, training
from jaxrnn.data import Batch
from support.output import new_figure, save_figure
from support.runs import fit

EMBEDDING = 32
CELLS = {"RNN": jaxrnn.RNN, "GRU": jaxrnn.GRU, "LSTM": jaxrnn.LSTM}
COLOURS = {"RNN": "tab:green", "GRU": "tab:orange", "LSTM": "tab:blue"}
MASTERED = (5, 0.97)  # batches in a row, and the accuracy over them, that end a stage
DONE = (20, 1.0)  # the same for the last stage
EPOCH = 5  # steps between checks whether the stage has ended
SAVE_EPOCHS = 20  # between checkpoints


class TokenClassifier(nnx.Module):
    """Tokens (B, T) embedded, an RNN, GRU or LSTM over them, its last true state classified."""

    def __init__(self, cell: str, vocabulary: int, hidden_size: int, *, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(1.0)
        self.embedding = nnx.Embed(vocabulary, EMBEDDING, embedding_init=normal, rngs=rngs)
        self.rnn = CELLS[cell](EMBEDDING, hidden_size, batch_first=True, rngs=rngs)
        self.fc = nnx.Linear(hidden_size, 2, rngs=rngs)

    def __call__(self, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
        _, state = self.rnn(self.embedding(tokens), lengths=lengths)
        hidden = state[0] if isinstance(state, tuple) else state  # the LSTM has a cell state too
        return self.fc(hidden[-1])


@dataclasses.dataclass(frozen=True)
class Regime:
    """The settings of training, the same for every cell."""

    vocabulary: int
    stages: Sequence[int]  # the longest sequence of each stage
    batch_size: int
    hidden_size: int
    learning_rate: float
    max_steps: int

    @cached_property
    def tx(self) -> optax.GradientTransformation:
        """One for all runs: a new one would be compiled anew."""
        return optax.chain(training.clip_grad_norm(1.0), optax.adam(self.learning_rate))

    def fresh(self, seed: data.Seed, stage: int) -> Batch:
        """Sequences of every length up to the stage's, which is also what all are padded to."""
        rng = np.random.default_rng(seed)
        longest = self.stages[stage]
        lengths = rng.integers(1, longest, self.batch_size, np.int32, endpoint=True)
        tokens = rng.integers(1, self.vocabulary, (self.batch_size, longest), np.int32)
        tokens[np.arange(longest) >= lengths[:, None]] = 0
        return Batch(tokens, tokens.sum(axis=1, dtype=np.int32) % 2, lengths)


@dataclasses.dataclass
class Run:
    """One cell trained with one seed."""

    cell: str
    seed: int
    model: TokenClassifier
    accuracies: list[float] = dataclasses.field(default_factory=list)  # of each step's batch
    ends: list[int] = dataclasses.field(default_factory=list)  # the step at which each stage ended
    seconds: float = float("nan")  # compilation included
    compilations: int = 0  # of the training step
    right: int = 0  # test sequences

    @property
    def steps(self) -> int:
        return len(self.accuracies)


def learn(
    cell: str,
    seed: int,
    regime: Regime,
    folder: Path,
    resumed: bool,
    tell: Callable[[int], object],
) -> Run:
    """Train until the last stage is done or the steps are used up; call `tell` after each step.

    The folder holds a run for each stage: metrics line by line, and checkpoints.
    """
    start = time.perf_counter()
    model = TokenClassifier(cell, regime.vocabulary, regime.hidden_size, rngs=nnx.Rngs(seed))
    optimizer = nnx.Optimizer(model, regime.tx, wrt=nnx.Param)
    run = Run(cell, seed, model)
    for stage, longest in enumerate(regime.stages):
        left = regime.max_steps - run.steps
        count, needed = DONE if stage + 1 == len(regime.stages) else MASTERED

        def epoch(number: int, stage: int = stage, left: int = left) -> list[Batch]:
            steps = range(number * EPOCH, min((number + 1) * EPOCH, left))
            return [regime.fresh((seed, stage, step), stage) for step in steps]

        def done(records: list[dict[str, Any]], count: int = count, needed: float = needed) -> bool:
            last = [record["accuracy"] for record in records[-count:]]
            return len(last) == count and np.mean(last) >= needed

        history = fit(
            folder / f"up_to_{longest}",
            resumed,
            model,
            optimizer,
            epoch,
            epochs=-(-left // EPOCH),
            metrics={"accuracy": training.accuracy},
            until=done,
            save_epochs=SAVE_EPOCHS,
            keep=1,
            most_compilations=1,
            log=lambda record: tell(1),
        )
        run.accuracies += history["accuracy"].tolist()
        run.compilations += history.compilations
        if not done(history.records):
            break
        run.ends.append(run.steps)
    run.seconds = time.perf_counter() - start
    return run


def draw(path: Path, runs: Sequence[Run], regime: Regime, tests: int) -> None:
    longest = regime.stages[-1]
    solved = sum(run.right == tests for run in runs)
    title = (
        f"Sum of up to {longest} tokens modulo 2, learnt from short sequences to long ones:\n"
        f"{solved} of {len(runs)} runs get all {tests} validation sequences right"
    )
    figure, (left, right) = new_figure(2, title)
    window = 5
    for run in runs:
        colour, name = COLOURS[run.cell], run.cell if run.seed == 0 else None
        means = np.convolve(run.accuracies, np.ones(window) / window, "valid")
        steps = np.arange(run.steps)[-len(means) :] + 1
        left.plot(steps, 100 * means, color=colour, linewidth=1.2, label=name)
        corners = [(1, regime.stages[0])]
        for end, (before, after) in zip(run.ends, pairwise(regime.stages), strict=False):
            corners += [(end, before), (end, after)]
        corners.append((run.steps, corners[-1][1]))
        right.plot(*np.transpose(corners), color=colour, linewidth=1.2, label=name)
        all_right = run.right == tests
        marker = {"marker": "*", "markersize": 13} if all_right else {"marker": "x"}
        right.plot(*corners[-1], color=colour, linestyle="", **marker)
    left.axhline(50, color="black", linestyle=":", linewidth=1, label="guessing")
    left.set(
        title=f"New training sequences (mean of {window} steps)",
        ylabel="sequences classified correctly (%)",
        ylim=(40, 102),
    )
    right.set(
        title=f"Stages; star: all {tests} validation sequences right",
        ylabel="longest training sequence (tokens)",
        ylim=(0, 1.08 * longest),
        yticks=regime.stages,
    )
    left.legend(loc="lower right")
    right.legend(loc="upper left")
    for axis in (left, right):
        axis.set_xlabel(f"step of training ({regime.batch_size} new sequences each)")
        axis.grid(alpha=0.3)
    save_figure(figure, path)
