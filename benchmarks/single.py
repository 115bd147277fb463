"""Benchmark of one row: the time of a step beside what the machine allows.

    MALLOC_TRIM_THRESHOLD_=1000000000 MALLOC_MMAP_THRESHOLD_=33000000 python benchmarks/single.py

One layer, I = H, float32, inference. The time of a step is the difference between two lengths, so a
call's fixed cost is not in it. The variables keep the memory of the outputs in the process; without
them the system maps it anew for long sequences, which may cost as much as the steps.

The floor is that of `measure.floor`: all products at peak speed on all cores. But one row uses each
recurrent weight once a step, and a second-level cache delivers weights more slowly than they are
multiplied. So the rate at which each core would have to read its part of the recurrent weights, if
nothing else took time, is shown too.
"""

import argparse
import math
import os

import numpy as np

import cases
import peers
from measure import calibrate, floor, interleaved
from points import CELLS, GATES, Point

SHORT, LONG = 200, 1200


def step_times(cell: str, hidden: int, budget: float) -> dict[str, float]:
    """Seconds of a step of each peer."""
    calls = {}
    for steps in (SHORT, LONG):
        case = cases.make(Point(cell, "inference", "dense", 1, steps, hidden, hidden))
        made = {"default": peers.ours(case, None), "torch": peers.make("torch", case)}
        results = {name: peer.result(peer()) for name, peer in made.items()}
        error = cases.worst_error(case, results["torch"], results["default"])
        assert error <= 1, f"{cell}, H = {hidden}: {error:.1f} times the tolerance"
        calls |= {(name, steps): peer for name, peer in made.items()}
    named = {f"{name} {steps}": call for (name, steps), call in calls.items()}
    median = {name: float(np.median(t)) for name, t in interleaved(named, budget).items()}
    return {
        name: (median[f"{name} {LONG}"] - median[f"{name} {SHORT}"]) / (LONG - SHORT)
        for name in ("default", "torch")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, nargs="+", default=[16, 32, 64, 128, 256, 512])
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS)
    parser.add_argument("--budget", type=float, default=2.0, help="seconds for each point")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    machine = calibrate(cores, 3.0)
    print(f"Peak {machine.peak / 1e9:.0f} Gflop/s on {cores} cores.\n")
    print("| | H | ns / step | PyTorch / default | floor / default | GB/s a core |")
    print("|---|---|---|---|---|---|")
    shares: dict[str, list[tuple[float, float]]] = {cell: [] for cell in options.cells}
    for cell in options.cells:
        for hidden in options.hidden:
            taken = step_times(cell, hidden, options.budget)
            point = Point(cell, "inference", "dense", 1, 1, hidden, hidden)
            mine = taken["default"]
            over_torch, share = taken["torch"] / mine, floor(point, machine) / mine
            shares[cell].append((over_torch, share))
            rate = 4 * GATES[cell] * hidden**2 / cores / mine / 1e9
            shown = f"{1e9 * mine:.0f} | {over_torch:.2f} | {share:.2f} | {rate:.0f}"
            print(f"| {cell} | {hidden} | {shown} |", flush=True)
    for cell, found in shares.items():
        means = (math.exp(np.log(column).mean()) for column in zip(*found, strict=True))
        print(f"| {cell} | mean | | {' | '.join(f'{mean:.2f}' for mean in means)} | |")


if __name__ == "__main__":
    main()
