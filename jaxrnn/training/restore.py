"""`load`: the weights of a run, without its optimizer."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from flax import nnx
from jax.sharding import Sharding

from jaxrnn.training import checkpoints, state


def load(
    folder: str | os.PathLike[str],
    model: nnx.Module,
    which: Literal["best", "last"] = "best",
) -> None:
    """Load the weights of a run of `fit` into a model, without an optimizer.

    All of the model's state is read, including batch statistics, except for the dropout counters.

    Args:
        folder: folder of the run, as given to `fit`. The run may still be training.
        model: a model of the run's class and sizes. It is changed in place; its mode is kept.
        which: "best" for the weights of the epoch with the best validation so far, "last" for those
            of the newest checkpoint.

    Raises:
        ValueError: for a folder without a checkpoint; for the best weights of a run without a
            validation; for a checkpoint that is damaged or of another model. The model is
            unchanged.

    Example:
        >>> import tempfile, jax.numpy as jnp, optax
        >>> from flax import nnx
        >>> from jaxrnn import data, training
        >>> model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        >>> optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
        >>> batches = [data.Batch(jnp.eye(2), jnp.array([1, 0]))]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     history = training.fit(model, optimizer, batches, epochs=2, folder=folder)
        ...     other = nnx.Linear(2, 2, rngs=nnx.Rngs(1))
        ...     training.load(folder, other, "last")
        >>> bool((other.kernel[...] == model.kernel[...]).all())
        True
    """
    if which not in ("best", "last"):
        raise ValueError(f'`load(which)` must be "best" or "last", got {which!r}.')
    saved = Path(folder) / "checkpoints"
    found = checkpoints.steps(saved)
    if not found:
        raise ValueError(f"`{folder}` holds no checkpoint of a run of `fit`.")
    prefix = "best." if which == "best" else "model."
    wanted = state.weights(model)
    layout = checkpoints.layout(state.host(wanted))

    def part(arrays: Mapping[str, Any]) -> dict[str, Any]:
        return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}

    def accept(notes: dict[str, Any], arrays: dict[str, list[Any]]) -> dict[str, Sharding]:
        if which == "best" and notes["best"] is None:
            raise ValueError(
                f"The run in `{folder}` has no best weights, as it has had no validation yet. Pass "
                '`which="last"`.'
            )
        # The checkpoint's model part includes the dropout counters, which are not loaded.
        noise = state.host(nnx.state(model, nnx.RngState))
        rest = {name: array for name, array in part(arrays).items() if name not in noise}
        state.check_layout(saved / str(found[-1]), layout, rest)
        return {prefix + name: where for name, where in state.divided(wanted).items()}

    arrays, _ = checkpoints.load(saved, found[-1], accept)
    nnx.update(model, state.device(wanted, part(arrays)))
