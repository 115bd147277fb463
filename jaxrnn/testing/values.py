"""Inputs and results of both sides of a comparison: NumPy arrays by path."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Call: TypeAlias = Callable[..., Any]
"""(module, *inputs) -> outputs."""


class Result(NamedTuple):
    """Values of one side, in NumPy.

    Outputs and gradients of inputs are keyed by their pytree path, gradients of parameters by
    PyTorch's name and in its layout.
    """

    outputs: dict[str, np.ndarray]
    loss: np.ndarray
    parameters: dict[str, np.ndarray]
    inputs: dict[str, np.ndarray]


def call_module(module: Any, *inputs: Any, **options: Any) -> Any:
    return module(*inputs, **options)


def is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def arrays(tree: Any, dtype: str) -> Any:
    """Convert NumPy, JAX or PyTorch arrays to NumPy, floating ones rounded to `dtype`.

    Other leaves (a Python number, a string) are unchanged.
    """

    def convert(leaf: Any) -> Any:
        if not is_array(leaf):
            return leaf
        if hasattr(leaf, "detach"):
            leaf = leaf.detach().cpu()
            leaf = (leaf.double() if leaf.is_floating_point() else leaf).numpy()
        array = np.asarray(leaf)
        return array.astype(jnp.dtype(dtype)) if is_floating(array) else array

    return jax.tree.map(convert, tree)


def is_floating(leaf: Any) -> bool:
    return is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating)


def structure(tree: Any) -> dict[str, Any]:
    """Leaves of a pytree by path: `{"": y}` for one, `{"[0]": y, "[1][0]": h}` for a tuple."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def cotangents(
    shapes: Mapping[str, tuple[int, ...]], dtype: str, seed: int
) -> dict[str, np.ndarray]:
    """Random cotangents for every output, rounded to `dtype` and stored in float64.

    The loss is sum <cotangent, output>. Each output has independent draws from a normal
    distribution, divided by the square root of the number of all elements, so that the loss and its
    error are about as large as those of an output. A single scalar output is already a loss, so its
    cotangent is 1.
    """
    if list(shapes.values()) == [()]:
        return {path: np.ones(()) for path in shapes}
    rng = np.random.default_rng((seed, 1))
    scale = 1.0 / max(1, sum(int(np.prod(shape)) for shape in shapes.values())) ** 0.5
    return {
        path: np.asarray(rng.normal(0.0, scale, shape)).astype(jnp.dtype(dtype)).astype(np.float64)
        for path, shape in shapes.items()
    }
