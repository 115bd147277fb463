"""Prints the parity tables of docs/parity.md: the worst errors against PyTorch.

python parity_tests/helpers/table.py parity      by kind of layer
python parity_tests/helpers/table.py notebook    by model of the notebook, on its tasks
"""

import math
import sys

import numpy as np
import torch
from flax import nnx

import jaxrnn
import notebook
from jaxrnn.testing import Report, compare, tolerance

KINDS = {
    "RNN, tanh": ("RNN", {}),
    "RNN, relu": ("RNN", {"nonlinearity": "relu"}),
    "GRU": ("GRU", {}),
    "LSTM": ("LSTM", {}),
    "LSTM, projected": ("LSTM", {"proj_size": 16}),
}
DTYPES = ("float64", "float32", "bfloat16")
STEPS, BATCH, INPUTS, HIDDEN = 63, 8, 16, 32


def errors(kind: str, dtype: str) -> dict[str, float]:
    """Worst errors of one layer in both directions: outputs and states, and gradients."""
    name, options = KINDS[kind]
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name)(INPUTS, HIDDEN, bidirectional=True, **options)
    ours = getattr(jaxrnn, name)(INPUTS, HIDDEN, bidirectional=True, **options, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((STEPS, BATCH, INPUTS))
    lengths = rng.integers(1, STEPS + 1, BATCH)
    return worst(compare(theirs, ours, x, lengths=lengths, dtype=dtype))


def worst(report: Report) -> dict[str, float]:
    """Worst errors of outputs and states, of losses, of gradients and of training."""
    if not report.ok:
        raise SystemExit(str(report))
    found: dict[str, float] = {}
    for row in report.rows:
        kind = "output" if row.kind == "state" else row.kind
        # As judged: relative to the largest entry, or absolute where that is below 1.
        absolute = math.inf if kind == "gradient" else row.max_abs
        found[kind] = max(min(absolute, row.norm_relative), found.get(kind, 0.0))
    return found


def table() -> str:
    lines = [
        "| | " + " | ".join(f"{d}: outputs | gradients" for d in DTYPES) + " |",
        "|---|" + "---|" * 2 * len(DTYPES),
    ]
    for kind in KINDS:
        numbers = []
        for dtype in DTYPES:
            if (kind, dtype) == ("RNN, relu", "bfloat16"):
                # Rounding a sum across 0 changes relu's derivative by 1, so there is no promise.
                numbers.append("– | –")
                continue
            found = errors(kind, dtype)
            numbers.append(f"{found['output']:.0e} | {found['gradient']:.0e}")
        lines.append(f"| {kind} | " + " | ".join(numbers) + " |")
    promised = [
        f"{tolerance(d, STEPS, 'output'):.0e} | {tolerance(d, STEPS, 'gradient'):.0e}"
        for d in DTYPES
    ]
    lines.append("| *promised* | " + " | ".join(promised) + " |")
    return "\n".join(lines) + "\n"


# Columns of the notebook's table: a dtype and a kind of row, or a number of training steps in
# float64.
COLUMNS = [
    ("float64: outputs", ("float64", "output")),
    ("loss", ("float64", "loss")),
    ("gradients", ("float64", "gradient")),
    ("one step", 1),
    ("20 steps", 20),
    ("float32: outputs", ("float32", "output")),
    ("loss", ("float32", "loss")),
    ("gradients", ("float32", "gradient")),
]


def notebook_errors(row: str) -> list[float]:
    """Error for each column."""
    pair = notebook.Pair(row)
    compared = {dtype: worst(pair.compare(dtype)) for dtype in ("float64", "float32")}
    return [
        worst(pair.train(what))["training"] if isinstance(what, int) else compared[what[0]][what[1]]
        for _, what in COLUMNS
    ]


def notebook_promises() -> list[float]:
    """Tolerance for each column."""
    longest = 100  # steps; no task of the notebook has more
    return [
        tolerance("float64", what, "training")
        if isinstance(what, int)
        else tolerance(what[0], longest, what[1])
        for _, what in COLUMNS
    ]


def notebook_table() -> str:
    def line(name: str, figures: list[float]) -> str:
        return f"| {name} | " + " | ".join(f"{figure:.0e}" for figure in figures) + " |"

    names = [name for name, _ in COLUMNS]
    lines = ["| | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    lines += [line(row, notebook_errors(row)) for row in notebook.ROWS]
    lines.append(line("*promised*", notebook_promises()))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print({"parity": table, "notebook": notebook_table}[sys.argv[1]](), end="")
