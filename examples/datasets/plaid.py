"""PLAID recordings as minibatches: split, scaled, framed.

The current that eleven kinds of household appliances draw when they are switched on: 537 traces for
training and 537 for testing, of 100 to 1,344 steps (Gao and others, 2014, "PLAID: a public dataset
of high-resolution electrical appliance measurements for load identification research"), as the UCR
archive of 2018 has them. They come with the package sktime: nothing is downloaded.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jaxrnn import data
from jaxrnn.data import Batch

APPLIANCES = (
    "air conditioner",
    "fluorescent lamp",
    "fan",
    "fridge",
    "hairdryer",
    "heater",
    "incandescent bulb",
    "laptop",
    "microwave",
    "vacuum cleaner",
    "washing machine",
)
GAIN = 5.0  # factor of a trace divided by its median, before its peaks are compressed


@dataclass(frozen=True)
class Traces:
    """Recordings (T_n,), each with its appliance's number, 0 to 10."""

    series: list[np.ndarray]
    appliances: np.ndarray

    @classmethod
    def load(cls, part: str) -> "Traces":
        """The "train" or the "test" recordings."""
        from sktime.datasets import load_plaid  # takes seconds: not for --help

        frames, names = load_plaid(part, return_type="df-list")
        return cls([frame.to_numpy(np.float64).ravel() for frame in frames], names.astype(np.int32))

    def __len__(self) -> int:
        return len(self.series)

    def __str__(self) -> str:
        lengths = [len(series) for series in self.series]
        return f"{len(self)} traces of {min(lengths)} to {max(lengths)} steps"

    def take(self, items: np.ndarray) -> "Traces":
        return Traces([self.series[n] for n in items], self.appliances[items])

    @cached_property
    def levels(self) -> np.ndarray:
        """The median size of each trace, (N,)."""
        return np.array([max(np.median(np.abs(x)), 1e-12) for x in self.series])

    def shapes(self) -> list[np.ndarray]:
        """Each trace divided by its own level, with its peaks compressed.

        Levels differ by eight powers of ten, even within one kind of appliance.
        """
        levels = zip(self.series, self.levels, strict=True)
        return [np.arcsinh(GAIN * x / level) for x, level in levels]

    def steps(self, frame: int) -> np.ndarray:
        """Whole frames of each trace after any start within the first one, (N,)."""
        return np.array([(len(x) + 1) // frame - 1 for x in self.series])


class Framing:
    """Inputs of the network: each step is a frame of samples, and the trace's level.

    The scale is that of the traces that it is created with, those of training.
    """

    def __init__(self, traces: Traces, frame: int):
        samples = np.concatenate(traces.shapes())
        levels = np.log(traces.levels)
        self.frame = frame
        self.inputs = frame + 1
        self._samples = samples.mean(), samples.std()
        self._levels = levels.mean(), levels.std()

    def sequences(self, traces: Traces, starts: np.ndarray | None = None) -> list[np.ndarray]:
        """(steps, frame + 1), float32, from the sample `starts` (N,) on, each below `frame`."""
        mean, deviation = self._levels
        levels = (np.log(traces.levels) - mean) / deviation
        mean, deviation = self._samples
        shapes = [(x - mean) / deviation for x in traces.shapes()]
        if starts is None:
            starts = np.zeros(len(traces), int)
        made = []
        for x, level, start, steps in zip(
            shapes, levels, starts, traces.steps(self.frame), strict=True
        ):
            frames = x[start : start + steps * self.frame].reshape(steps, self.frame)
            made.append(np.column_stack([frames, np.full(steps, level)]).astype(np.float32))
        return made


class Task:
    """Training and validation traces of one seed."""

    def __init__(self, traces: Traces, *, frame: int, buckets: int, validation: float, seed: int):
        kept, aside = data.split(traces.appliances, validation, seed=seed)
        self.seed = seed
        self.edges = data.bucket_edges(traces.steps(frame), buckets)
        self.training = traces.take(kept)
        self.framing = Framing(self.training, frame)
        self.validation = self.batches(traces.take(aside))

    def epoch(self, number: int, batch_size: int) -> list[Batch]:
        """Shuffled batches of one epoch; the frames of each trace begin at a random sample."""
        rng = np.random.default_rng((self.seed, number, 1))
        starts = rng.integers(0, self.framing.frame, len(self.training))
        return data.batches(
            self.framing.sequences(self.training, starts),
            self.training.appliances,
            batch_size,
            seed=(self.seed, number, 2),
            buckets=self.edges,
        )

    def batches(self, traces: Traces) -> list[Batch]:
        """One batch for each bucket."""
        sequences = self.framing.sequences(traces)
        return data.batches(sequences, traces.appliances, len(traces), buckets=self.edges)


def labels(batches: list[Batch]) -> np.ndarray:
    return np.concatenate([batch.labels for batch in batches])


def nearest_neighbour(training: Traces, tests: Traces, steps: int) -> np.ndarray:
    """The appliance of the training trace nearest to each test trace, by Euclidean distance.

    All are stretched to the same number of steps by linear interpolation.
    """

    def stretched(traces: Traces) -> np.ndarray:
        grid = np.linspace(0, 1, steps)
        return np.stack([np.interp(grid, np.linspace(0, 1, len(x)), x) for x in traces.series])

    a, b = stretched(training), stretched(tests)
    squares = (b**2).sum(axis=1)[:, None] - 2 * b @ a.T + (a**2).sum(axis=1)
    return training.appliances[squares.argmin(axis=1)]
