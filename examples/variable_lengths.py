"""Measure the cost of padding, packing, lengths and buckets in training.

    python examples/variable_lengths.py

First the notebook's five sequences: the share of padding in a batch, and the agreement of PyTorch's
packed LSTM with ours on lengths. Then training steps on many sequences with log-normal lengths, as
sentences and recordings roughly have: padded only, with lengths, and both in batches bucketed by
length. All variants take turns, pass by pass, so that a busy machine slows all of them. Both
frameworks have the same number of threads.
"""

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optax
from flax import nnx

from jaxrnn import data, interchange, models, training
from jaxrnn.data import Batch
from support.options import launch, require, require_counts, require_torch, tqdm
from support.output import make_folder, new_figure, print_written, save_figure

VOCABULARY = 50
EMBEDDING = 32
SAVES = "Our lengths make the answer right, and padding costs next to nothing: rows end early."
SAVES_NOT = "Our lengths make the answer right and save no time here; smaller arrays, buckets, may."


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure the time that lengths and buckets save in training."""

    sequences: int = 512
    """Sequences in one pass."""
    batch_size: int = 32
    """Sequences in a batch."""
    hidden_size: int = 64
    """Hidden units of the LSTM."""
    median: float = 30.0
    """Of the lengths, in steps."""
    spread: float = 0.6
    """Standard deviation of the logarithm of the lengths; 0 for equal ones."""
    longest: int = 200
    """Longer sequences are cut to this."""
    buckets: int = 4
    """Lengths to pad to, when batches are bucketed by length."""
    passes: int = 9
    """Timed passes over the sequences for each variant; the median is shown."""
    threads: int = 1
    """Of each framework. More than one pays for larger sizes, on an idle machine."""
    seed: int = 0
    """Of lengths, tokens and weights."""
    out: Path = Path("runs/variable_lengths")
    """Folder for the figure."""

    def check(self) -> None:
        """Raise ValueError for options that cannot run. Make the folder."""
        require_counts(
            self, "sequences", "batch_size", "hidden_size", "longest", "buckets", "passes"
        )
        require_counts(self, "threads")
        require(self, self.seed >= 0, "seed", "0 or more")
        require(self, 1 <= self.median < float("inf"), "median", "1 or more")
        require(self, 0 <= self.spread < float("inf"), "spread", "0 or more")
        require_torch("The comparison")
        make_folder(self.out)


@dataclasses.dataclass
class Way:
    """A variant: a framework and batches, with the seconds of each pass of training steps."""

    framework: str
    name: str
    step: Callable[[Batch], Any]
    batches: Sequence[Batch]
    seconds: list[float] = dataclasses.field(default_factory=list)

    def run(self) -> float:
        """Seconds of one pass."""
        start = time.perf_counter()
        for batch in self.batches:
            float(self.step(batch)["loss"])  # waits for the device
        return time.perf_counter() - start

    @property
    def positions(self) -> int:
        """Steps times rows, padding included."""
        return sum(batch.inputs.size for batch in self.batches)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def main(options: Options) -> None:
    import torch

    torch.set_num_threads(restrict_threads(options.threads))
    five_sequences()

    rng = np.random.default_rng(options.seed)
    drawn = options.median * np.exp(options.spread * rng.standard_normal(options.sequences))
    lengths = np.clip(np.rint(drawn), 1, options.longest).astype(int)
    sequences = [rng.integers(1, VOCABULARY, length, np.int32) for length in lengths]
    labels = rng.integers(0, 2, options.sequences, np.int32)
    edges = data.bucket_edges(lengths, options.buckets)
    print(
        f"\nTraining steps on {options.sequences} sequences of {lengths.min()} to {lengths.max()} "
        f"steps, median {np.median(lengths):.0f}, in batches of {options.batch_size}"
    )
    print(f"  one shape    all padded to {lengths.max()} steps")
    print(f"  bucketed     padded to {', '.join(map(str, edges))} steps, by their lengths")

    one_shape = data.batches(sequences, labels, options.batch_size)
    bucketed = data.batches(sequences, labels, options.batch_size, buckets=edges)
    check_layouts(options, one_shape, bucketed, edges)
    ways = [
        way
        for framework, make in (("PyTorch", torch_step), ("JAX", jax_step))
        for way in ways_of(framework, make(options), one_shape, bucketed)
    ]
    measure(options, ways)
    print_table(ways, int(lengths.sum()))
    path = options.out / "variable_lengths.png"
    draw(path, ways, lengths, edges)
    print_written(path)


def restrict_threads(count: int) -> int:
    """Give JAX, whose threads are as many as the process's cores, `count` of them at most.

    Called before JAX starts its threads. Returns the number of threads for PyTorch.
    """
    if not hasattr(os, "sched_setaffinity"):
        return os.cpu_count() or 1
    cores = sorted(os.sched_getaffinity(0))[:count]
    os.sched_setaffinity(0, cores)
    return len(cores)


def five_sequences() -> None:
    """The notebook's batch: its share of padding, and the agreement of both frameworks."""
    import torch

    from jaxrnn.testing import assert_parity
    from torch_ref.models import EfficientLSTM

    sequences, lengths = data.create_variable_length_batch()
    print("Five sequences of tokens")
    for sequence in sequences:
        print(f"  {len(sequence)} steps   {' '.join(map(str, sequence))}")
    tokens, _ = data.pad(sequences)
    print(f"  padded to {tokens.shape}: {tokens.size} positions, of which {sum(lengths)} are true:")
    print(f"  {1 - sum(lengths) / tokens.size:.1%} less to compute, if padding costs nothing.")
    print("\nPyTorch's LSTM on packed sequences, and ours on padded ones with lengths")
    torch.manual_seed(0)
    embedded = np.asarray(torch.nn.Embedding(VOCABULARY, 16)(torch.from_numpy(tokens)).detach())
    theirs = EfficientLSTM(16, 32, 2)
    ours = models.EfficientLSTM(16, 32, 2, rngs=nnx.Rngs(0))
    for dtype in ("float64", "float32"):
        report = assert_parity(
            theirs, ours, embedded, lengths=np.array(lengths), dtype=dtype, steps=tokens.shape[1]
        )
        print(f"\n{report}")


def without_lengths(batches: Sequence[Batch]) -> list[Batch]:
    return [batch._replace(lengths=None) for batch in batches]


def ways_of(
    framework: str,
    step: Callable[[Batch], Any],
    one_shape: Sequence[Batch],
    bucketed: Sequence[Batch],
) -> list[Way]:
    respected = "packed" if framework == "PyTorch" else "lengths"
    return [
        Way(framework, "padded, one shape", step, without_lengths(one_shape)),
        Way(framework, f"{respected}, one shape", step, one_shape),
        Way(framework, "padded, bucketed", step, without_lengths(bucketed)),
        Way(framework, f"{respected}, bucketed", step, bucketed),
    ]


def new_model(options: Options) -> models.SequenceClassifier:
    return models.SequenceClassifier(
        VOCABULARY, EMBEDDING, options.hidden_size, 2, rngs=nnx.Rngs(options.seed)
    )


def jax_step(options: Options) -> Callable[[Batch], Any]:
    model = new_model(options)
    optimizer = nnx.Optimizer(model, optax.sgd(0.01), wrt=nnx.Param)
    return lambda batch: training.train_step(model, optimizer, batch)


def torch_step(options: Options) -> Callable[[Batch], Any]:
    import torch

    import torch_ref.models
    import torch_ref.training

    model = torch_ref.models.SequenceClassifier(VOCABULARY, EMBEDDING, options.hidden_size, 2)
    weights = interchange.state_dict(new_model(options))
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return lambda batch: torch_ref.training.train_step(model, optimizer, batch)


def check_layouts(
    options: Options, one_shape: Sequence[Batch], bucketed: Sequence[Batch], edges: list[int]
) -> None:
    """Print how the layout changes the logits, with lengths and without."""
    model = new_model(options)
    lengths = np.concatenate([batch.lengths for batch in one_shape])
    planned = data.plan(lengths, options.batch_size, buckets=edges)
    order = np.concatenate([items for items, _ in planned])

    def apart(change: Callable[[Sequence[Batch]], Sequence[Batch]]) -> float:
        whole = training.predict(model, change(one_shape))[order]
        return float(np.abs(whole - training.predict(model, change(bucketed))).max())

    print("\nOur logits in one shape and in buckets apart, at most, untrained")
    print(f"  with lengths      {apart(list):.1e}")
    print(f"  without lengths   {apart(without_lengths):.1e}, as each reads its own padding")


def measure(options: Options, ways: Sequence[Way]) -> None:
    """Time all variants in turn, each pass in another order, after one pass that compiles."""
    rng = np.random.default_rng(options.seed)
    with tqdm(total=(options.passes + 1) * len(ways), unit="pass", disable=None) as bar:
        for number in range(options.passes + 1):
            for way in rng.permutation(np.array(ways, dtype=object)):
                seconds = way.run()
                if number > 0:
                    way.seconds.append(seconds)
                bar.update()


def print_table(ways: Sequence[Way], true_positions: int) -> None:
    print("\nOne pass of training steps: median, and the range of the middle half of passes")
    print(f"  {'':<27}{'shapes':>6}{'positions':>11}{'true':>6}{'ms':>8}{'middle half':>15}{'':>9}")
    for way in ways:
        base = next(other for other in ways if other.framework == way.framework)
        low, high = 1000 * np.quantile(way.seconds, [0.25, 0.75])
        shapes = len({batch.inputs.shape for batch in way.batches})
        print(
            f"  {way.framework:<8}{way.name:<19}{shapes:>6}{way.positions:>11,}"
            f"{true_positions / way.positions:>6.0%}{1000 * way.median:>8.0f}"
            f"{f'{low:.0f} to {high:.0f}':>15}{base.median / way.median:>8.2f}x"
        )
    print("  x: times as fast as the same framework padded, in one shape. Both frameworks have the")
    print("  same number of threads.")
    print("\nTime against padding everything to one shape (1 is the same, less is faster)")
    for framework in dict.fromkeys(way.framework for way in ways):
        padded, *others = [way.median for way in ways if way.framework == framework]
        lengths, buckets, both = (other / padded for other in others)
        print(
            f"  {framework:<9}respecting lengths {lengths:.2f}, bucketing {buckets:.2f}, "
            f"both {both:.2f}"
        )
        if framework == "JAX":
            print(f"  {SAVES if lengths < 0.9 else SAVES_NOT}")


def finding(ways: Sequence[Way]) -> str:
    """Lengths in buckets against padding everything to one shape, in both frameworks."""
    told = []
    for framework in dict.fromkeys(way.framework for way in ways):
        padded, *_, both = [way.median for way in ways if way.framework == framework]
        told.append(f"{padded / both:.1f} times as fast in {framework}")
    return f"Lengths and buckets train {' and '.join(told)} as padding to one shape"


def draw(path: Path, ways: Sequence[Way], lengths: np.ndarray, edges: list[int]) -> None:
    figure, (left, right) = new_figure(2, finding(ways))
    left.hist(lengths, bins=40, color="tab:gray")
    for edge in edges:
        left.axvline(edge, color="tab:red", linewidth=1)
    left.set(
        title="Lengths, and the buckets' ends",
        xlabel="length (steps)",
        ylabel="sequences",
        xlim=(0, None),
    )
    colours = {"PyTorch": "tab:orange", "JAX": "tab:blue"}
    names = [f"{way.framework}\n{way.name}" for way in ways]
    for place, way in enumerate(ways):
        low, middle, high = 1000 * np.quantile(way.seconds, [0.25, 0.5, 0.75])
        errors = [[middle - low], [high - middle]]
        right.barh(place, middle, color=colours[way.framework], xerr=errors, capsize=3)
    right.set_yticks(range(len(ways)), names, fontsize=8)
    right.invert_yaxis()
    right.set(title="One pass of training steps", xlabel="ms (median, middle half of passes)")
    for axis in (left, right):
        axis.grid(alpha=0.3, axis="x")
    save_figure(figure, path)


if __name__ == "__main__":
    launch(Options, main)
