"""RNN, LSTM and GRU trained to remember the first input, all seeds in parallel.

The models of all seeds are one model with stacked weights, trained by one `vmap`ped step, which
`jaxrnn.training.fit` cannot do. Each step gets new sequences. Training ends early once every seed
is nearly always right.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from jaxrnn import data, training
from jaxrnn.data import Batch
from jaxrnn.models import RNNComparison

TESTS = 500  # sequences that each seed is scored on
ENOUGH = (20, 0.99)  # steps, and every seed's accuracy over them, that end a training
LEARNT = 0.9  # accuracy from which a task counts as learnt
LEAST_SEEDS, LEAST_STEPS = 4, 400  # for a verdict
CHANCE = 0.02  # about two standard errors of a median accuracy over TESTS sequences


@dataclasses.dataclass(frozen=True)
class Variant:
    """A cell, as PyTorch initialises it or with gates that are open at first."""

    cell: str
    open_gates: bool = False

    def __str__(self) -> str:
        return f"{self.cell}, gates open" if self.open_gates else self.cell

    def new(self, hidden_size: int, steps: int, rngs: nnx.Rngs) -> RNNComparison:
        model = RNNComparison(1, hidden_size, 2, self.cell, rngs=rngs)
        if self.open_gates:
            open_gates(model, steps)
        return model


VARIANTS = (
    Variant("RNN"),
    Variant("LSTM"),
    Variant("GRU"),
    Variant("LSTM", open_gates=True),
    Variant("GRU", open_gates=True),
)


def open_gates(model: RNNComparison, steps: int) -> None:
    """Set biases so that units forget from 1/2 to 1/steps of their state in a step.

    The forget gate of an LSTM starts at sigmoid(b), b = log u with u from 1 to steps - 1, and its
    input gate at sigmoid(-b); a GRU's update gate, which keeps the state, at sigmoid(b).

    Source: Tallec and Ollivier, "Can recurrent neural networks warp time?", 2018, where u is
    drawn at random; here it is evenly spaced.
    """
    hidden = model.rnn.hidden_size
    bias = np.log(np.linspace(1.0, steps - 1.0, hidden)).astype(np.float32)
    lstm = model.rnn_type == "LSTM"  # its gates are input, forget, ...; a GRU's reset, update, ...
    first = 0 if lstm else hidden
    ours, other = model.rnn.bias_ih_l0, model.rnn.bias_hh_l0
    if lstm:
        ours[...] = ours[...].at[:hidden].set(-bias)
    ours[...] = ours[...].at[hidden : 2 * hidden].set(bias)
    other[...] = other[...].at[first : 2 * hidden].set(0.0)


@dataclasses.dataclass(frozen=True)
class Result:
    """One variant trained on sequences of one length."""

    variant: Variant
    length: int
    accuracies: np.ndarray  # (seeds,), on new sequences
    steps: int

    @property
    def median(self) -> float:
        return float(np.median(self.accuracies))

    def __str__(self) -> str:
        low, high = self.accuracies.min(), self.accuracies.max()
        return f"{percent(self.median)} ({100 * low:.0f} to {100 * high:.0f})"


def percent(share: float) -> str:
    """A percentage with one decimal, so that a value just below a bound is not rounded to it."""
    return f"{100 * share:.1f}%"


@nnx.jit
@nnx.vmap
def step(model: RNNComparison, optimizer: nnx.Optimizer, batch: Batch) -> dict[str, jax.Array]:
    return training.train_step(model, optimizer, batch, metrics={"accuracy": training.accuracy})


@nnx.jit
@nnx.vmap
def score(model: RNNComparison, batch: Batch) -> jax.Array:
    return training.accuracy(model(batch.inputs), batch.labels)


def learn(
    variant: Variant,
    length: int,
    *,
    seeds: int,
    steps: int,
    batch_size: int,
    hidden_size: int,
    tx: optax.GradientTransformation,
) -> Result:
    """Train `seeds` models at once, each with its own weights and sequences.

    With the same `tx` for every variant, what two of them share is compiled once.
    """

    @nnx.vmap
    def new(key: jax.Array) -> tuple[RNNComparison, nnx.Optimizer]:
        model = variant.new(hidden_size, length, nnx.Rngs(key))
        return model, nnx.Optimizer(model, tx, wrt=nnx.Param)

    def drawn(count: int, seed: data.Seed) -> Batch:
        """New sequences for every seed; the same for every variant."""
        x, labels = data.create_memory_task(length, seeds * count, seed=seed)
        return Batch(x.reshape(seeds, count, length, 1), labels.reshape(seeds, count))

    model, optimizer = new(jax.random.split(jax.random.key(0), seeds))
    seen: list[Any] = []
    count, needed = ENOUGH
    for number in range(steps):
        scores = step(model, optimizer, drawn(batch_size, (0, number)))
        seen.append(np.asarray(scores["accuracy"]))
        if len(seen) >= count and np.mean(seen[-count:], axis=0).min() >= needed:
            break
    accuracies = np.asarray(score(model, drawn(TESTS, (1, 0))))
    return Result(variant, length, accuracies, len(seen))


Results = Mapping[Variant, Sequence[Result]]  # for each variant one result for each length


def rules(results: Results) -> list[str]:
    """The notebook's three rules of thumb, each with a verdict from the results."""
    rnn, lstm, gru = (results[Variant(cell)] for cell in ("RNN", "LSTM", "GRU"))
    opened = [results[Variant(cell, open_gates=True)] for cell in ("LSTM", "GRU")]
    return [
        '"Short sequences (<20): RNN might be sufficient"',
        *_short(rnn),
        '"Long sequences (>50): LSTM or GRU"',
        *_long("as PyTorch initialises them", rnn, [lstm, gru]),
        *_long("with gates open at first", rnn, opened),
        '"When in doubt: try GRU first"',
        *_first("as PyTorch initialises them", [rnn, lstm, gru]),
        *_first("with gates open at first", [rnn, *opened]),
    ]


def _short(rnn: Sequence[Result]) -> list[str]:
    short = [result for result in rnn if result.length < 20]
    if not short:
        verdict = "not tested: no length below 20"
    elif all(result.median >= LEARNT for result in short):
        verdict = "confirmed"
    else:
        verdict = "not confirmed"
    told = ", ".join(f"T = {result.length}: {percent(result.median)}" for result in rnn)
    return [f"  {verdict}", f"    RNN at {told}"]


def _long(named: str, rnn: Sequence[Result], gated: Sequence[Sequence[Result]]) -> list[str]:
    lines = []
    for plain, *others in zip(rnn, *gated, strict=True):
        if plain.length <= 50:
            continue
        best = max(others, key=lambda result: result.median)
        if best.median >= LEARNT and best.accuracies.min() > plain.accuracies.max():
            verdict = f"confirmed: {best.variant.cell}"
        elif max(best.median, plain.median) < LEARNT:
            verdict = "not confirmed: none learns it in the steps it has"
        else:
            verdict = "not confirmed: not all gated runs are better than all of the RNN"
        told = ", ".join(f"{result.variant.cell} {result}" for result in (plain, *others))
        lines += [f"  {named}, T = {plain.length}: {verdict}", f"    {told}"]
    return lines or [f"  {named}: not tested: no length above 50"]


def _first(named: str, candidates: Sequence[Sequence[Result]]) -> list[str]:
    """Rank by the number of lengths learnt, then by the mean accuracy over all lengths.

    There is no decision where the best two have learnt equally many lengths and differ by less than
    `CHANCE`, or where none has learnt any.
    """

    def merit(results: Sequence[Result]) -> tuple[int, float]:
        learnt = sum(result.median >= LEARNT for result in results)
        return learnt, float(np.mean([result.median for result in results]))

    ranked = sorted(candidates, key=merit, reverse=True)
    told = ", ".join(
        f"{results[0].variant.cell} {merit(results)[0]} of {len(results)} ({merit(results)[1]:.0%})"
        for results in ranked
    )
    best = ranked[0][0].variant.cell
    (learnt, mean), (also, close) = map(merit, ranked[:2])
    if learnt == 0:
        verdict = "not decided: none has learnt a length in the steps it has"
    elif learnt == also and mean - close < CHANCE:
        verdict = f"not decided: {best} and {ranked[1][0].variant.cell} are equal within chance"
    else:
        verdict = "confirmed" if best == "GRU" else f"corrected: {best} first"
    return [f"  {named}: {verdict}", f"    lengths learnt (mean accuracy): {told}"]
