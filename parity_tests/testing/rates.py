"""Measures how often `compare` errs: right twins called wrong, and wrong ones called right.

python parity_tests/testing/rates.py               prints the table: half an hour on two cores
python parity_tests/testing/rates.py --pairs 200   fewer right pairs

`python tools/tables.py rates --write` puts the table into docs/parity.md.
"""

import argparse
import collections
import dataclasses
import itertools
import math
import multiprocessing
import os
import sys
import zlib
from collections.abc import Iterator, Sequence

DTYPES = ("float64", "float32", "bfloat16")


@dataclasses.dataclass
class Counts:
    """Of one dtype.

    Attributes:
        marked: wrong pairs that agree, where the report marks the edited gradient as one that
            consists of rounding, so that no factor in it can be seen.
        largest: the largest error of a right pair over its bound.
        smallest: the smallest error of a wrong pair over its bound, without the marked ones.
    """

    right: int = 0
    alarms: int = 0
    wrong: int = 0
    misses: int = 0
    marked: int = 0
    largest: float = 0.0
    smallest: float = math.inf

    def __add__(self, other: "Counts") -> "Counts":
        sums = {
            name: getattr(self, name) + getattr(other, name)
            for name in ("right", "alarms", "wrong", "misses", "marked")
        }
        largest = max(self.largest, other.largest)
        return Counts(**sums, largest=largest, smallest=min(self.smallest, other.smallest))


def judge(name: str, size: int, dtype: str, seeds: int, verbose: bool) -> Counts:
    """One pair of modules with many weights, inputs and cotangents, and wrong edits of it."""
    import numpy as np
    import torch

    import mutations
    import pairs
    from jaxrnn.testing import Report, compare, jax_side

    first = zlib.crc32(f"{name} {size} {dtype}".encode()) % 1_000_000
    torch.manual_seed(first)
    pair, s = pairs.PAIRS[name], pairs.SIZES[size]
    theirs, ours = pair.theirs(s), pair.ours(s)
    names = list(mutations.parameters(ours))
    options = {"lengths": [s.steps, 1, *[3] * (s.batch - 2)]} if pair.lengths else {}

    def run(seed: int, edits: mutations.Edits) -> Report:
        x = pair.inputs(s, np.random.default_rng(seed))
        return compare(
            theirs,
            ours,
            x,
            edits,
            dtype=dtype,
            train=pair.train,
            seed=seed,
            steps=s.steps,
            noise=0.3,
            torch_call=mutations.call_theirs,
            jax_call=mutations.call_ours,
            **options,
        )

    counts = Counts()
    with jax_side.shared_programs():
        for seed in range(first, first + seeds):
            report = run(seed, mutations.no_edits(len(names)))
            counts.right += 1
            counts.alarms += not report.ok
            worst = max(report.rows, key=lambda row: row.excess)
            counts.largest = max(counts.largest, worst.excess)
            if verbose:
                print(name, size, dtype, seed, f"{worst.excess:.2g}", worst.name, flush=True)
        for seed, (edited, edits) in enumerate(
            mutations.wrong(pair, names, dtype, s.hidden), first
        ):
            report = run(seed, edits)
            marked = report.ok and report[edited].note == "cancels"
            counts.wrong += 1
            counts.marked += marked
            counts.misses += report.ok and not marked
            excess = max(row.excess for row in report.rows)
            counts.smallest = min(counts.smallest, math.inf if marked else excess)
            if verbose:
                kind = "marked" if marked else "wrong"
                print(name, size, dtype, kind, f"{excess:.2g}", edited, flush=True)
    return counts


def job(arguments: tuple[str, int, str, int, bool]) -> tuple[str, Counts]:
    return arguments[2], judge(*arguments)


def shards(
    number: int, verbose: bool, only: str, dtypes: Sequence[str]
) -> Iterator[tuple[str, int, str, int, bool]]:
    import pairs

    kinds = [key for key in pairs.PAIRS if only in key]
    cells = list(itertools.product(kinds, range(len(pairs.SIZES)), DTYPES))
    for name, size, dtype in cells:
        if dtype in dtypes:
            yield name, size, dtype, -(-number // len(cells)), verbose


def table(counts: dict[str, Counts]) -> str:
    lines = [
        "| | right pairs | false alarms | closest | wrong pairs | misses | marked | closest |",
        "|---" * 8 + "|",
    ]
    for dtype, c in counts.items():
        lines.append(
            f"| {dtype} | {c.right:,} | {c.alarms} | {c.largest:.2f} | {c.wrong:,} | {c.misses} | "
            f"{c.marked} | {c.smallest:,.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=2160, help="right pairs, at least")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", default="", help="kinds whose name contains this")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=DTYPES)
    parser.add_argument("--verbose", action="store_true", help="print every comparison")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    counts: dict[str, Counts] = collections.defaultdict(Counts)
    jobs = shards(options.pairs, options.verbose, options.only, options.dtypes)
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for dtype, found in pool.imap(job, jobs):
            counts[dtype] = counts[dtype] + found
    print(table({dtype: counts[dtype] for dtype in options.dtypes}), end="")
    if any(c.alarms or c.misses for c in counts.values()):
        sys.exit("rates: a right pair was called wrong, or a wrong one right")


if __name__ == "__main__":
    main()
