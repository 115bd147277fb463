"""Prints the README's tables of times and memory, from the newest results that are committed.

python benchmarks/readme.py            prints it
python benchmarks/readme.py --write    puts it into README.md
"""

import json
import sys
from pathlib import Path

import report

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parents[1] / "README.md"
STEPS = 65_536
BEGIN, END = "<!-- table of times -->\n", "<!-- end of table of times -->\n"


def newest(name: str) -> tuple[report.Results, str] | None:
    """The newest results of that name, and a link to their report."""
    paths = sorted(RESULTS.glob(f"{name}-[0-9]*.json"))
    if not paths:
        return None
    place = paths[-1].with_suffix(".md").relative_to(README.parent)
    return json.loads(paths[-1].read_text()), f"[{place.name}]({place})"


def verdict(results: report.Results) -> str:
    return "".join(f"- {line}\n" for line in report.verdict(results))


def table() -> str:
    found = newest("cpu")
    if not found:
        return "No results are committed yet.\n"
    results, link = found
    parts = [
        report.summary_table(results),
        verdict(results),
        f"{report.heading(results)} By point, with compile time: {link}.\n",
    ]
    for name, what in (
        ("grid", "Against PyTorch alone"),
        ("closest", "The sizes closest to 1 again, with more rounds"),
    ):
        if found := newest(name):
            others, link = found
            parts += [f"{what}, at {len(others['points'])} points ({link}):\n", verdict(others)]
    parts += [
        "MiB that a training step adds to the process, results included; in brackets what XLA "
        "plans:\n",
        report.memory_table(results),
        *shooting(),
    ]
    return "\n".join(parts)


def shooting() -> list[str]:
    """What it gave over each strategy that it was measured over, for one row of `STEPS`."""
    lines, links = [], []
    for inner in ("scan", "native"):
        if found := newest(f"shooting-{inner}"):
            results, link = found
            links.append(link)
            lines += [
                f"| {results['options']['inner']} | {row['kind']} | {row['hidden']} | "
                f"{1e3 * row['in_order']:,.0f} | {1e3 * row['shooting']:,.0f} | "
                f"{row['in_order'] / row['shooting']:.2f} | {row['sweeps']} |\n"
                for row in results["rows"]
                if (row["batch"], row["steps"]) == (1, STEPS)
            ]
    if not lines:
        return []
    head = "| over | | H | in order, ms | shooting, ms | times as fast | sweeps |\n"
    return [
        f"`Shooting` on an LSTM, one row of {STEPS:,} steps ({', '.join(links)}):\n",
        head + "|---" * 7 + "|\n" + "".join(lines),
    ]


def main() -> None:
    text = table()
    print(text, end="")
    if "--write" in sys.argv[1:]:
        readme = README.read_text()
        before, rest = readme.split(BEGIN)
        _, after = rest.split(END)
        README.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
