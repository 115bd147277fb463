"""Layouts: conversions between arrays of a Flax layer and one PyTorch array."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Shape: TypeAlias = tuple[int, ...]


class Layout(NamedTuple):
    """A function from Flax's arrays to PyTorch's array, and its inverse.

    `from_torch` also takes the shapes of Flax's arrays and returns one array for each.
    """

    to_torch: Callable[..., Any]
    from_torch: Callable[[Any, Sequence[Shape]], Sequence[Any]]


def _swap_last_two(array: Any) -> Any:
    return array.swapaxes(-1, -2)


def _channels_first(kernel: Any) -> Any:
    n = kernel.ndim
    return kernel.transpose(n - 1, n - 2, *range(n - 2))


def _channels_last(weight: Any) -> Any:
    return weight.transpose(*range(2, weight.ndim), 1, 0)


def _flip(kernel: Any) -> Any:
    """Reverse all axes except the last two."""
    return kernel[(slice(None, None, -1),) * (kernel.ndim - 2)]


def _concatenate(arrays: Sequence[Any]) -> Any:
    traced = any(isinstance(array, jax.Array) for array in arrays)
    return (jnp if traced else np).concatenate(arrays)


def _project(*kernels: Any) -> Any:
    """Kernels (inputs, heads, features) -> one matrix (all heads' features, inputs)."""
    return _concatenate([kernel.reshape(kernel.shape[0], -1).T for kernel in kernels])


def _split(array: Any, sizes: Sequence[int]) -> list[Any]:
    ends = np.cumsum(sizes)
    return [array[end - size : end] for size, end in zip(sizes, ends, strict=True)]


def _kernels(weight: Any, shapes: Sequence[Shape]) -> list[Any]:
    parts = _split(weight, [math.prod(shape[1:]) for shape in shapes])
    return [part.T.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _biases(bias: Any, shapes: Sequence[Shape]) -> list[Any]:
    parts = _split(bias, [math.prod(shape) for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


SAME = Layout(lambda array: array, lambda array, _: [array])
MATRIX = Layout(_swap_last_two, lambda array, _: [_swap_last_two(array)])
VECTOR = Layout(lambda array: array.reshape(-1), lambda array, shapes: [array.reshape(shapes[0])])
"""A scalar is a vector of one element in PyTorch."""

CONVOLUTION = Layout(_channels_first, lambda array, _: [_channels_last(array)])
"""(*window, in, out) in Flax, (out, in, *window) in PyTorch."""

TRANSPOSED = Layout(
    lambda kernel: _channels_first(_swap_last_two(_flip(kernel))),
    lambda array, _: [_flip(_swap_last_two(_channels_last(array)))],
)
"""(*window, in, out) in Flax, (in, out, *reversed window) in PyTorch."""

PROJECTIONS = Layout(_project, _kernels)
"""Several kernels (in, heads, features) in Flax, one matrix (sum of heads x features, in)."""

BIASES = Layout(lambda *arrays: _concatenate([a.reshape(-1) for a in arrays]), _biases)
"""Several biases (heads, features) in Flax, one vector in PyTorch."""

HEADS_TO_MATRIX = Layout(
    lambda kernel: kernel.reshape(-1, kernel.shape[-1]).T,
    lambda array, shapes: [array.T.reshape(shapes[0])],
)
"""(heads, features, out) in Flax, (out, heads x features) in PyTorch."""
