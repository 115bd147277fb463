"""Benchmark of `Shooting` against its inner strategy run sequentially.

    python benchmarks/shooting.py
    python benchmarks/shooting.py --inner "Scan()" --batches 1 --lengths 65536 --hidden-sizes 256

The number of chunks is such that there are 64 rows, even where `Shooting()` would choose a single
chunk, to show why it does. Outputs and gradients of both are compared before timing. Both are timed
in turns, and their medians compared. Cases whose arrays exceed `--memory` are left out and listed.
The script also counts sweeps for networks that forget at different rates. It writes
shooting-INNER-DATE.json, .md and .png into `--out`, each atomically.
"""

import dataclasses
import datetime
import io
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import measure
import report
from jaxrnn import cells, strategies
from jaxrnn.cells import Weights

ROWS, SHORTEST = 64, 256  # chunks times batch, and the least steps of a chunk
AGREEMENT = {"forward": 1e-5, "training": 1e-3}  # float32, relative: outputs, gradients


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure the speed-up of shooting."""

    cell: Literal["rnn_tanh", "gru", "lstm"] = "lstm"
    inner: str = "Native()"
    """A strategy as a Python expression. It runs the chunks, and the whole sequentially."""
    batches: tuple[int, ...] = (1, 4, 16)
    lengths: tuple[int, ...] = (4096, 65536, 1048576)
    hidden_sizes: tuple[int, ...] = (32, 64, 256)
    inputs: int = 1
    repeats: int = 3
    """Timed runs of each; their median is reported."""
    memory: float = 8.0
    """Largest size of the arrays of one case, in GiB."""
    sweeps: bool = True
    """Also count the sweeps of networks that forget at different rates."""
    out: Path = Path("benchmarks/results")


@dataclasses.dataclass(frozen=True)
class Row:
    kind: str  # forward, training
    batch: int
    steps: int
    hidden: int
    in_order: float  # seconds
    shooting: float
    chunks: int
    sweeps: int
    residual: float
    fell_back: bool
    apart: float

    @property
    def gain(self) -> float:
        return self.in_order / self.shooting


def draw_weights(cell: cells.Cell, inputs: int, hidden: int) -> Weights:
    """Weights with PyTorch's initial distribution."""
    rng = np.random.default_rng(0)
    rows = cell.gates * hidden

    def uniform(*shape: int) -> jax.Array:
        return jnp.asarray(rng.uniform(-1, 1, shape) / np.sqrt(hidden), jnp.float32)

    return Weights(uniform(rows, inputs), uniform(rows, hidden), uniform(rows), uniform(rows))


def new_case(cell: cells.Cell, steps: int, batch: int, hidden: int, inputs: int):
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.standard_normal((steps, batch, inputs)), jnp.float32)
    carry = tuple(jnp.zeros((batch, hidden)) for _ in range(cell.states))
    return draw_weights(cell, inputs, hidden), x, carry


def need(kind: str, cell: cells.Cell, steps: int, batch: int, hidden: int) -> float:
    """Rough GiB: projections and outputs; in training also residuals, cotangents and copies."""
    arrays = cell.gates + 2 if kind == "forward" else 4 * cell.gates + 2 * cell.states + 2
    return arrays * 4 * steps * batch * hidden / 2**30


def apart(one: Any, two: Any) -> float:
    """Largest difference, relative to each array's largest entry."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    return max(float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))) for a, b in pairs)


def measure_case(options: Options, kind: str, steps: int, batch: int, hidden: int) -> Row:
    cell = getattr(cells, options.cell)
    inner = eval(options.inner, vars(strategies))
    shooting = strategies.Shooting(max(2, min(ROWS // batch, steps // SHORTEST)), inner)
    weights, x, carry = new_case(cell, steps, batch, hidden, options.inputs)

    def loss(strategy: Any, weights: Weights, x: jax.Array) -> jax.Array:
        return (strategy(cell, weights, x, carry)[0] ** 2).mean()

    def make(strategy: Any) -> Callable[[], Any]:
        if kind == "forward":
            run = jax.jit(partial(strategy, cell))
            return lambda: jax.block_until_ready(run(weights, x, carry))
        gradient = jax.jit(jax.grad(partial(loss, strategy)))
        return lambda: jax.block_until_ready(gradient(weights, x))

    ways = [make(inner), make(shooting)]
    difference = apart(ways[1](), ways[0]())
    if not difference <= AGREEMENT[kind]:
        raise SystemExit(f"{kind}, T = {steps}, B = {batch}, H = {hidden}: apart {difference:.0e}.")
    seconds: list[list[float]] = [[], []]
    for _ in range(options.repeats):
        for taken, way in zip(seconds, ways, strict=True):
            taken.append(measure.seconds(way))
    ys, last, info = shooting.run(cell, weights, x, carry)
    if kind == "training":
        ct = (2 * ys / ys.size, jax.tree.map(jnp.zeros_like, last))
        _, info = shooting.run_adjoint(cell, weights, x, carry, None, ct)
    medians = [statistics.median(taken) for taken in seconds]
    chunks = shooting.count(steps, batch, hidden)
    told = (int(info.sweeps), float(info.residual), bool(info.fell_back))
    return Row(kind, batch, steps, hidden, *medians, chunks, *told, difference)


def forgetting(steps: int = 8192, hidden: int = 32, chunks: int = 32) -> dict[str, Any]:
    """Sweeps until the boundaries agree, by forget-gate bias and by spectral radius."""
    strategy = strategies.Shooting(chunks=chunks, burn_in=0, max_sweeps=chunks)
    weights, x, carry = new_case(cells.lstm, steps, 1, hidden, 1)
    gates = []
    for bias in (-2.0, 0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0):
        held = weights._replace(b_hh=weights.b_hh.at[hidden : 2 * hidden].set(bias))
        gates.append((bias, int(strategy.run(cells.lstm, held, x, carry)[2].sweeps)))
    weights, x, carry = new_case(cells.rnn_tanh, steps, 1, hidden, 1)
    q, _ = np.linalg.qr(np.random.default_rng(2).standard_normal((hidden, hidden)))
    radii = []
    for radius in (0.5, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0):
        turned = weights._replace(hh=jnp.asarray(radius * q, jnp.float32), ih=1e-3 * weights.ih)
        turned = turned._replace(b_ih=0 * weights.b_ih, b_hh=0 * weights.b_hh)
        info = strategy.run(cells.rnn_tanh, turned, x, carry)[2]
        radii.append((radius, int(info.sweeps)))
    return {"steps": steps, "chunks": chunks, "forget_bias": gates, "spectral_radius": radii}


def table(options: Options, machine: str, rows: Sequence[Row], left_out: Sequence[str]) -> str:
    lines = [
        f"# Shooting against sequential {options.inner}: {options.cell}",
        "",
        f"{machine} Medians of {options.repeats}, in turns; float32; PyTorch's initial weights.",
        "",
        "| | B | T | H | sequential, ms | shooting, ms | gain | chunks | sweeps | residual "
        "| error |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        sweeps = f"{r.sweeps}, then sequential" if r.fell_back else f"{r.sweeps}"
        lines.append(
            f"| {r.kind} | {r.batch} | {r.steps:,} | {r.hidden} | {1000 * r.in_order:,.1f} | "
            f"{1000 * r.shooting:,.1f} | {r.gain:.2f} | {r.chunks} | {sweeps} | "
            f"{r.residual:.0e} | {r.apart:.0e} |"
        )
    if left_out:
        lines += ["", f"Left out, over {options.memory:g} GiB: " + "; ".join(left_out) + "."]
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], slow: dict[str, Any] | None, inner: str) -> bytes:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    height = 9 if slow else 5
    figure, grid = plt.subplots(2 if slow else 1, 2, figsize=(11, height), layout="constrained")
    axes = grid.ravel()
    styles = {1: "-", 4: "--", 16: ":"}
    for axis, kind in zip(axes, ("forward", "training"), strict=False):
        cases = sorted({(r.batch, r.hidden) for r in rows if r.kind == kind})
        colours = {h: f"C{k}" for k, h in enumerate(sorted({h for _, h in cases}))}
        for batch, hidden in cases:
            mine = [r for r in rows if (r.kind, r.batch, r.hidden) == (kind, batch, hidden)]
            axis.plot(
                [r.steps for r in mine],
                [r.gain for r in mine],
                styles.get(batch, "-."),
                marker=".",
                color=colours[hidden],
                label=f"B = {batch}, H = {hidden}",
            )
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set_title(f"{kind.capitalize()}: Shooting over {inner} against sequential {inner}")
        axis.set_xscale("log", base=2)
        axis.set(xlabel="T (steps)", ylabel="speed-up, times", ylim=(0, None))
    if slow:
        for axis, (name, label) in zip(
            axes[2:],
            (
                ("forget_bias", "forget gate's bias (LSTM)"),
                ("spectral_radius", "spectral radius of an orthogonal W_hh, scaled (tanh RNN)"),
            ),
            strict=True,
        ):
            axis.plot(*zip(*slow[name], strict=True), ".-")
            axis.axhline(slow["chunks"], color="black", linewidth=0.8, linestyle="--")
            axis.set(title=f"Sweeps over {slow['steps']:,} steps in {slow['chunks']} chunks")
            axis.set(xlabel=label)
            axis.set(ylabel="sweeps until the boundaries agree", ylim=(0, None))
    for axis in axes:
        axis.grid(alpha=0.3)
    lines, names = axes[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=3, handlelength=3)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    plt.close(figure)
    return png.getvalue()


def main(options: Options) -> None:
    options.out.mkdir(parents=True, exist_ok=True)
    cell = getattr(cells, options.cell)
    rows, left_out = [], []
    for kind in ("forward", "training"):
        for batch in options.batches:
            for hidden in options.hidden_sizes:
                for steps in options.lengths:
                    case = f"{kind}, B = {batch}, T = {steps:,}, H = {hidden}"
                    if need(kind, cell, steps, batch, hidden) > options.memory:
                        left_out.append(case)
                        continue
                    rows.append(measure_case(options, kind, steps, batch, hidden))
                    print(f"{case}: {rows[-1].gain:.2f} times as fast", flush=True)
    slow = forgetting() if options.sweeps else None
    date = datetime.date.today().isoformat()
    where = report.environment(len(os.sched_getaffinity(0)))
    inner = options.inner.partition("(")[0].lower()
    stem = str(options.out / f"shooting-{inner}-{date}")
    chosen = {**dataclasses.asdict(options), "out": str(options.out)}
    results = {
        "date": date,
        "environment": where,
        "options": chosen,
        "rows": [dataclasses.asdict(row) for row in rows],
        "left_out": left_out,
        "forgetting": slow,
    }
    text = table(options, report.place(date, where), rows, left_out)
    report.write(Path(stem + ".json"), (json.dumps(results, indent=1) + "\n").encode())
    report.write(Path(stem + ".md"), text.encode())
    report.write(Path(stem + ".png"), draw(rows, slow, options.inner))
    print(text)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
