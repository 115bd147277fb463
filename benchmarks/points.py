"""Points of the benchmark: the full grid, and the subset that `make bench` measures.

Shape letters: B batch, T steps, I inputs, H hidden units.
"""

import dataclasses
import itertools
import random
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np

Cell: TypeAlias = Literal["rnn", "lstm", "gru"]
Mode: TypeAlias = Literal["inference", "training"]
Lengths: TypeAlias = Literal["dense", "ragged"]
Shape: TypeAlias = tuple[int, int, int, int]

CELLS: tuple[Cell, ...] = ("rnn", "lstm", "gru")
MODES: tuple[Mode, ...] = ("inference", "training")
LENGTHS: tuple[Lengths, ...] = ("dense", "ragged")
GATES = {"rnn": 1, "lstm": 4, "gru": 3}

BATCHES, STEPS, SIZES = (1, 8, 32, 128), (100, 1000), (32, 64, 128, 256, 512)

# (B, T, I, H): the corners of B, T and H, and sizes between them.
FEW_DENSE: tuple[Shape, ...] = (
    (1, 100, 32, 32),
    (1, 1000, 32, 32),
    (1, 100, 512, 512),
    (1, 1000, 512, 512),
    (128, 100, 32, 32),
    (128, 1000, 32, 32),
    (128, 100, 512, 512),
    (32, 100, 64, 64),
    (32, 100, 128, 256),
)
FEW_RAGGED: tuple[Shape, ...] = (
    (32, 100, 128, 256),
    (8, 1000, 64, 128),
    (128, 100, 512, 512),
)
LARGEST: Shape = (128, 1000, 512, 512)
FEW_DEEP: Shape = (32, 100, 64, 128)
DEEP: tuple[Shape, ...] = ((1, 100, 64, 64), (8, 1000, 64, 64), FEW_DEEP)


@dataclasses.dataclass(frozen=True)
class Point:
    """One measurement: a cell, a mode and its sizes."""

    cell: Cell
    mode: Mode
    lengths: Lengths
    batch: int
    steps: int
    inputs: int
    hidden: int
    layers: int = 1
    directions: int = 1

    def __str__(self) -> str:
        deep = f" {self.layers}x{self.directions}" if self.deep else ""
        sizes = f"B={self.batch} T={self.steps} I={self.inputs} H={self.hidden}"
        return f"{self.cell} {self.mode} {self.lengths} {sizes}{deep}"

    @property
    def deep(self) -> bool:
        """True if there is more than one layer or direction."""
        return self.layers * self.directions > 1

    def row_lengths(self) -> np.ndarray:
        """(B,) steps of each row: T, or uniform on 1..T and equal at every call."""
        if self.lengths == "dense":
            return np.full(self.batch, self.steps, np.int32)
        rng = np.random.default_rng((self.batch, self.steps))
        return rng.integers(1, self.steps + 1, self.batch, dtype=np.int32)


def few() -> list[Point]:
    """The subset, for a few minutes. The largest corner is the dense LSTM's inference only."""
    points = [Point(*kind, "dense", *shape) for kind in _kinds() for shape in FEW_DENSE]
    points += [Point(*kind, "ragged", *shape) for kind in _kinds() for shape in FEW_RAGGED]
    points.append(Point("lstm", "inference", "dense", *LARGEST))
    return points + [_deep(Point(*kind, "dense", *FEW_DEEP)) for kind in _kinds()]


def full() -> list[Point]:
    """The whole grid, for hours."""
    shapes = list(itertools.product(BATCHES, STEPS, SIZES, SIZES))
    return of_shapes(shapes) + [_deep(point) for point in of_shapes(DEEP)]


def of_shapes(shapes: Sequence[Shape]) -> list[Point]:
    """Every cell, mode and kind of lengths at the given sizes."""
    return [
        Point(*kind, lengths, *shape)
        for shape, kind, lengths in itertools.product(shapes, _kinds(), LENGTHS)
    ]


def _kinds() -> list[tuple[Cell, Mode]]:
    return list(itertools.product(CELLS, MODES))


def _deep(point: Point) -> Point:
    return dataclasses.replace(point, layers=2, directions=2)


def shuffled(points: Sequence[Point]) -> list[Point]:
    """The points in a fixed random order, so that every prefix is a representative sample."""
    return random.Random(0).sample(points, len(points))
