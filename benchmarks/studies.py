"""Studies in addition to the grid: peak memory of a training step, and compile time by T."""

from collections.abc import Iterator
from typing import Any

import cases
import footprint
import measure
import peers
from points import Point

FEW_PEERS = ("torch", "default", "checkpoint", "flax", "keras")

FEW_MEMORY_POINTS = (
    Point("lstm", "training", "dense", 32, 100, 128, 256),
    Point("lstm", "training", "dense", 1, 100_000, 64, 64),
)
MEMORY_POINTS = (
    *FEW_MEMORY_POINTS,
    Point("rnn", "training", "dense", 32, 100, 128, 256),
    Point("gru", "training", "dense", 32, 100, 128, 256),
    Point("lstm", "training", "ragged", 32, 100, 128, 256),
    Point("lstm", "training", "dense", 128, 100, 512, 512),
)
COMPILE_POINTS = tuple(
    Point("lstm", "training", "dense", 8, steps, 64, 64) for steps in (100, 1000, 10_000)
)


def run(full: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """("memory" or "compilation", row) for each point and peer."""
    names = peers.NAMES if full else FEW_PEERS
    for point in MEMORY_POINTS if full else FEW_MEMORY_POINTS:
        for name in names:
            yield "memory", _row(point, name, footprint.measure(name, point))
    for point in COMPILE_POINTS:
        case = cases.make(point)
        for name in names:
            if name != "torch":
                yield "compilation", _row(point, name, _compilation(name, case))


def _row(point: Point, peer: str, measured: dict[str, Any]) -> dict[str, Any]:
    return {"point": vars(point), "peer": peer, **measured}


def _compilation(name: str, case: cases.Case) -> dict[str, Any]:
    """Seconds to compile a training step, and the compilations of it and of later calls."""
    try:
        peer = peers.make(name, case)
        assert isinstance(peer, peers.Jax)
        taken, first = measure.compilations.during(lambda: measure.seconds(peer.compile))
        _, later = measure.compilations.during(lambda: (peer(), peer()))
    except peers.Absent as error:
        return {"absent": str(error)}
    return {"seconds": taken, "compilations": [first, later]}
