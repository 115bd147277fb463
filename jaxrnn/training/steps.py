"""One step of training, an evaluation, predictions; clipping as PyTorch's."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from jaxrnn.training import state
from jaxrnn.training.batches import as_arrays, as_batch, rows, shapes, true_steps
from jaxrnn.training.losses import cross_entropy

Score: TypeAlias = Callable[[Any, Any], Any]  # (outputs, batch) -> scalar
Forward: TypeAlias = Callable[[Any, Any], Any]  # (model, batch) -> outputs

RESERVED = {"epoch", "step", "loss", "learning_rate", "seconds"}  # names in a record


def clip_grad_norm(max_norm: float) -> optax.GradientTransformation:
    """Clips the norm of all gradients together, as `torch.nn.utils.clip_grad_norm_` does.

    g ← g · min(1, max_norm / (‖g‖ + 1e-6)),  with ‖g‖ = sqrt(Σ g²) over all parameters

    `optax.clip_by_global_norm` divides by ‖g‖ alone, and only where ‖g‖ > max_norm. The two are
    apart by 1e-6 / ‖g‖ relative to the gradient, which is below float32's rounding for a large
    norm but far above float64's, and enough to tell two trainings apart after a few steps.

    Args:
        max_norm: the norm to clip to, 0 or more; infinity clips nothing.

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
    """Calls a model on a batch: `model(inputs)`, with `lengths=lengths` if the batch has lengths.

    Args:
        model: called.
        batch: a `jaxrnn.data.Batch`, a mapping with `inputs`, `labels` and `lengths`, or a tuple
            in this order; lengths may be left out.

    Returns:
        What the model returns: an array or any pytree.

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
    """One step of training: changes the model's parameters and the optimizer's state in place.

    An optimizer that asks for more than the gradient gets it: `value`, `grad`, `value_fn`,
    `grad_fn` and `obj_fn` of the same batch and the same random numbers.

    Args:
        model: in the mode it is to be trained in, `model.train()`.
        optimizer: made for this model's `nnx.Param`, or for what its `wrt` says.
        batch: any pytree of arrays.
        loss: of the outputs and the batch, a scalar. Pass the same function at each step: a new
            one, such as a new `functools.partial`, is compiled anew.
        metrics: of the outputs and the batch too, by name.
        forward: of the model and the batch, the outputs.

    Returns:
        The loss and the metrics on the batch before the step, and the learning rate where the
        optimizer's state holds it (`optax.inject_hyperparams`), not yet fetched from the device.

    Raises:
        ValueError: for a loss or a metric that is no scalar; for a batch of another kind.

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
    loss: Score, metrics: tuple[tuple[str, Score], ...], forward: Forward
) -> tuple[Callable[..., dict[str, Array]], list[None]]:
    """The training step, and a list that grows whenever it is compiled."""
    traces: list[None] = []

    @nnx.jit
    def step(model: nnx.Module, optimizer: nnx.Optimizer, batch: Any) -> dict[str, Array]:
        traces.append(None)
        return _update(model, optimizer, batch, loss, metrics, forward)

    return step, traces


def _update(
    model: nnx.Module,
    optimizer: nnx.Optimizer,
    batch: Any,
    loss: Score,
    metrics: tuple[tuple[str, Score], ...],
    forward: Forward,
) -> dict[str, Array]:
    # As it is before the forward pass, so that each call of `value_fn` draws the same noise.
    graph, before = nnx.graphdef(model), _copy(nnx.state(model))

    def objective(model: nnx.Module) -> tuple[Array, Any]:
        outputs = forward(model, batch)
        return _scalar("loss", loss(outputs, batch)), outputs

    # optax's line searches refuse what an optimizer is given and `value_fn` does not take.
    def value_fn(params: Any, grad_fn: Any = None, obj_fn: Any = None) -> Array:
        del grad_fn, obj_fn
        copy = nnx.merge(graph, _copy(before))  # variables of the trace at hand
        own = nnx.as_pure(nnx.state(copy, optimizer.wrt))
        # A line search steps by float64 numbers where JAX has them, and widens the parameters.
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
    # optax mixes dtypes and ranks, which strict settings of JAX refuse.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        optimizer.update(model, grads, **extra)
    scores = {"loss": value}
    for name, metric in metrics:
        scores[name] = _scalar(name, metric(outputs, batch))
    rate = state.learning_rate(optimizer)
    return scores if rate is None else {**scores, "learning_rate": rate}


def _copy(state: Any) -> Any:
    """The same arrays in new variables."""
    return jax.tree.map(lambda array: array, state)


def predict(
    model: nnx.Module, batches: Iterable[Any], *, forward: Forward = forward
) -> np.ndarray | Any:
    """Outputs for every row of every batch, in order, in evaluation mode.

    The model is left in the mode it was in.

    Args:
        model: to be called.
        batches: any pytrees of arrays.
        forward: of the model and a batch, the outputs.

    Returns:
        The outputs as NumPy arrays, joined along their first axis.

    Raises:
        ValueError: for no batches; for outputs whose first axis is not that of the rows, or that
            differ in another axis. Predict such batches one by one.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn import data, training
        >>> batch = data.Batch(jnp.eye(2), jnp.array([0, 1]))
        >>> training.predict(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), [batch, batch]).shape
        (4, 3)
    """
    run = _compiled_evaluation((), forward, outputs=True)
    batches = [as_arrays(batch) for batch in batches]
    results = [jax.tree.map(np.asarray, run(model, batch)) for batch in batches]
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
                    "Predict each batch by itself, or pass a `forward` that returns less."
                )
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


def evaluate(
    model: nnx.Module,
    batches: Iterable[Any],
    *,
    loss: Score = cross_entropy,
    metrics: Mapping[str, Score] | None = None,
    forward: Forward = forward,
) -> dict[str, float]:
    """Loss and metrics over all batches together, in evaluation mode.

    Each is computed for each batch, and averaged over the batches by their rows; where the labels
    of all batches have an axis of steps, by their true steps. For what is no mean over rows or
    steps, an F1 score for one, give all rows in one batch.

    Args:
        model: left in the mode it was in.
        batches, loss, metrics, forward: as in `train_step`.

    Returns:
        The loss and the metrics by name.

    Raises:
        ValueError: for no batches; for a loss or a metric that is no scalar.

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
    run = _compiled_evaluation((("loss", loss), *named(metrics)), forward, outputs=False)
    values, steps, counts = [], [], []
    for batch in map(as_arrays, batches):
        values.append(jax.device_get(run(model, batch)))
        steps.append(true_steps(batch))
        counts.append(rows(batch))
    if not values:
        raise ValueError("`evaluate` got no batches.")
    weights = np.array(counts if None in steps else steps, np.float64)
    shares = (weights / max(weights.sum(), 1)).tolist()

    def mean(name: str) -> float:
        first, *rest = (float(value[name]) for value in values)
        # Written so that equal values have that value as their mean, to the last bit.
        return first + sum(w * (v - first) for w, v in zip(shares[1:], rest, strict=True))

    return {name: mean(name) for name in ("loss", *(metrics or {}))}


@functools.lru_cache(maxsize=32)
def _compiled_evaluation(
    scores: tuple[tuple[str, Score], ...], forward: Forward, *, outputs: bool
) -> Callable[..., Any]:
    @nnx.jit
    def run(model: nnx.Module, batch: Any) -> Any:
        copy = nnx.clone(model)  # eval() on the model itself would outlive the call
        copy.eval()
        result = forward(copy, batch)
        if outputs:
            return result
        return {name: _scalar(name, score(result, batch)) for name, score in scores}

    return run


def named(metrics: Mapping[str, Score] | None) -> tuple[tuple[str, Score], ...]:
    """The metrics as a hashable value.

    Raises:
        ValueError: for a name that the records use for something else.
    """
    metrics = metrics or {}
    for name in metrics:
        if name in RESERVED or name.startswith("validation_"):
            raise ValueError(f"No metric may have the name `{name}`, which records have already.")
    return tuple(metrics.items())


def _scalar(name: str, value: Any) -> Array:
    value = jnp.asarray(value)
    if value.shape != ():
        raise ValueError(
            f"`{name}` must be a scalar, got shape {value.shape}: take its mean, or "
            "`training.masked_mean` over the true steps."
        )
    return value
