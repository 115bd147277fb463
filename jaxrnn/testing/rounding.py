"""Rounding error of PyTorch's results, estimated by rounding every operation at random.

A gradient that cancels (of a bias before batch normalisation, of attention's key bias) consists
of rounding, and no relative tolerance holds for it. Its floor is measured for that tensor alone:
PyTorch runs in float64 several times, each operation on operands with relative noise of the
rounding of the compared dtype, and the spread of the results is the floor. This is Monte Carlo
arithmetic (Parker, Pierce and Eggert, 2000).

Noise on the weights and inputs alone does not suffice: a gradient that is 0 for all of them
stays 0, while its rounding errors arise between the operations.
"""

import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np

from jaxrnn.testing import operations
from jaxrnn.testing.copies import import_torch

DRAWS = 8
DEVIATIONS = 3.0
SAMPLES = 4096

Key = TypeVar("Key", bound=Hashable)


class Floor(NamedTuple):
    """Largest element and 2-norm of an error d that rounding alone explains.

    With the covariance C of d, found from the draws:

        element = 3 max_i sqrt(C_ii)
        norm    = sqrt(tr C) (1 + 2 / sqrt(n)),  n = (tr C)^2 / tr C^2

    n is the number of independent directions of d. With many of them the 2-norm varies little, so
    it reveals an error in all elements even if each element alone could be rounding.
    """

    element: float
    norm: float


def floors(
    run: Callable[[], Mapping[Key, np.ndarray]], ref: Mapping[Key, np.ndarray], dtype: str
) -> dict[Key, Floor]:
    """The floor of each tensor, from `DRAWS` runs with noise.

    Args:
        run: calls PyTorch, in float64, on the same inputs each time.
        ref: the results without noise.
        dtype: the compared dtype, whose rounding is simulated.
    """
    squares = {key: np.zeros(value.shape) for key, value in ref.items()}
    samples: dict[Key, list[np.ndarray]] = {key: [] for key in ref}
    for draw in range(DRAWS):
        with unfused_attention(), noise(dtype, draw):
            found = run()
        for key, value in ref.items():
            with np.errstate(invalid="ignore", over="ignore"):
                moved = found[key].astype(np.float64) - value.astype(np.float64)
            moved = np.where(found[key] == value, 0.0, moved)
            squares[key] += moved**2
            samples[key].append(moved.ravel()[:: -(-moved.size // SAMPLES) or 1])
    return {key: _floor(total / DRAWS, np.stack(samples[key])) for key, total in squares.items()}


def unfused_attention() -> Any:
    """A context in which PyTorch's attention consists of operations that can be rounded."""
    attention = import_torch().nn.attention
    return attention.sdpa_kernel(attention.SDPBackend.MATH)


def _floor(variances: np.ndarray, samples: np.ndarray) -> Floor:
    element = DEVIATIONS * float(np.sqrt(variances.max(initial=0.0)))
    extra = (DEVIATIONS - 1) / math.sqrt(_directions(samples))
    return Floor(element, float(np.sqrt(variances.sum())) * (1 + extra))


def _directions(samples: np.ndarray) -> float:
    """(tr C)^2 / tr C^2, at least 1, by the inner products of different draws."""
    products = samples @ samples.T
    trace = products.diagonal().mean()
    squared = (products[~np.eye(len(products), dtype=bool)] ** 2).mean()
    return max(1.0, float(trace**2 / squared)) if squared > 0 else 1.0


def noise(dtype: str, seed: int) -> Any:
    """A context in which every PyTorch operation, backward ones included, takes noisy operands.

    x becomes x (1 + u max(1, sqrt(n) / 2) e), with e uniform on [-1, 1], the unit roundoff u and
    the n terms of a sum; n terms added in sequence have an error of that size. In bfloat16, matrix
    products and normalisations add in float32, and n is 1 for them. Integers are exact in every
    dtype and stay. A normalised operand gets sqrt(1 + mean^2 / variance) times the noise, because
    Flax computes the variance as E[x^2] - E[x]^2; in bfloat16 it does so in float32.

    The result of such a sum takes the same noise again: partial sums of terms of one sign grow to
    its size, and rounding them is more than rounding the terms.
    """
    torch = import_torch()
    from torch.utils._python_dispatch import TorchDispatchMode

    generator = torch.Generator().manual_seed(seed)
    unit = float(jnp.finfo(dtype).eps) / 2

    def noisy(x: Any, scale: Any) -> Any:
        drawn = scale * torch.empty_like(x).uniform_(-1.0, 1.0, generator=generator)
        return torch.where(x == x.round(), x, torch.addcmul(x, x, drawn))

    def scale_of(func: Any, args: Any, dtype: str) -> float:
        return unit * max(1.0, math.sqrt(operations.terms(func, args, dtype)) / 2)

    def sums_with_noise(func: Any, results: Any, scale: float) -> Any:
        position = operations.position_of_sum(func)
        if position is None:
            return results
        if torch.is_tensor(results):
            return noisy(results, scale) if results.dtype == torch.float64 else results
        new = list(results)
        if new[position] is not None:
            new[position] = noisy(new[position], scale)
        return tuple(new)

    class Noise(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            if operations.is_exact(func):
                return func(*args, **kwargs)
            scale = scale_of(func, args, dtype)
            written = operations.written(func)
            place, condition = operations.conditioning(func, args, dtype)

            def convert(position: int | str, value: Any) -> Any:
                if isinstance(value, list | tuple):
                    return type(value)(convert(position, item) for item in value)
                if not (torch.is_tensor(value) and value.dtype == torch.float64):
                    return value
                new = noisy(value, scale * condition if position == place else scale)
                return value.copy_(new) if position in written else new

            args = tuple(convert(i, value) for i, value in enumerate(args))
            kwargs = {key: convert(key, value) for key, value in kwargs.items()}
            if rows := operations.softmax_by_rows(func):
                return rows(lambda sums: noisy(sums, scale_of(func, args, "float64")), *args)
            return sums_with_noise(func, func(*args, **kwargs), scale)

    return Noise()
