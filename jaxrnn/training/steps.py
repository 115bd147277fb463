"""The loss, clipping, one step of training, an evaluation.

Letters: B batch, C classes.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array, lax
from jaxtyping import Float, Integer

from jaxrnn.data import Batch


class Scores(NamedTuple):
    """How well a model does: the mean loss in nats, and the share of right answers in [0, 1]."""

    loss: Array
    accuracy: Array


def cross_entropy(
    logits: Float[Array, "B C"], labels: Integer[Array, " B"], smoothing: float = 0.0
) -> Float[Array, ""]:
    """Mean softmax cross entropy, as `torch.nn.CrossEntropyLoss(label_smoothing=smoothing)`.

    loss = -Σ_c q_c log p_c with p = softmax(logits), q = (1 - smoothing) onehot + smoothing / C

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn import training
        >>> loss = training.cross_entropy(jnp.zeros((2, 4)), jnp.array([3, 0]))
        >>> bool(jnp.isclose(loss, jnp.log(4.0)))
        True
    """
    onehot = nnx.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(onehot, smoothing)).mean()


def accuracy(logits: Float[Array, "B C"], labels: Integer[Array, " B"]) -> Float[Array, ""]:
    """The share of rows whose largest logit is the label's.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn import training
        >>> float(training.accuracy(jnp.array([[0.0, 1.0], [0.0, 1.0]]), jnp.array([1, 0])))
        0.5
    """
    return (lax.argmax(logits, 1, labels.dtype) == labels).mean(dtype=logits.dtype)


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


@nnx.jit(static_argnames="smoothing")
def train_step(
    model: nnx.Module, optimizer: nnx.Optimizer, batch: Batch, *, smoothing: float = 0.0
) -> Scores:
    """One step of training: changes the model's parameters and the optimizer's state in place.

    Args:
        model: in the mode it is to be trained in, `model.train()`.
        optimizer: made for this model's `nnx.Param`.
        batch: what to learn from.
        smoothing: of the labels, as in `cross_entropy`.

    Returns:
        The scores on the batch before the step, not yet fetched from the device.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from flax import nnx
        >>> from jaxrnn import data, training
        >>> model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        >>> optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
        >>> batch = data.Batch(inputs=jnp.eye(2), labels=jnp.array([1, 0]))
        >>> before = training.train_step(model, optimizer, batch)
        >>> after = training.train_step(model, optimizer, batch)
        >>> bool(after.loss < before.loss)
        True
    """
    return train_on(model, optimizer, batch, functools.partial(cross_entropy, smoothing=smoothing))


def train_on(
    model: nnx.Module, optimizer: nnx.Optimizer, batch: Batch, loss: Callable[[Array, Array], Array]
) -> Scores:
    """`train_step` with any loss of logits and labels; not compiled by itself."""
    labels = jnp.asarray(batch.labels)

    def objective(model: nnx.Module) -> tuple[Array, Array]:
        logits = _logits(model, batch)
        return loss(logits, labels), logits

    (value, logits), grads = nnx.value_and_grad(objective, has_aux=True)(model)
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam raises a float to an integer power
        optimizer.update(model, grads)
    return Scores(value, accuracy(logits, labels))


def predict(model: nnx.Module, batches: Iterable[Batch]) -> Float[np.ndarray, "N C"]:
    """The logits of every row of every batch, in order, in evaluation mode.

    The model is left in the mode it was in.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn import data, training
        >>> batch = data.Batch(jnp.eye(2), jnp.array([0, 1]))
        >>> training.predict(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), [batch, batch]).shape
        (4, 3)
    """
    return np.concatenate([np.asarray(_evaluation(model, batch)) for batch in batches])


def evaluate(model: nnx.Module, batches: Iterable[Batch]) -> Scores:
    """The scores over all rows of all batches together, in evaluation mode.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn import data, training
        >>> model = nnx.Linear(2, 2, use_bias=False, rngs=nnx.Rngs(0))
        >>> model.kernel[...] = jnp.eye(2)
        >>> two, one = jnp.eye(2), jnp.array([[2.0, 1.0]])
        >>> batches = [data.Batch(two, jnp.array([0, 1])), data.Batch(one, jnp.array([1]))]
        >>> round(float(training.evaluate(model, batches).accuracy), 4)
        0.6667
    """
    batches = list(batches)
    logits = jnp.asarray(predict(model, batches))
    labels = jnp.concatenate([jnp.asarray(batch.labels) for batch in batches])
    return Scores(cross_entropy(logits, labels), accuracy(logits, labels))


@nnx.jit
def _evaluation(model: nnx.Module, batch: Batch) -> Array:
    copy = nnx.clone(model)  # eval() on the model itself would outlive the call
    copy.eval()
    return _logits(copy, batch)


def _logits(model: nnx.Module, batch: Batch) -> Array:
    if batch.lengths is None:
        return model(batch.inputs)
    return model(batch.inputs, lengths=batch.lengths)
