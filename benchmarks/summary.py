"""Prints the tables of times and memory in docs/performance.md from the newest committed results.

python tools/tables.py times --write    writes them there

`python benchmarks/summary.py sides` prints the README's table instead.
"""

import json
import sys
from pathlib import Path

import report

RESULTS = Path(__file__).parent / "results"
STEPS = 65_536


def newest(name: str) -> tuple[report.Results, str] | None:
    """Newest results with this name, and the path of their report."""
    paths = sorted(RESULTS.glob(f"{name}-[0-9]*.json"))
    if not paths:
        return None
    report_path = paths[-1].with_suffix(".md").relative_to(RESULTS.parents[1])
    return json.loads(paths[-1].read_text()), f"`{report_path}`"


def verdict(results: report.Results) -> str:
    return "".join(f"- {line}\n" for line in report.verdict(results))


def table() -> str:
    found = newest("cpu")
    if not found:
        return "No results are committed yet.\n"
    results, place = found
    parts = [
        report.summary_table(results),
        verdict(results),
        f"{report.heading(results)} By point, with compile time: {place}.\n",
    ]
    if found := newest("avx2"):
        others, place = found
        parts += [
            "A subset of these points on a processor with AVX2 alone "
            f"({report.heading(others)} {place}):\n",
            report.summary_table(others),
            verdict(others),
        ]
    for name, what in (
        ("heldout", "On the same processor, at sizes that the kernel was not tuned on"),
        ("grid", "An older kernel against PyTorch alone, on an older processor with AVX-512"),
        ("closest", "The sizes with ratios closest to 1 again, with more rounds"),
    ):
        if found := newest(name):
            others, place = found
            parts += [f"{what}, at {len(others['points'])} points ({place}):\n", verdict(others)]
    parts += [
        "MiB that a training step adds to the process, including its results; XLA's estimate in "
        "brackets:\n",
        report.memory_table(results),
        *shooting(),
    ]
    return "\n".join(parts)


def sides() -> str:
    """Times as fast as PyTorch with AVX-512 and with AVX2, over the points that both have."""
    runs = [newest(name) for name in ("cpu", "avx2")]
    rows = [{report.point_of(row): row for row in run[0]["points"]} for run in runs if run]
    common = set.intersection(*map(set, rows))
    lines = [
        f"|over PyTorch, {len(common)} points: inference/training|AVX-512|AVX2|",
        "|---|---|---|",
    ]
    for name, belongs in report.GROUPS.items():
        if not name.endswith(("dense", "ragged", "all")):
            continue
        cells = []
        for of_run in rows:
            means = (
                report.geometric_mean(
                    report.ratio(of_run[point], "torch", report.SUBJECT)
                    for point in common
                    if belongs(point) and point.mode == mode
                )
                for mode in ("inference", "training")
            )
            cells.append("/".join(f"{mean:.1f}" for mean in means if mean))
        lines.append(f"|{name}|{'|'.join(cells)}|")
    return "\n".join(lines) + "\n"


def shooting() -> list[str]:
    """Speed-up over each measured inner strategy, for one row of `STEPS` steps."""
    lines, places = [], []
    for inner in ("scan", "native"):
        if found := newest(f"shooting-{inner}"):
            results, place = found
            places.append(place)
            lines += [
                f"| {results['options']['inner']} | {row['kind']} | {row['hidden']} | "
                f"{1e3 * row['in_order']:,.0f} | {1e3 * row['shooting']:,.0f} | "
                f"{row['in_order'] / row['shooting']:.2f} | {row['sweeps']} |\n"
                for row in results["rows"]
                if (row["batch"], row["steps"]) == (1, STEPS)
            ]
    if not lines:
        return []
    head = "| over | | H | sequential, ms | shooting, ms | times as fast | sweeps |\n"
    return [
        f"`Shooting` on an LSTM, one row of {STEPS:,} steps ({', '.join(places)}):\n",
        head + "|---" * 7 + "|\n" + "".join(lines),
    ]


if __name__ == "__main__":
    print(sides() if sys.argv[1:] == ["sides"] else table(), end="")
