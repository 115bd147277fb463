"""Figure of the speed-up over PyTorch at every point."""

import io
from itertools import product
from typing import Any

import numpy as np

from points import LENGTHS, MODES, Point
from report import CELL_NAMES, SUBJECT, Results, geometric_mean, point_of, ratio

LIMIT = 8  # ratio at which the colour scale ends


def draw(results: Results) -> bytes:
    """PNG with a dot for each point, placed and coloured by speed-up; one row per cell and B."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    known = [(point_of(row), r) for row in results["points"] if (r := ratio(row, "torch", SUBJECT))]
    batches = sorted({point.batch for point, _ in known}, reverse=True)
    height = {
        (cell, batch): i
        for i, (cell, batch) in enumerate((c, b) for c in ("gru", "lstm", "rnn") for b in batches)
    }
    values = [r.median for _, r in known] or [1.0]
    low, high = min(0.5, min(values) / 1.2), max(2.0, max(values) * 1.2)
    powers = 2.0 ** np.arange(np.ceil(np.log2(low)), np.floor(np.log2(high)) + 1)
    norm = LogNorm(1 / LIMIT, LIMIT)

    figure, axes = plt.subplots(
        2, 2, figsize=(12, 9.2), sharex=True, sharey=True, layout="constrained"
    )
    for axis, (mode, lengths) in zip(axes.flat, product(MODES, LENGTHS), strict=True):
        axis.axvspan(low, 1, color="0.93", zorder=0)
        axis.axvline(1, color="black", linewidth=1, zorder=1)
        chosen = [(p, r) for p, r in known if (p.mode, p.lengths) == (mode, lengths)]
        for key, y in height.items():
            row = [(p, r) for p, r in chosen if (p.cell, p.batch) == key]
            row.sort(key=lambda pair: (pair[0].hidden, pair[0].inputs, pair[0].steps))
            spread = np.linspace(-0.3, 0.3, len(row)) if len(row) > 1 else np.zeros(len(row))
            for (point, r), shift in zip(row, spread, strict=True):
                axis.scatter(
                    r.median,
                    y + shift,
                    s=_area(point) * (0.4 if len(known) > 400 else 1),
                    marker=_marker(point),
                    c=[r.median],
                    cmap="RdBu",
                    norm=norm,
                    edgecolors="black",
                    linewidths=0.5,
                    zorder=3,
                )
            mean = geometric_mean(r for _, r in row)
            if mean is not None and len(row) > 1:
                axis.plot([mean, mean], [y - 0.42, y + 0.42], color="black", linewidth=2, zorder=4)
        for edge in range(len(batches), len(height), max(len(batches), 1)):
            axis.axhline(edge - 0.5, color="0.6", linewidth=0.8)
        mean = geometric_mean(r for _, r in chosen)
        told = f", geometric mean {mean:.2f}" if mean else ": not measured"
        axis.set_title(f"{mode}, {lengths}{told}", fontsize=11)
        axis.set(xscale="log", xlim=(low, high), ylim=(-0.6, len(height) - 0.4))
        axis.xaxis.set_major_locator(FixedLocator(list(powers)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda v, _: _fraction(v)))
        axis.set_yticks(list(height.values()), [f"{CELL_NAMES[c]}  B = {b}" for c, b in height])
        axis.grid(axis="x", alpha=0.3)
    figure.suptitle(
        "Time of PyTorch divided by time of jaxrnn, same weights and inputs: "
        "jaxrnn is faster to the right of 1 (blue)"
    )
    for axis in axes[-1]:
        axis.set_xlabel("speed-up, times (logarithmic)")
    figure.legend(
        handles=_legend([point for point, _ in known]),
        loc="outside lower center",
        ncols=5,
        frameon=False,
    )
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    plt.close(figure)
    return png.getvalue()


def _fraction(value: float) -> str:
    return f"{value:g}" if value >= 1 else f"1/{1 / value:g}"


def _area(point: Point) -> float:
    return 14 * np.log2(max(point.hidden, 16) / 8)


def _marker(point: Point) -> str:
    if point.deep:
        return "D"
    return "o" if point.steps < 1000 else "s"


def _legend(known: list[Point]) -> list[Any]:
    from matplotlib.lines import Line2D

    def dot(marker: str, area: float, label: str) -> Line2D:
        return Line2D(
            [],
            [],
            linestyle="",
            marker=marker,
            markersize=area**0.5,
            label=label,
            markerfacecolor="white",
            markeredgecolor="black",
        )

    kinds = [
        ("o", "T below 1000", lambda p: _marker(p) == "o"),
        ("s", "T from 1000", lambda p: _marker(p) == "s"),
        ("D", "two layers, both directions", lambda p: p.deep),
    ]
    handles = [dot(m, 40, label) for m, label, belongs in kinds if any(map(belongs, known))]
    sizes = sorted({p.hidden: p for p in known}.items())
    handles += [dot("o", _area(p), f"H = {hidden}") for hidden, p in sizes]
    return [*handles, Line2D([], [], color="black", linewidth=2, label="geometric mean of a row")]
