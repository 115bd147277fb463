"""Output of an example: a folder that is checked before the work, and figures in it."""

import io
import os
from pathlib import Path
from typing import Any


def make_folder(path: Path) -> None:
    """Make a folder. Raise ValueError where it cannot be made or written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {path} cannot be made: {error.strerror}.") from None
    if not os.access(path, os.W_OK):
        raise ValueError(f"--out {path} cannot be written to.")


def new_figure(
    panels: int, title: str, rows: int = 1, size: tuple[float, float] = (5.4, 4.4)
) -> tuple[Any, Any]:
    """A figure that needs no screen, and its axes, in one row or several.

    `size` is a panel's width and height, in inches.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    width, height = size
    figure, axes = plt.subplots(
        rows, panels, figsize=(width * panels, height * rows), layout="constrained"
    )
    figure.suptitle(title)
    return figure, axes


def save_figure(figure: Any, path: Path) -> None:
    """Write a PNG file atomically."""
    import matplotlib.pyplot as plt

    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120)
    plt.close(figure)
    write_whole(path, png.getvalue())


def print_written(*paths: Path) -> None:
    """The last lines of every example."""
    print("\nWritten", *paths, sep="\n  ")


def write_whole(path: Path, contents: bytes) -> None:
    """Write a file atomically: all of it, or the old contents stay."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(contents)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
