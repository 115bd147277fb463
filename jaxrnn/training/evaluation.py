"""Predictions and scores of a model in evaluation mode."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from jaxrnn.sharding import fetch
from jaxrnn.training import placement
from jaxrnn.training.batches import as_arrays, rows, shapes, true_steps
from jaxrnn.training.losses import cross_entropy
from jaxrnn.training.placement import place_batch
from jaxrnn.training.scoring import Forward, Score, named, scalar
from jaxrnn.training.steps import forward


def predict(
    model: nnx.Module,
    batches: Iterable[Any],
    *,
    forward: Forward = forward,
    sharding: NamedSharding | None = None,
) -> np.ndarray | Any:
    """Outputs for every row of every batch, in order, in evaluation mode.

    The model's own mode is unchanged.

    Args:
        model: the model to call.
        batches: any pytrees of arrays.
        forward: function of the model and a batch that returns the outputs.
        sharding: placement of the rows, as in `fit`. In several processes each one gets all
            outputs.

    Returns:
        The outputs as NumPy arrays, joined along their first axis.

    Raises:
        ValueError: for no batches; for outputs whose first axis is not the axis of rows, or whose
            other axes differ between batches. Predict such batches one by one.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn import data, training
        >>> batch = data.Batch(jnp.eye(2), jnp.array([0, 1]))
        >>> training.predict(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), [batch, batch]).shape
        (4, 3)
    """
    _check_sharding("predict", sharding)
    run = _compiled_evaluation((), forward, outputs=True)
    batches = [as_arrays(batch) for batch in batches]
    results = [jax.tree.map(fetch, run(model, place_batch(batch, sharding))) for batch in batches]
    if not results:
        raise ValueError("`predict` got no batches.")
    if len(results) == 1:
        return results[0]
    for batch, result in zip(batches, results, strict=True):
        for leaf, first in zip(jax.tree.leaves(result), jax.tree.leaves(results[0]), strict=True):
            if np.ndim(leaf) == 0 or len(leaf) != rows(batch) or leaf.shape[1:] != first.shape[1:]:
                raise ValueError(
                    "`predict` joins outputs along the rows of the batches, and cannot join shapes "
                    f"{shapes(result)} of a batch of {rows(batch)} rows to {shapes(results[0])}. "
                    "Predict each batch separately, or pass a `forward` that returns less."
                )
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


def evaluate(
    model: nnx.Module,
    batches: Iterable[Any],
    *,
    loss: Score = cross_entropy,
    metrics: Mapping[str, Score] | None = None,
    forward: Forward = forward,
    sharding: NamedSharding | None = None,
) -> dict[str, float]:
    """Loss and metrics over all batches, in evaluation mode.

    Each score is computed for each batch and averaged over the batches, weighted by their rows; if
    the labels of all batches have an axis of steps, by their true steps. For a score that is not a
    mean over rows or steps, such as an F1 score, pass all rows in one batch.

    Args:
        model: the model to evaluate; its own mode is unchanged.
        batches, loss, metrics, forward: as in `train_step`.
        sharding: placement of the rows, as in `fit`.

    Returns:
        The loss and the metrics by name.

    Raises:
        ValueError: for no batches; for a loss or a metric that is not a scalar.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn import data, training
        >>> model = nnx.Linear(2, 2, use_bias=False, rngs=nnx.Rngs(0))
        >>> model.kernel[...] = jnp.eye(2)
        >>> two, one = jnp.eye(2), jnp.array([[2.0, 1.0]])
        >>> batches = [data.Batch(two, jnp.array([0, 1])), data.Batch(one, jnp.array([1]))]
        >>> scores = training.evaluate(model, batches, metrics={"accuracy": training.accuracy})
        >>> round(scores["accuracy"], 4)
        0.6667
    """
    _check_sharding("evaluate", sharding)
    run = _compiled_evaluation((("loss", loss), *named(metrics)), forward, outputs=False)
    values, steps, counts = [], [], []
    for batch in map(as_arrays, batches):
        values.append(jax.device_get(run(model, place_batch(batch, sharding))))
        steps.append(true_steps(batch))
        counts.append(rows(batch))
    if not values:
        raise ValueError("`evaluate` got no batches.")
    weights = np.array(counts if None in steps else steps, np.float64)
    shares = (weights / max(weights.sum(), 1)).tolist()

    def mean(name: str) -> float:
        first, *rest = (float(value[name]) for value in values)
        # This form makes the mean of equal values exact to the last bit.
        return first + sum(w * (v - first) for w, v in zip(shares[1:], rest, strict=True))

    return {name: mean(name) for name in ("loss", *(metrics or {}))}


def _check_sharding(call: str, sharding: NamedSharding | None) -> None:
    if sharding is not None:
        placement.check(f"{call}(sharding)", sharding)


@functools.lru_cache(maxsize=32)
def _compiled_evaluation(
    scores: tuple[tuple[str, Score], ...], forward: Forward, *, outputs: bool
) -> Callable[..., Any]:
    @nnx.jit
    def run(model: nnx.Module, batch: Any) -> Any:
        copy = nnx.clone(model)  # calling eval() on the model itself would outlive this call
        copy.eval()
        result = forward(copy, batch)
        if outputs:
            return result
        return {name: scalar(name, score(result, batch)) for name, score in scores}

    return run
