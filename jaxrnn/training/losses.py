"""Losses and metrics of a batch that respect its lengths.

Each is called as `f(outputs, batch)`, as `fit` calls its `loss` and its `metrics`, or with the
labels alone, `f(outputs, labels)`. If a model returns more than one array, select one:
`lambda outputs, batch: cross_entropy(outputs["logits"], batch)`.

Letters: B batch, T steps, C classes, N labels of a row.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array, lax

from jaxrnn import layers
from jaxrnn.training.batches import as_arrays, as_batch


def masked_mean(values: Any, lengths: Any = None) -> Array:
    """Mean over the true steps of all rows, with equal weight for each step.

    mean = Σ_b Σ_{t < l_b} v_bt / Σ_b l_b

    Args:
        values: (B, T, ...); the mean includes all further axes.
        lengths: (B,) integers; None for the mean of all values.

    Returns:
        The mean, a scalar; 0 if no step is true. Values in the padding, including NaN, are ignored.

    Raises:
        ValueError: for lengths if the values have no axis of steps.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn import training
        >>> float(training.masked_mean(jnp.array([[1.0, 5.0], [3.0, jnp.nan]]), jnp.array([2, 1])))
        3.0
    """
    values = jnp.asarray(values)
    if lengths is None:
        return values.mean()
    lengths = jnp.asarray(lengths)
    if values.ndim < 2 or lengths.shape != values.shape[:1]:
        raise ValueError(
            "`masked_mean` needs values of shape (B, T, ...) and lengths of shape (B,), got "
            f"{values.shape} and {lengths.shape}."
        )
    mask = _mask(lengths, values.shape[1])
    mask = jnp.broadcast_to(mask.reshape(*mask.shape, *[1] * (values.ndim - 2)), values.shape)
    # Counts and sums of many steps are beyond float16, and beyond the digits of bfloat16.
    wide = _wide(values.dtype)
    total = jnp.where(mask, values, jnp.zeros_like(values)).sum(dtype=wide)
    mean = total / jnp.maximum(mask.sum(), 1).astype(wide)
    return mean.astype(values.dtype) if jnp.issubdtype(values.dtype, jnp.inexact) else mean


def cross_entropy(outputs: Any, batch: Any, smoothing: float = 0.0) -> Array:
    """Mean softmax cross entropy, as `torch.nn.CrossEntropyLoss(label_smoothing=smoothing)`.

    loss = -Σ_c q_c log p_c with p = softmax(logits), q = (1 - smoothing) onehot + smoothing / C

    Args:
        outputs: logits (B, C), or (B, T, C) for a class at each step.
        batch: a batch with integer labels (B,) or (B, T), or the labels alone. With labels at each
            step, the mean is over the steps before each row's length.
        smoothing: label smoothing, in [0, 1].

    Returns:
        The loss in nats, a scalar. It is NaN if a label is not in [0, C).

    Raises:
        ValueError: for labels whose shape does not match the logits, or floating labels.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn import training
        >>> loss = training.cross_entropy(jnp.zeros((2, 4)), jnp.array([3, 0]))
        >>> bool(jnp.isclose(loss, jnp.log(4.0)))
        True
    """
    logits, labels, lengths = _classes("cross_entropy", outputs, batch)
    classes = logits.shape[-1]
    onehot = nnx.one_hot(labels, classes, dtype=logits.dtype)
    values = optax.softmax_cross_entropy(logits, optax.smooth_labels(onehot, smoothing))
    values = jnp.where((labels >= 0) & (labels < classes), values, jnp.nan)
    return masked_mean(values, lengths)


def accuracy(outputs: Any, batch: Any) -> Array:
    """Fraction of rows, or of true steps, whose largest logit is that of the label.

    Args:
        outputs: logits (B, C), or (B, T, C) for a class at each step.
        batch: a batch with integer labels (B,) or (B, T), or the labels alone. With labels at each
            step, the fraction is over the steps before each row's length.

    Returns:
        The fraction in [0, 1], a scalar, in float32 or wider.

    Raises:
        ValueError: for labels whose shape does not match the logits, or floating labels.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn import training
        >>> float(training.accuracy(jnp.array([[0.0, 1.0], [0.0, 1.0]]), jnp.array([1, 0])))
        0.5
    """
    logits, labels, lengths = _classes("accuracy", outputs, batch)
    right = lax.argmax(logits, logits.ndim - 1, jnp.int32) == labels
    return masked_mean(right.astype(_wide(logits.dtype)), lengths)


def mean_squared_error(outputs: Any, batch: Any, *, per_step: bool | None = None) -> Array:
    """Mean squared error, as `torch.nn.MSELoss()`.

    loss = mean((outputs - labels)²)

    Args:
        outputs: of the shape of the labels.
        batch: a batch with labels of any shape, converted to the outputs' dtype, or the labels
            alone.
        per_step: True for labels (B, T, ...), averaged over the steps before each row's length;
            False for labels without an axis of steps. None infers it from the shapes, and raises if
            lengths are given and both are possible.

    Returns:
        The loss, a scalar.

    Raises:
        ValueError: for labels of another shape than the outputs; if `per_step` is needed.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn import training
        >>> float(training.mean_squared_error(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0])))
        2.0
    """
    outputs, labels, lengths = _values("mean_squared_error", outputs, batch, per_step)
    return masked_mean(jnp.square(outputs - labels), lengths)


def binary_cross_entropy(outputs: Any, batch: Any, *, per_step: bool | None = None) -> Array:
    """Mean binary cross entropy of independent labels, as `torch.nn.BCEWithLogitsLoss()`.

    loss = -mean(y log σ(x) + (1 - y) log(1 - σ(x)))

    Args:
        outputs: logits of the shape of the labels.
        batch: a batch with labels in [0, 1], integers or floats, or the labels alone.
        per_step: as in `mean_squared_error`.

    Returns:
        The loss in nats, a scalar.

    Raises:
        ValueError: as in `mean_squared_error`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn import training
        >>> loss = training.binary_cross_entropy(jnp.zeros((2, 3)), jnp.ones((2, 3)))
        >>> bool(jnp.isclose(loss, jnp.log(2.0)))
        True
    """
    logits, labels, lengths = _values("binary_cross_entropy", outputs, batch, per_step)
    return masked_mean(optax.sigmoid_binary_cross_entropy(logits, labels), lengths)


def ctc_loss(outputs: Any, batch: Any, *, blank_id: int = 0) -> Array:
    """Mean connectionist temporal classification loss over the rows, by `optax.ctc_loss`.

    loss = -mean_b log Σ_π Π_t p_bt(π_t), over all paths π that collapse to the labels of row b

    Args:
        outputs: logits (B, T, C).
        batch: a batch with integer labels (B, N), padded at the end with negative numbers as by
            `jaxrnn.data.batches`, and the lengths of the logits' rows, or None for T.
        blank_id: the class of the blank symbol.

    Returns:
        The loss in nats, a scalar. PyTorch's default also divides each row's loss by its number of
        labels.

    Raises:
        ValueError: for logits or labels of other shapes, or floating labels.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn import data, training
        >>> batch = data.Batch(None, jnp.array([[1, -1]]), jnp.array([1]))
        >>> round(float(training.ctc_loss(jnp.zeros((1, 2, 4)), batch)), 4)
        1.3863

    Source: Graves, Fernández, Gomez and Schmidhuber, "Connectionist temporal classification",
    2006.
    """
    logits, labels, lengths = _read("ctc_loss", outputs, batch)
    _require_integers("ctc_loss", labels)
    if logits.ndim != 3 or labels.ndim != 2 or len(labels) != len(logits):
        raise ValueError(
            "`ctc_loss` needs logits of shape (B, T, C) and labels of shape (B, N), got "
            f"{logits.shape} and {labels.shape}."
        )
    steps = logits.shape[1]
    lengths = jnp.full(len(logits), steps, jnp.int32) if lengths is None else lengths
    past = ~_mask(lengths, steps)
    padding = labels < 0
    # optax mixes dtypes and ranks, which JAX's strict settings reject.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        values = optax.ctc_loss(
            logits,
            past.astype(logits.dtype),
            jnp.where(padding, 0, labels),
            padding.astype(logits.dtype),
            blank_id=blank_id,
        )
    return values.mean()


def _read(name: str, outputs: Any, batch: Any) -> tuple[Array, Array, Array | None]:
    """Outputs, labels and lengths as arrays."""
    if not hasattr(outputs, "ndim"):
        raise ValueError(
            f"`{name}` needs an array of outputs, got a {type(outputs).__name__}: select one, "
            f"as in `lambda outputs, batch: {name}(outputs[0], batch)`."
        )
    if hasattr(batch, "ndim"):
        return jnp.asarray(outputs), jnp.asarray(as_arrays(batch)), None
    _, labels, lengths = as_batch(batch)
    if labels is None:
        raise ValueError(f"`{name}` needs a batch with `labels`.")
    known = None if lengths is None else jnp.asarray(as_arrays(lengths))
    return jnp.asarray(outputs), jnp.asarray(as_arrays(labels)), known


def _require_integers(name: str, labels: Array) -> None:
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"`{name}` needs integer labels, got {labels.dtype}. For real-valued labels use "
            "`mean_squared_error`, for labels in [0, 1] `binary_cross_entropy`."
        )


def _classes(name: str, outputs: Any, batch: Any) -> tuple[Array, Array, Array | None]:
    """Logits, integer labels, and lengths if there is a label at each step."""
    logits, labels, lengths = _read(name, outputs, batch)
    _require_integers(name, labels)
    if logits.ndim < 2 or logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"`{name}` needs logits (B, C) and labels (B,), or logits (B, T, C) and labels (B, T), "
            f"got logits of {logits.shape} and labels of {labels.shape}."
        )
    return logits, _clipped(labels, logits.shape[-1]), lengths if labels.ndim > 1 else None


def _wide(dtype: Any) -> Any:
    """The dtype, or float32 if that is wider."""
    return dtype if dtype == jnp.float64 else jnp.dtype("float32")


def _clipped(labels: Array, classes: int) -> Array:
    """Labels as int32; those outside of [0, classes) stay there, whatever dtype they came in."""
    info = jnp.iinfo(labels.dtype)
    low, high = max(info.min, -1), min(info.max, classes)
    bounds = [jnp.full_like(labels, bound) for bound in (low, high)]
    return jnp.clip(labels, *bounds).astype(jnp.int32)


def _mask(lengths: Array, steps: int) -> Array:
    """(B, T): True at the steps before each row's length, in any dtype of the lengths."""
    if jnp.issubdtype(lengths.dtype, jnp.integer):
        return layers.step_mask(lengths, steps).T
    return jnp.arange(steps, dtype=lengths.dtype)[None, :] < lengths[:, None]


def _values(
    name: str, outputs: Any, batch: Any, per_step: bool | None
) -> tuple[Array, Array, Array | None]:
    """Outputs, labels of the same shape and dtype, and lengths if there are labels at each step."""
    outputs, labels, lengths = _read(name, outputs, batch)
    if outputs.shape != labels.shape:
        raise ValueError(
            f"`{name}` needs outputs and labels of one shape, got {outputs.shape} and "
            f"{labels.shape}."
        )
    if lengths is not None and per_step is None and labels.ndim > 1:
        steps = as_batch(batch).inputs.shape[1]
        if labels.shape[1] == steps:
            raise ValueError(
                f"`{name}` got lengths, and labels of {labels.shape} for {steps} steps: pass "
                "`per_step=True` if the second axis of the labels is the axis of steps, to leave "
                "out the padding, else `per_step=False`: "
                f"`functools.partial({name}, per_step=True)`."
            )
    return outputs, labels.astype(outputs.dtype), lengths if per_step else None
