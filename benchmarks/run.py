"""Times jaxrnn, PyTorch, Flax and Keras, and reports the speed-ups at every point.

    python benchmarks/run.py                       # a sensible subset, 10 minutes at most
    python benchmarks/run.py --full                # the whole grid: hours
    python benchmarks/run.py --cells lstm --modes training --full --resume FILE.json
    python benchmarks/run.py --help

Each point is one cell at given sizes, in inference or training (forward, loss, the gradients of all
weights and of the inputs), on dense or ragged batches. Every peer's results are checked against
PyTorch's, then all peers are timed in turns. Results are written after every point, so an
interrupted run loses nothing; `--resume` adds to them. Run nothing else meanwhile: on busy cores,
PyTorch's threads wait for each other, and a comparison is meaningless.
"""

import dataclasses
import datetime
import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
import tyro
from tqdm import tqdm

import cases
import figure
import measure
import peers
import points
import report
import studies
from points import Cell, Lengths, Mode, Point, Shape

CORES = len(os.sched_getaffinity(0))
HEAVY = 0.2  # floor in seconds from which the subset times only PyTorch and the default


@dataclasses.dataclass(frozen=True)
class Options:
    """Times jaxrnn against PyTorch, Flax and Keras."""

    full: bool = False
    """The whole grid and longer studies, without a time limit."""
    cells: tuple[Cell, ...] = points.CELLS
    modes: tuple[Mode, ...] = points.MODES
    lengths: tuple[Lengths, ...] = points.LENGTHS
    batch: tuple[int, ...] = ()
    """Only these B, if any; the same for the three below."""
    steps: tuple[int, ...] = ()
    inputs: tuple[int, ...] = ()
    hidden: tuple[int, ...] = ()
    shapes: tuple[Shape, ...] = ()
    """Any number of B T I H, in place of the grid's sizes."""
    peers: tuple[str, ...] = ("torch", "default", "scan", "flax", "keras")
    """Peers to time in addition to PyTorch; also `native`, `reference` and `checkpoint`."""
    studies: bool = True
    """Also measure memory and compile time."""
    seconds: float = 0.8
    """Seconds for the rounds of a point; a minimum of rounds is always made."""
    minutes: float = 9.0
    """Minutes after which no further point begins, unless `--full`."""
    name: str = "cpu"
    """File name before the date."""
    out: Path = Path(__file__).parent / "results"
    """Folder for the files."""
    resume: Path | None = None
    """JSON of an earlier run on the same machine with the same versions, to add to."""

    def chosen(self) -> list[Point]:
        if self.shapes:
            grid = points.of_shapes(self.shapes)
        else:
            grid = points.full() if self.full else points.few()
        wanted = {
            "cell": self.cells,
            "mode": self.modes,
            "lengths": self.lengths,
            "batch": self.batch,
            "steps": self.steps,
            "inputs": self.inputs,
            "hidden": self.hidden,
        }
        return points.shuffled(
            [p for p in grid if all(not v or getattr(p, k) in v for k, v in wanted.items())]
        )

    def check(self) -> None:
        """End the program with one sentence if the options are invalid. Create the folder."""
        unknown = sorted({*self.peers} - {*peers.NAMES})
        if unknown:
            raise SystemExit(f"--peers must be among {', '.join(peers.NAMES)}, got {unknown[0]}.")
        if not self.chosen():
            raise SystemExit(
                "No benchmark matches these filters. `--full` has more sizes; `--shapes` takes any."
            )
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SystemExit(f"--out {self.out} cannot be made: {error.strerror}.") from None


def begin(options: Options) -> tuple[Path, dict[str, Any]]:
    """Path of the JSON, and its contents so far."""
    environment = report.environment(CORES)
    if options.resume is None:
        date = datetime.date.today().isoformat()
        return options.out / f"{options.name}-{date}.json", {
            "name": options.name,
            "date": date,
            "environment": environment,
            "points": [],
            "absent": {},
            "left_out": 0,
            "memory": [],
            "compilation": [],
        }
    results = json.loads(options.resume.read_text())
    if results["environment"] != environment:
        raise SystemExit(f"{options.resume} is of another machine or other versions.")
    return options.resume, results


def measure_point(
    point: Point, names: tuple[str, ...], seconds: float, absent: dict[str, str]
) -> dict[str, Any]:
    """Check every peer against PyTorch, time those that agree, and note absent peers."""
    case = cases.make(point)
    taking_part: dict[str, peers.Peer] = {}
    errors: dict[str, float] = {}
    compilations: dict[str, int] = {}
    expected: cases.Arrays = {}
    for name in names:
        try:
            peer = peers.make(name, case)
            raw, count = measure.compilations.during(peer)
        except peers.Absent as error:
            absent[name] = str(error)
            continue
        except Exception as error:
            if name not in peers.STRATEGIES:
                raise
            absent[name] = f"It failed at {point}: {error}"
            continue
        result = peer.result(raw)
        expected = expected or result
        errors[name] = cases.worst_error(case, expected, result)
        compilations[name] = count
        if errors[name] <= 1:
            taking_part[name] = peer
    before = measure.compilations.count
    times = measure.interleaved(taking_part, seconds)
    return {
        "point": vars(point),
        "seconds": {k: [float(f"{s:.4g}") for s in v] for k, v in times.items()},
        "error": {name: float(f"{error:.2g}") for name, error in errors.items()},
        "disagree": {name: error for name, error in errors.items() if error > 1},
        "compilations": compilations,
        "compilations_later": measure.compilations.count - before,
    }


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    options.check()
    start = time.monotonic()
    if os.getloadavg()[0] > 0.5:
        print(
            f"The machine is busy (load {os.getloadavg()[0]:.1f}): the ratios will be meaningless."
        )
    path, results = begin(options)
    if "calibration" not in results:
        results["calibration"] = dataclasses.asdict(measure.calibrate(CORES, options.seconds))
    calibration = measure.Calibration(**results["calibration"])
    print(report.heading(results))

    def save() -> None:
        report.write(path, (json.dumps(results) + "\n").encode())

    done = {report.point_of(row) for row in results["points"]}
    todo = [point for point in options.chosen() if point not in done]
    names = ("torch", *(name for name in options.peers if name != "torch"))
    if options.studies and not results["memory"]:
        for kind, row in tqdm(studies.run(options.full), "memory, compilation", disable=None):
            results[kind].append(row)
        save()
    results["left_out"] = 0
    for i, point in enumerate(tqdm(todo, "points", disable=None)):
        if not options.full and time.monotonic() - start > 60 * options.minutes:
            results["left_out"] = len(todo) - i
            break
        heavy = measure.floor(point, calibration) > HEAVY and not options.full
        some = tuple(n for n in names if n in ("torch", "default")) if heavy else names
        row = measure_point(point, some, options.seconds, results["absent"])
        results["points"].append({**row, "floor": measure.floor(point, calibration)})
        save()
        jax.clear_caches()
        gc.collect()

    # The speed of a shared machine varies, so take the best of two calibrations.
    again = measure.calibrate(CORES, options.seconds)
    calibration = measure.Calibration(
        max(calibration.peak, again.peak), min(calibration.tau, again.tau), CORES
    )
    results["calibration"] = dataclasses.asdict(calibration)
    for row in results["points"]:
        row["floor"] = measure.floor(report.point_of(row), calibration)
    save()

    png = path.with_suffix(".png")
    report.write(png, figure.draw(results))
    report.write(path.with_suffix(".md"), report.markdown(results, png.name).encode())
    print("\n" + report.summary_table(results))
    print(*report.verdict(results), sep="\n")
    print(f"Written: {path}, .md and .png; {(time.monotonic() - start) / 60:.1f} minutes.")
    if any(row["disagree"] for row in results["points"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
