"""Training step, evaluation and predictions; gradient clipping as in PyTorch."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.sharding import NamedSharding

from jaxrnn.sharding import fetch
from jaxrnn.training import placement, state
from jaxrnn.training.batches import as_arrays, as_batch, rows, shapes, true_steps
from jaxrnn.training.losses import cross_entropy
from jaxrnn.training.placement import keep_placements, place_batch

Score: TypeAlias = Callable[[Any, Any], Any]  # (outputs, batch) -> scalar
Forward: TypeAlias = Callable[[Any, Any], Any]  # (model, batch) -> outputs

RESERVED = {"epoch", "step", "loss", "learning_rate", "seconds"}  # names in a record


def clip_grad_norm(max_norm: float) -> optax.GradientTransformation:
    """Clips the global norm of the gradients, as `torch.nn.utils.clip_grad_norm_` does.

    g ← g · min(1, max_norm / (‖g‖ + 1e-6)),  with ‖g‖ = sqrt(Σ g²) over all parameters

    `optax.clip_by_global_norm` divides by ‖g‖ alone, and only if ‖g‖ > max_norm. The two differ
    by 1e-6 / ‖g‖ relative to the gradient. For a large norm this is below float32's rounding, but
    far above float64's, so two training runs differ visibly after a few steps.

    Args:
        max_norm: largest norm, 0 or more; infinity clips nothing.

    Raises:
        ValueError: for a negative or NaN `max_norm`.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from jaxrnn import training
        >>> tx = optax.chain(training.clip_grad_norm(1.0), optax.adam(1e-3))
        >>> clip = training.clip_grad_norm(1.0)
        >>> clipped, _ = clip.update({"w": jnp.array([30.0, 40.0])}, clip.init(None))
        >>> [round(float(g), 4) for g in clipped["w"]]
        [0.6, 0.8]

    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks",
    2013.
    """
    if not max_norm >= 0:
        raise ValueError(f"`clip_grad_norm(max_norm)` needs max_norm of 0 or more, got {max_norm}.")

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> Any:
        del params
        leaves = jax.tree.leaves(updates)
        with jax.numpy_dtype_promotion("standard"):  # parameters may be of several dtypes
            norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in leaves))
        scale = jnp.minimum(max_norm / (norm + 1e-6), 1.0)
        return jax.tree.map(lambda g: g * scale.astype(g.dtype), updates), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def forward(model: Any, batch: Any) -> Any:
    """Call a model on a batch: `model(inputs)`, with `lengths=lengths` if the batch has lengths.

    Args:
        model: the model to call.
        batch: a `jaxrnn.data.Batch`, a mapping with `inputs`, `labels` and `lengths`, or a tuple in
            this order. Lengths are optional.

    Returns:
        The outputs of the model: an array or any pytree.

    Raises:
        ValueError: for a batch of another kind.

    Example:
        >>> from jaxrnn import training
        >>> training.forward(abs, {"inputs": -2})
        2
    """
    inputs, _, lengths = as_batch(batch)
    return model(inputs) if lengths is None else model(inputs, lengths=lengths)


def train_step(
    model: nnx.Module,
    optimizer: nnx.Optimizer,
    batch: Any,
    *,
    loss: Score = cross_entropy,
    metrics: Mapping[str, Score] | None = None,
    forward: Forward = forward,
) -> dict[str, Array]:
    """Run one training step, which updates the model and the optimizer in place.

    An optimizer that needs more than the gradient is given `value`, `grad`, `value_fn`, `grad_fn`
    and `obj_fn` of the same batch and the same random numbers.

    Args:
        model: the model, in the mode to train in (`model.train()`).
        optimizer: an optimizer made for this model's `nnx.Param`, or for the variables that its
            `wrt` selects.
        batch: any pytree of arrays.
        loss: scalar function of the outputs and the batch. Pass the same function at each step: a
            new one, such as a new `functools.partial`, is compiled anew.
        metrics: scalar functions of the outputs and the batch, by name.
        forward: function of the model and the batch that returns the outputs.

    Returns:
        The loss and the metrics on the batch before the update, and the learning rate if the
        optimizer's state holds it (`optax.inject_hyperparams`). They stay on the device.

    Raises:
        ValueError: for a loss or a metric that is not a scalar; for a batch of another kind.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from flax import nnx
        >>> from jaxrnn import data, training
        >>> model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        >>> optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
        >>> batch = data.Batch(inputs=jnp.eye(2), labels=jnp.array([1, 0]))
        >>> before = training.train_step(model, optimizer, batch)
        >>> after = training.train_step(model, optimizer, batch)
        >>> bool(after["loss"] < before["loss"])
        True
    """
    step, _ = compiled_step(loss, named(metrics), forward)
    scores = step(model, optimizer, as_arrays(batch))
    order = ("loss", *(metrics or {}), "learning_rate")  # a compiled function sorts by name
    return {name: scores[name] for name in order if name in scores}


@functools.lru_cache(maxsize=32)
def compiled_step(
    loss: Score,
    metrics: tuple[tuple[str, Score], ...],
    forward: Forward,
    kept: tuple[Any, ...] = (),
) -> tuple[Callable[..., dict[str, Array]], list[None]]:
    """The compiled training step, and a list that grows with each compilation.

    It leaves the model and the optimizer at the placements `kept`; see `placement.placements`.
    """
    traces: list[None] = []

    @nnx.jit
    def step(model: nnx.Module, optimizer: nnx.Optimizer, batch: Any) -> dict[str, Array]:
        traces.append(None)
        scores, _ = update(model, optimizer, batch, loss, metrics, forward)
        keep_placements(kept, model, optimizer)
        return scores

    return step, traces


def update(
    model: nnx.Module,
    optimizer: nnx.Optimizer,
    batch: Any,
    loss: Score,
    metrics: tuple[tuple[str, Score], ...],
    forward: Forward,
) -> tuple[dict[str, Array], Any]:
    """Training step without compilation; returns the scores and the outputs."""
    # The state before the forward pass, so that each call of `value_fn` draws the same noise.
    graph, before = nnx.graphdef(model), _copy(nnx.state(model))

    def objective(model: nnx.Module) -> tuple[Array, Any]:
        outputs = forward(model, batch)
        return _scalar("loss", loss(outputs, batch)), outputs

    # optax's line searches require `value_fn` to accept every argument given to the optimizer.
    def value_fn(params: Any, grad_fn: Any = None, obj_fn: Any = None) -> Array:
        del grad_fn, obj_fn
        copy = nnx.merge(graph, _copy(before))  # variables of the current trace
        own = nnx.as_pure(nnx.state(copy, optimizer.wrt))
        # A line search takes float64 steps if x64 is enabled, which widens the parameters.
        nnx.update(copy, jax.tree.map(lambda new, old: new.astype(old.dtype), params, own))
        return objective(copy)[0]

    (value, outputs), grads = nnx.value_and_grad(
        objective, argnums=nnx.DiffState(0, optimizer.wrt), has_aux=True
    )(model)
    extra: dict[str, Any] = {}
    if isinstance(optimizer.tx, optax.GradientTransformationExtraArgs):
        extra = {
            "value": value,
            "grad": nnx.as_pure(nnx.state(grads, optimizer.wrt)),
            "value_fn": value_fn,
            "grad_fn": lambda params, *_: jax.grad(value_fn)(params),
            "obj_fn": value_fn,
        }
    # optax mixes dtypes and ranks, which JAX's strict settings reject.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        optimizer.update(model, grads, **extra)
    scores = {"loss": value}
    for name, metric in metrics:
        scores[name] = _scalar(name, metric(outputs, batch))
    rate = state.learning_rate(optimizer)
    return (scores if rate is None else {**scores, "learning_rate": rate}), outputs


def _copy(state: Any) -> Any:
    """The same arrays in new variables."""
    return jax.tree.map(lambda array: array, state)


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
        return {name: _scalar(name, score(result, batch)) for name, score in scores}

    return run


def named(metrics: Mapping[str, Score] | None) -> tuple[tuple[str, Score], ...]:
    """Metrics as a hashable value.

    Raises:
        ValueError: for a name that the records already use.
    """
    metrics = metrics or {}
    for name in metrics:
        if name in RESERVED or name.startswith("validation_"):
            raise ValueError(
                f"No metric may have the name `{name}`, which the records already use."
            )
    return tuple(metrics.items())


def _scalar(name: str, value: Any) -> Array:
    value = jnp.asarray(value)
    if value.shape != ():
        raise ValueError(
            f"`{name}` must be a scalar, got shape {value.shape}: take its mean, or "
            "`training.masked_mean` over the true steps."
        )
    return value
