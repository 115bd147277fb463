"""Draw docs/figures/speedup.png, the README's figure, from the newest committed results.

python benchmarks/speedup.py
"""

import io
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gpu_report
import report
import summary

PATH = Path(__file__).parents[1] / "docs/figures/speedup.png"
COLOURS = ("tab:blue", "tab:orange", "tab:green")

Means = Mapping[str, Sequence[float | None]]
"""For each peer the geometric mean of its time over jaxrnn's, for each group of points."""

CPU_PEERS = {"torch": "PyTorch", "flax": "Flax (nnx.RNN)", "keras": "Keras"}
CPU_GROUPS = {
    "RNN, tanh, dense": "RNN",
    "GRU, dense": "GRU",
    "LSTM, dense": "LSTM",
    "ragged": "ragged\nbatches",
}
GPU_PEERS = {"cudnn": "cuDNN", "cudnn graph": "cuDNN, CUDA graph", "flax": "Flax (nnx.RNN)"}
GPU_GROUPS = {"inference": "inference", "training": "training"}


def cpu_means(results: report.Results, mode: str) -> Means:
    def mean(peer: str, belongs: Callable[[Any], bool]) -> float | None:
        rows = [
            row
            for row in results["points"]
            if report.point_of(row).mode == mode and belongs(report.point_of(row))
        ]
        return report.geometric_mean(report.ratio(row, peer, report.SUBJECT) for row in rows)

    groups = [report.GROUPS[group] for group in CPU_GROUPS]
    return {label: [mean(peer, g) for g in groups] for peer, label in CPU_PEERS.items()}


def gpu_means(results: report.Results) -> Means:
    """One dense layer of 128 units or more."""
    points: dict[tuple, dict[str, Any]] = {}
    for row in results["rows"]:
        points.setdefault(tuple(row[k] for k in gpu_report.KEYS), {})[row["peer"]] = row
    wide = {row["hidden"] for row in results["rows"] if row["hidden"] >= 128}
    usual = {"lengths": ("dense",), "layers": (1,), "steps": (512,), "hidden": wide}

    def mean(peer: str, mode: str) -> float | None:
        return gpu_report.geometric_mean(gpu_report.ratios(points, peer, mode=(mode,), **usual))

    found = {label: [mean(p, mode) for mode in GPU_GROUPS] for p, label in GPU_PEERS.items()}
    return {label: row for label, row in found.items() if any(row)}


def title(training: Means, gpu: Means | None) -> str:
    """The finding: the ranges of the means in training."""
    torch = [m for m in training["PyTorch"] if m]
    others = [m for label, row in training.items() if label != "PyTorch" for m in row if m]
    told = (
        f"On a CPU, jaxrnn trains {min(torch):.1f} to {max(torch):.1f} times as fast as PyTorch, "
        f"{min(others):.1f} to {max(others):.1f} times as fast as Flax and Keras"
    )
    trained = [row[1] for label, row in (gpu or {}).items() if "cuDNN" in label and row[1]]
    if trained:
        lowest, highest = (f"{bound:.1f}" for bound in (min(trained), max(trained)))
        times = lowest if lowest == highest else f"{lowest} to {highest}"
        told += f";\non a GPU {times} times as fast as cuDNN"
    return told


def bars(axis: Any, name: str, means: Means, groups: Sequence[str]) -> None:
    for n, (label, row) in enumerate(means.items()):
        places = [group + 0.27 * (n - (len(means) - 1) / 2) for group in range(len(groups))]
        heights = [m or 0 for m in row]
        drawn = axis.bar(places, heights, 0.25, label=label, color=COLOURS[n], zorder=2)
        texts = [f"{m:.1f}" if m else "–" for m in row]
        axis.bar_label(drawn, texts, fontsize=8, padding=1)
    axis.axhline(1, color="black", linewidth=0.8, linestyle=(0, (4, 2)), zorder=3)
    axis.set_xticks(range(len(groups)), list(groups))
    axis.set_title(name, fontsize=10)
    axis.set_ylim(0, 1.2 * max(m for row in means.values() for m in row if m))
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="upper center", fontsize=8, ncols=3)


def draw(cpu: report.Results, gpu: report.Results | None) -> bytes:
    """A PNG: speed-ups as bars; inference and training on a CPU, and both on a GPU."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = [(f"CPU, {m}", cpu_means(cpu, m), CPU_GROUPS) for m in ("inference", "training")]
    where = cpu["environment"]
    note = f"geometric means, float32 on the CPU; {where['cpu']}, {where['cores']} cores"
    on_gpu = gpu_means(gpu) if gpu else None
    if gpu and on_gpu:
        panels.append(("GPU, one layer, H ≥ 128", on_gpu, GPU_GROUPS))
        note += f"; {gpu['machine']['gpu'].split(',')[0]}"
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 4), layout="constrained")
    for axis, (name, means, groups) in zip(axes, panels, strict=True):
        bars(axis, name, means, list(groups.values()))
    axes[0].set_ylabel("speed-up: their time / ours")
    figure.suptitle(title(panels[1][1], on_gpu), fontsize=11)
    figure.supxlabel(note, fontsize=8, color="0.4")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    plt.close(figure)
    return png.getvalue()


def main() -> None:
    cpu, gpu = summary.newest("cpu"), summary.newest("gpu-h100")
    if cpu is None:
        sys.exit("No results are committed yet: `make bench` measures them.")
    report.write(PATH, draw(cpu[0], gpu[0] if gpu else None))


if __name__ == "__main__":
    main()
