"""Ratios, tables and summary of the raw times, computed from the JSON alone."""

import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from points import Point

Row = Mapping[str, Any]  # one point of the JSON
Results = Mapping[str, Any]

SUBJECT = "default"  # the peer of the summary: the default strategy
PACKAGES = ("jaxrnn", "jax", "jaxlib", "flax", "keras", "torch", "numpy")
CELL_NAMES = {"rnn": "RNN, tanh", "lstm": "LSTM", "gru": "GRU"}


def environment(cores: int) -> dict[str, Any]:
    """Machine and versions, on which the figures depend."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "sources": _sources(),
        "cpu": _cpu(),
        "cores": cores,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def _cpu() -> str:
    """Model of the CPU, if the system reports it, and the widest vector instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    fields = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    flags = fields.get("flags", "").split()
    wide = [name for flag, name in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if flag in flags]
    return ", ".join([fields.get("model name", "unknown"), *wide[:1]])


def _sources() -> str:
    """Git hash of the sources of jaxrnn, marked if they are modified."""
    try:
        name = _git("rev-parse", "--short", "HEAD:jaxrnn")
        return f"{name}, changed" if _git("status", "--porcelain", "--", "jaxrnn") else name
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    root = Path(__file__).parents[1]
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


class Ratio(NamedTuple):
    """Median over rounds of one peer's time divided by another's, and the quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def point_of(row: Row) -> Point:
    return Point(**row["point"])


def median(row: Row, peer: str) -> float:
    return float(np.median(row["seconds"][peer]))


def ratio(row: Row, over: str, peer: str) -> Ratio | None:
    """Time of `over` divided by that of `peer`; None if either is missing."""
    seconds = row["seconds"]
    if peer not in seconds or over not in seconds:
        return None
    low, middle, high = np.percentile(
        np.array(seconds[over]) / np.array(seconds[peer]), [25, 50, 75]
    )
    return Ratio(float(middle), float(low), float(high))


def geometric_mean(values: Iterable[Ratio | None]) -> float | None:
    medians = [value.median for value in values if value is not None]
    return float(np.exp(np.mean(np.log(medians)))) if medians else None


def share_of_floor(row: Row) -> float:
    return row["floor"] / median(row, SUBJECT)


GROUPS: dict[str, Callable[[Point], bool]] = {
    **{
        f"{name}, dense": lambda p, cell=cell: p.cell == cell and p.lengths == "dense"  # type: ignore[misc]
        for cell, name in CELL_NAMES.items()
    },
    "ragged": lambda p: p.lengths == "ragged",
    "B = 1": lambda p: p.batch == 1,
    "B ≥ 32, H ≥ 128": lambda p: p.batch >= 32 and p.hidden >= 128,
    "two layers, both directions": lambda p: p.deep,
    "all": lambda p: True,
}


def summary_table(results: Results) -> str:
    """Geometric means of the speed-up by group of points."""
    lines = [
        "| | points | over PyTorch: inference | training | worst | over Flax | over Keras | "
        "share of floor |",
        "|---|---|---|---|---|---|---|---|",
    ]
    timed = [row for row in results["points"] if ratio(row, "torch", SUBJECT)]
    for name, belongs in GROUPS.items():
        rows = [row for row in timed if belongs(point_of(row))]
        if not rows:
            continue
        over = [ratio(row, "torch", SUBJECT) for row in rows]
        means = [
            geometric_mean(
                r for r, row in zip(over, rows, strict=True) if point_of(row).mode == mode
            )
            for mode in ("inference", "training")
        ]
        others = [
            geometric_mean(ratio(row, peer, SUBJECT) for row in rows) for peer in ("flax", "keras")
        ]
        worst = min(r.median for r in over if r)
        share = float(np.exp(np.mean(np.log([share_of_floor(row) for row in rows]))))
        cells = [len(rows), *map(_number, [*means, worst, *others, share])]
        lines.append(f"| {name} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def write(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def verdict(results: Results) -> list[str]:
    """Lines on the slowest point against PyTorch, the slower points, and missing measurements."""
    ratios = [(ratio(row, "torch", SUBJECT), row) for row in results["points"]]
    known = [(r, row) for r, row in ratios if r]
    lines = []
    if known:
        worst, row = min(known, key=lambda pair: pair[0].median)
        lost = sum(r.high < 1 for r, _ in known)
        lines.append(f"Worst against PyTorch: {worst} at {point_of(row)}.")
        lines.append(f"Slower than PyTorch beyond the spread: {lost} of {len(known)} points.")
    if results["left_out"]:
        lines.append(f"Not measured for lack of time: {results['left_out']} points.")
    for peer, why in results["absent"].items():
        lines.append(f"Left out: {peer}. {why}")
    lines += [
        f"Disagrees with PyTorch, so not timed: {peer} at {point_of(row)}, {share:.2g} times the "
        "tolerance."
        for row in results["points"]
        for peer, share in row["disagree"].items()
    ]
    return lines


def place(date: str, where: dict[str, Any]) -> str:
    """Machine, versions and date, as text."""
    versions = ", ".join(f"{k} {v}" for k, v in where["versions"].items() if v)
    return (
        f"{date}, {where['cpu']}, {where['cores']} cores, {where['system']}; "
        f"Python {where['python']}, {versions}, sources {where['sources']}."
    )


def heading(results: Results) -> str:
    """Machine, versions, date and calibration, as text."""
    calibration = results["calibration"]
    return (
        f"{place(results['date'], results['environment'])} "
        f"Peak {calibration['peak'] / 1e9:.0f} Gflop/s, "
        f"tanh {calibration['tau'] * 1e9:.2f} ns on one core."
    )


def markdown(results: Results, figure: str) -> str:
    """The whole report."""
    return "\n".join(
        [
            f"# Times against PyTorch: {results['name']}",
            "",
            heading(results),
            "",
            *[f"- {line}" for line in verdict(results)],
            "",
            "The speed-up is PyTorch's time divided by jaxrnn's: the median over rounds, and "
            "geometric means over points.",
            "",
            summary_table(results),
            f"![speed-up against PyTorch by point]({figure})",
            "",
            "## By point",
            "",
            "Milliseconds. Brackets give the quartiles of the speed-up over rounds. The last "
            "columns are the speed-ups of the other peers over PyTorch. `floor` is the least time "
            "that the machine's calibration allows, divided by the measured time.",
            "",
            _points_table(results),
            "## Peak memory of a training step",
            "",
            "MiB that the step adds to the process, including its results; XLA's estimate in "
            "brackets.",
            "",
            memory_table(results),
            "## Compiling a training step",
            "",
            "Seconds, including tracing; in brackets the compilations of the step and of later "
            "calls.",
            "",
            _study_table(results["compilation"], _compilation),
        ]
    )


def _points_table(results: Results) -> str:
    names = {name for row in results["points"] for name in row["seconds"]}
    others = [n for n in ("scan", "native", "reference", "flax", "keras") if n in names]
    lines = [
        "| point | rounds | PyTorch | jaxrnn | speed-up | floor | " + " | ".join(others) + " |",
        "|---|" + "---|" * (5 + len(others)),
    ]
    for row in results["points"]:
        subject = ratio(row, "torch", SUBJECT)
        timed = SUBJECT in row["seconds"]
        cells = [
            len(row["seconds"]["torch"]),
            f"{median(row, 'torch') * 1e3:.3g}",
            f"{median(row, SUBJECT) * 1e3:.3g}" if timed else "–",
            subject or "–",
            _number(share_of_floor(row) if timed else None),
            *(_number(r.median if (r := ratio(row, "torch", n)) else None) for n in others),
        ]
        lines.append(f"| {point_of(row)} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def memory_table(results: Results) -> str:
    return _study_table(results["memory"], _memory)


def _study_table(rows: Sequence[Row], cell: Callable[[Row], str]) -> str:
    """Table with points as rows and peers as columns."""
    if not rows:
        return "Not measured.\n"
    names = list(dict.fromkeys(row["peer"] for row in rows if "absent" not in row))
    table: dict[str, dict[str, str]] = {}
    for row in rows:
        text = "–" if "absent" in row else cell(row)
        table.setdefault(str(point_of(row)), {})[row["peer"]] = text
    lines = ["| point | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    lines += [
        f"| {point} | " + " | ".join(cells.get(n, "–") for n in names) + " |"
        for point, cells in table.items()
    ]
    return "\n".join(lines) + "\n"


def _memory(row: Row) -> str:
    planned = f" ({row['xla_mib']:.0f})" if "xla_mib" in row else ""
    return f"{row['mib']:.0f}{planned}"


def _compilation(row: Row) -> str:
    first, later = row["compilations"]
    return f"{row['seconds']:.2f} ({first}, {later})"
