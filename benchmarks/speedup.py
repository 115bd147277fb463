"""Draws docs/figures/speedup.png, the README's figure, from the newest committed CPU results.

python benchmarks/speedup.py
"""

import io
import sys
from pathlib import Path

import report
import summary

PATH = Path(__file__).parents[1] / "docs/figures/speedup.png"
PEERS = {"torch": "PyTorch", "flax": "Flax (nnx.RNN)", "keras": "Keras"}
GROUPS = {
    "RNN, tanh, dense": "RNN",
    "GRU, dense": "GRU",
    "LSTM, dense": "LSTM",
    "ragged": "ragged\nbatches",
}
COLOURS = ("tab:blue", "tab:orange", "tab:green")


def means(results: report.Results, mode: str, peer: str) -> list[float | None]:
    """Geometric mean of the speed-up over a peer, for each of `GROUPS`."""
    return [
        report.geometric_mean(
            report.ratio(row, peer, report.SUBJECT)
            for row in results["points"]
            if report.point_of(row).mode == mode and report.GROUPS[group](report.point_of(row))
        )
        for group in GROUPS
    ]


def title(results: report.Results) -> str:
    """The finding: the range of training speed-ups over PyTorch and over the JAX libraries."""
    torch = [m for m in means(results, "training", "torch") if m]
    others = [m for peer in ("flax", "keras") for m in means(results, "training", peer) if m]
    return (
        f"On a CPU, jaxrnn trains {min(torch):.1f} to {max(torch):.1f} times as fast as PyTorch, "
        f"{min(others):.1f} to {max(others):.1f} times as fast as Flax and Keras"
    )


def draw(results: report.Results) -> bytes:
    """PNG with speed-ups as bars, in one panel for inference and one for training."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for axis, mode in zip(axes, ("inference", "training"), strict=True):
        for n, (peer, label) in enumerate(PEERS.items()):
            found = means(results, mode, peer)
            places = [group + 0.27 * (n - 1) for group in range(len(GROUPS))]
            bars = axis.bar(
                places, [m or 0 for m in found], 0.25, label=label, color=COLOURS[n], zorder=2
            )
            labels = [f"{m:.1f}" if m else "–" for m in found]
            axis.bar_label(bars, labels, fontsize=8, padding=1)
        axis.axhline(1, color="black", linewidth=0.8, linestyle=(0, (4, 2)), zorder=3)
        axis.set_xticks(range(len(GROUPS)), list(GROUPS.values()))
        axis.set_title(mode, fontsize=10)
        axis.grid(axis="y", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("speed-up: their time / ours")
    axes[0].legend(frameon=False, loc="upper right")
    figure.suptitle(title(results), fontsize=11)
    where = results["environment"]
    points = f"geometric means over {len(results['points'])} points, float32"
    figure.supxlabel(f"{points}; {where['cpu']}, {where['cores']} cores", fontsize=8, color="0.4")
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    plt.close(figure)
    return png.getvalue()


def main() -> None:
    found = summary.newest("cpu")
    if found is None:
        sys.exit("No results are committed yet: `make bench` measures them.")
    report.write(PATH, draw(found[0]))


if __name__ == "__main__":
    main()
