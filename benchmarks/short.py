"""Benchmark of short sequences: the default, `Scan`, PyTorch and an empty compiled call.

    python benchmarks/short.py                     # about ten minutes on an idle machine
    python benchmarks/short.py --steps 1 --hidden 64 --cells lstm --layers 2 --modes training

I = H, float32. Medians over interleaved rounds in microseconds, as a Markdown table. The empty call
is a compiled function of the same arguments that returns zeros: a call's fixed cost.
"""

import argparse
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import cases
import peers
from measure import interleaved
from points import CELLS, MODES, Point


def empty(point: Point, arguments: tuple[Any, ...]) -> Callable[[], Any]:
    """A call of a compiled function of these arguments that computes nothing."""
    shape = (point.steps, point.batch, point.hidden)
    nothing = jax.jit(lambda *_: jnp.zeros(shape), keep_unused=True)
    return lambda: jax.block_until_ready(nothing(*arguments))


def times(point: Point, budget: float) -> dict[str, float]:
    """Median seconds of each peer at a point, and of the empty call."""
    case = cases.make(point)
    ours = peers.ours(case, None)
    made = {
        "torch": peers.make("torch", case),
        "default": ours,
        "scan": peers.make("scan", case),
    }
    results = {name: peer.result(peer()) for name, peer in made.items()}
    for name, result in results.items():
        error = cases.worst_error(case, results["torch"], result)
        assert error <= 1, f"{name} at {point}: {error:.1f} times the tolerance"
    nothing = empty(point, ours.arguments)
    nothing()
    calls = {**made, "empty": nothing}
    return {name: float(np.median(t)) for name, t in interleaved(calls, budget).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4, 8, 32])
    parser.add_argument("--hidden", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["inference"])
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--budget", type=float, default=0.5, help="seconds for each point")
    options = parser.parse_args()
    print("| | B | T | H | default | `Scan` | PyTorch | empty | PyTorch / default |")
    print("|---|---|---|---|---|---|---|---|---|")
    ratios, over_scan = [], []
    grid = options.cells, options.modes, options.steps, options.batch, options.hidden
    for cell, mode, steps, batch, hidden in itertools.product(*grid):
        point = Point(cell, mode, "dense", batch, steps, hidden, hidden, layers=options.layers)
        taken = times(point, options.budget)
        ratios.append(taken["torch"] / taken["default"])
        over_scan.append(taken["scan"] / taken["default"])
        shown = [f"{1e6 * taken[name]:.1f}" for name in ("default", "scan", "torch", "empty")]
        print(
            f"| {cell} {mode} | {batch} | {steps} | {hidden} | {' | '.join(shown)} "
            f"| {ratios[-1]:.2f} |",
            flush=True,
        )
    print()
    for name, found in {"PyTorch": ratios, "`Scan`": over_scan}.items():
        mean, faster = math.exp(np.log(found).mean()), sum(r > 1 for r in found)
        print(
            f"{name} / default: geometric mean {mean:.2f}, the least {min(found):.2f}, above 1 at "
            f"{faster} of {len(found)} points."
        )


if __name__ == "__main__":
    main()
