"""Prints the README's parity table: the worst errors against PyTorch, kind by kind.

python parity_tests/table.py            prints it
python parity_tests/table.py --write    puts it into README.md
"""

import sys
from pathlib import Path

import numpy as np
import torch
from flax import nnx

import jaxrnn
from jaxrnn.testing import compare, tolerance

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- parity table -->\n", "<!-- end of parity table -->\n"

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
    """The worst error of outputs and states, and of gradients, of one layer in both directions."""
    name, options = KINDS[kind]
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name)(INPUTS, HIDDEN, bidirectional=True, **options)
    ours = getattr(jaxrnn, name)(INPUTS, HIDDEN, bidirectional=True, **options, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((STEPS, BATCH, INPUTS))
    lengths = rng.integers(1, STEPS + 1, BATCH)
    report = compare(theirs, ours, x, lengths=lengths, dtype=dtype)
    if not report.ok:
        raise SystemExit(str(report))
    gradients = [row.norm_relative for row in report.rows if row.kind == "gradient"]
    others = [row.max_abs for row in report.rows if row.kind in ("output", "state")]
    return {"output": max(others), "gradient": max(gradients)}


def table() -> str:
    lines = [
        "| | " + " | ".join(f"{d}: outputs | gradients" for d in DTYPES) + " |",
        "|---|" + "---|" * 2 * len(DTYPES),
    ]
    for kind in KINDS:
        numbers = []
        for dtype in DTYPES:
            if (kind, dtype) == ("RNN, relu", "bfloat16"):
                # A rounded sum on the other side of 0 changes relu's derivative by 1: no promise.
                numbers.append("– | –")
                continue
            worst = errors(kind, dtype)
            numbers.append(f"{worst['output']:.0e} | {worst['gradient']:.0e}")
        lines.append(f"| {kind} | " + " | ".join(numbers) + " |")
    promised = [
        f"{tolerance(d, STEPS, 'output'):.0e} | {tolerance(d, STEPS, 'gradient'):.0e}"
        for d in DTYPES
    ]
    lines.append("| *promised* | " + " | ".join(promised) + " |")
    return "\n".join(lines) + "\n"


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
