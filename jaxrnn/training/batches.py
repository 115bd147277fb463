"""Conversion of a batch of any kind to inputs, labels and lengths, and to arrays."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxrnn.data import Batch


def as_batch(batch: Any) -> Batch:
    """Inputs, labels and lengths of a batch, read by name or by position in a tuple or list.

    Raises:
        ValueError: for a batch of another kind.

    Example:
        >>> from jaxrnn.training.batches import as_batch
        >>> as_batch({"inputs": 1, "labels": 2}) == as_batch((1, 2))
        True
    """
    labels: Any  # or None, for an unlabelled batch
    if isinstance(batch, Mapping) and "inputs" in batch:
        labels = batch.get("labels")
        return Batch(batch["inputs"], labels, batch.get("lengths"))
    if hasattr(batch, "inputs"):
        labels = getattr(batch, "labels", None)
        return Batch(batch.inputs, labels, getattr(batch, "lengths", None))
    if isinstance(batch, tuple | list) and not hasattr(batch, "_fields") and len(batch) in (2, 3):
        return Batch(*batch)
    raise ValueError(
        "A batch needs `inputs`, `labels` and, for ragged rows, `lengths`: as a "
        "`jaxrnn.data.Batch`, a mapping with these keys, or a tuple in this order, got "
        f"{_describe(batch)}. For any other batch pass `forward=lambda model, batch: ...` and a "
        "loss and metrics of your own."
    )


def as_arrays(batch: Any) -> Any:
    """The batch with every leaf that is not a JAX array converted to NumPy.

    Raises:
        ValueError: for a leaf that is not an array of numbers, or holds integers beyond 32 bits,
            which JAX would cut.
    """

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array):
            return leaf
        array = np.asarray(leaf)
        if array.dtype.kind in "OSUMm":
            raise ValueError(
                f"A batch must be a pytree of arrays, got a leaf of type {type(leaf).__name__}."
            )
        if array.dtype.kind in "iu" and array.size:
            bounds = np.iinfo(jax.dtypes.canonicalize_dtype(array.dtype))
            if int(array.min()) < bounds.min or int(array.max()) > bounds.max:
                raise ValueError(
                    f"A batch holds integers of {array.dtype} beyond 32 bits, up to {array.max()}, "
                    "which JAX would cut: convert them to floats or make them smaller, or set "
                    "`jax_enable_x64`."
                )
        return array

    return jax.tree.map(convert, batch)


def signature(batch: Any) -> Any:
    """Structure, shapes and dtypes of a batch, hashable; a new one compiles a new step."""
    leaves, structure = jax.tree.flatten(batch)
    return structure, tuple((np.shape(leaf), str(leaf.dtype)) for leaf in leaves)


def shapes(batch: Any) -> str:
    """Shapes of all arrays of a batch, as text."""
    return ", ".join(str(np.shape(leaf)) for leaf in jax.tree.leaves(batch))


def rows(batch: Any) -> int:
    """B, the first axis of the first array of a batch."""
    leaves = jax.tree.leaves(batch)
    if not leaves or np.ndim(leaves[0]) == 0:
        raise ValueError(f"A batch must hold arrays with an axis of rows, got {_describe(batch)}.")
    return len(leaves[0])


def true_steps(batch: Any) -> int | None:
    """Number of true steps of a batch with a label at each step, else None."""
    try:
        inputs, labels, lengths = as_batch(batch)
    except ValueError:
        return None
    if np.ndim(inputs) < 2 or np.ndim(labels) < 2 or labels.shape[1] != inputs.shape[1]:
        return None
    return int(np.sum(lengths)) if lengths is not None else inputs.shape[0] * inputs.shape[1]


def _describe(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"a mapping with the keys {sorted(map(str, batch))}"
    if hasattr(batch, "shape"):
        return f"one array of shape {tuple(batch.shape)}"
    return f"a {type(batch).__name__}"
