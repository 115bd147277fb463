"""Figure of a training: loss and accuracy of one or two frameworks, and their difference."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from support.output import new_figure, save_figure

# The first curve is broad and light, the second thin and dashed, so that both show where they
# coincide.
STYLES = [
    {"linewidth": 5.0, "alpha": 0.4, "solid_capstyle": "round"},
    {"linewidth": 1.4, "linestyle": (0, (4, 2))},
]
COLOURS = ("tab:blue", "tab:orange")


def draw(
    path: Path, title: str, scores: Mapping[str, Mapping[str, np.ndarray]], apart: np.ndarray | None
) -> None:
    """Write a PNG file atomically.

    Args:
        path: of the PNG.
        title: over the figure.
        scores: framework -> what it was scored on -> (epochs, 2): loss and accuracy.
            At most two of each.
        apart: (epochs,) how far the frameworks' losses are apart; None for no such panel.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_figure(2 if apart is None else 3, title)
    for (name, parts), style in zip(scores.items(), STYLES, strict=False):
        for (part, values), colour in zip(parts.items(), COLOURS, strict=False):
            epochs = np.arange(1, len(values) + 1)
            for axis, column, unit in zip(axes, values.T, (1, 100), strict=False):
                axis.plot(epochs, column * unit, color=colour, label=f"{name}, {part}", **style)
    axes[0].set(title="Loss", ylabel="cross entropy (nats)", ylim=(0, None))
    axes[1].set(title="Accuracy", ylabel="utterances classified correctly (%)")
    axes[1].legend(loc="lower right")
    if apart is not None:
        seen = np.where(apart > 0, apart, np.nan)  # a logarithmic axis has no 0
        axes[2].plot(np.arange(1, len(apart) + 1), seen, ".-", color="black", linewidth=1.4)
        axes[2].set(
            title=f"Loss, {' minus '.join(scores)}",
            ylabel="largest size over an epoch's batches (nats)",
            yscale="log",
            ylim=_decades(apart),
        )
    for axis in axes:
        axis.set_xlabel("epoch (passes over the training set)")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axis.grid(alpha=0.3)
    save_figure(figure, path)


def _decades(values: np.ndarray) -> tuple[float, float]:
    """The whole powers of ten around the values that are not 0."""
    logs = np.log10(values[values > 0]) if values.any() else np.zeros(1)
    return 10 ** np.floor(logs.min()), 10 ** (np.floor(logs.max()) + 1)
