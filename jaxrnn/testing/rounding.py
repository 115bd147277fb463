"""Rounding noise in PyTorch: how far each result moves when every operation rounds at random.

A gradient that cancels (of a bias before batch normalisation, of attention's key bias) consists
of rounding, and no relative tolerance holds for it. Its floor is measured for that tensor alone:
PyTorch runs in float64 several times, each operation on operands with relative noise of the
rounding of the compared dtype, and the floor is `DEVIATIONS` standard deviations of the result.
This is Monte Carlo arithmetic (Parker, Pierce and Eggert, 2000).

Noise on the weights and inputs alone does not suffice: a gradient that is 0 for all of them
stays 0, while its rounding errors arise between the operations.
"""

import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np

from jaxrnn.testing import operations
from jaxrnn.testing.copies import import_torch

DRAWS = 8
DEVIATIONS = 3.0

Key = TypeVar("Key", bound=Hashable)


def floors(
    run: Callable[[], Mapping[Key, np.ndarray]], ref: Mapping[Key, np.ndarray], dtype: str
) -> dict[Key, float]:
    """For each tensor, the size of an error that rounding in `dtype` explains.

    floor = DEVIATIONS * max_i sqrt(mean over draws of (y_i - ref_i)^2)

    Args:
        run: calls PyTorch, in float64, on the same inputs each time.
        ref: the results without noise.
        dtype: the compared dtype, whose rounding is simulated.
    """
    squares = {key: np.zeros(value.shape) for key, value in ref.items()}
    for draw in range(DRAWS):
        with noise(dtype, draw):
            found = run()
        for key, value in ref.items():
            with np.errstate(invalid="ignore", over="ignore"):
                moved = found[key].astype(np.float64) - value.astype(np.float64)
            squares[key] += np.where(found[key] == value, 0.0, moved) ** 2
    return {
        key: DEVIATIONS * float(np.sqrt(total / DRAWS).max(initial=0.0))
        for key, total in squares.items()
    }


def noise(dtype: str, seed: int) -> Any:
    """A context in which every PyTorch operation, backward ones included, takes noisy operands.

    x becomes x (1 + u max(1, sqrt(n) / 2) e), with e uniform on [-1, 1], the unit roundoff u and
    the n terms of a sum; n terms added in sequence have an error of that size. In bfloat16, matrix
    products and normalisations add in float32, and n is 1 for them. Integers are exact in every
    dtype and stay. What is normalised takes sqrt(1 + mean^2 / variance) times the noise, because
    Flax computes the variance as E[x^2] - E[x]^2; in bfloat16 it does so in float32.
    """
    torch = import_torch()
    from torch.utils._python_dispatch import TorchDispatchMode

    generator = torch.Generator().manual_seed(seed)
    unit = float(jnp.finfo(dtype).eps) / 2

    def noisy(x: Any, scale: Any) -> Any:
        drawn = scale * torch.empty_like(x).uniform_(-1.0, 1.0, generator=generator)
        return torch.where(x == x.round(), x, torch.addcmul(x, x, drawn))

    class Noise(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = kwargs or {}
            if operations.is_exact(func):
                return func(*args, **kwargs)
            scale = unit * max(1.0, math.sqrt(operations.terms(func, args, dtype)) / 2)
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
            return func(*args, **kwargs)

    return Noise()
