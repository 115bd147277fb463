"""One training step: the forward pass, the gradient and the optimizer's update."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from flax import nnx
from jax import Array

from jaxrnn.training import state
from jaxrnn.training.batches import as_arrays, as_batch
from jaxrnn.training.losses import cross_entropy
from jaxrnn.training.placement import keep_placements
from jaxrnn.training.scoring import Forward, Score, named, scalar


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
        return scalar("loss", loss(outputs, batch)), outputs

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
        scores[name] = scalar(name, metric(outputs, batch))
    rate = state.learning_rate(optimizer)
    return (scores if rate is None else {**scores, "learning_rate": rate}), outputs


def _copy(state: Any) -> Any:
    """The same arrays in new variables."""
    return jax.tree.map(lambda array: array, state)
