"""Conversion of NumPy, JAX and PyTorch arrays, without importing PyTorch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import sharding
from jaxrnn.interchange.entry import Entry, is_array


def exported(entry: Entry) -> Any:
    """The array in PyTorch's layout: a copy, or the traced array inside a transformation."""
    values = entry.values
    if any(isinstance(value, jax.ShapeDtypeStruct) for value in values):
        raise ValueError(f"`{entry.name}` has a shape but no values yet: load some first.")
    if any(isinstance(value, jax.core.Tracer) for value in values):
        return entry.layout.to_torch(*values)
    return np.array(entry.layout.to_torch(*map(sharding.fetch, values)), order="C")


def imported(value: Any) -> Any:
    """Convert a NumPy, JAX or PyTorch array to NumPy, without a copy if possible.

    Traced arrays and values that are not arrays are returned unchanged.
    """
    if isinstance(value, jax.core.Tracer) or not is_array(value):
        return value
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu().resolve_conj().resolve_neg()
            if "float" in str(value.dtype):
                # NumPy has neither bfloat16 nor float8; float32 represents both exactly.
                return value.numpy() if value.itemsize > 2 else value.float().numpy()
            return value.numpy()
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        return value


def cast(value: Any, dtype: np.dtype) -> Any:
    """An independent copy, so that later changes to the given array do not reach the model."""
    if isinstance(value, jax.core.Tracer):
        return value.astype(dtype)
    # PyTorch also turns values that are too large into infinity without a warning.
    with np.errstate(over="ignore", invalid="ignore"):
        return value.astype(dtype, order="C", copy=True)


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, jax.core.Tracer) or isinstance(b, jax.core.Tracer):
        return False
    return a.tobytes() == b.tobytes()


def placed(value: Any, old: Any) -> Any:
    """The new value stored like the old one: in NumPy, or in JAX on the same devices."""
    if isinstance(value, jax.core.Tracer) or isinstance(old, np.ndarray):
        return value
    if isinstance(old, jax.core.Tracer) or not getattr(old, "committed", True):
        return jnp.asarray(value)
    return jnp.asarray(value) if old.sharding is None else sharding.put(value, old.sharding)
