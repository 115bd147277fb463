"""Parity checks of training: losses and parameters after optimizer steps."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import optax
from flax import nnx

from jaxrnn.testing import jax_side, torch_side
from jaxrnn.testing.copies import copied
from jaxrnn.testing.report import Report
from jaxrnn.testing.rounding import floors
from jaxrnn.testing.twins import renamed, twins
from jaxrnn.testing.values import Call, arrays
from jaxrnn.testing.verdicts import Values, judge_all


def compare_training(
    torch_module: Any,
    jax_module: nnx.Module,
    batches: Sequence[tuple[Any, ...]],
    torch_optimizer: Callable[[Any], Any],
    tx: optax.GradientTransformation,
    *,
    steps: int = 1,
    train: bool = False,
    noise: float = 0.1,
    seed: int = 0,
    torch_call: Call | None = None,
    jax_call: Call | None = None,
) -> Report:
    """Compare losses and parameters after optimizer steps on both sides, in float64.

    Args:
        batches: tuples of inputs of the same shapes, used in turn.
        torch_optimizer: maps parameters to an optimizer: `lambda p: torch.optim.SGD(p, lr=0.1)`.
        tx: the same optimizer in optax: `optax.sgd(0.1)`.
        steps: number of optimizer steps, at most 20. More steps amplify the last bit and prove
            nothing.
        torch_call, jax_call: as in `compare`, and should return the loss. Otherwise the loss is sum
            <cotangent, output>, with the same cotangents at every step.
        torch_module, jax_module, train, noise, seed: as in `compare`.

    Returns:
        A report with the row "loss", of shape (steps,), and one for each parameter.

    Raises:
        ValueError, ImportError: as `compare`.

    Example:
        >>> import numpy as np, optax, torch
        >>> from flax import nnx
        >>> from jaxrnn.testing import compare_training
        >>> theirs, ours = torch.nn.Linear(3, 5), nnx.Linear(3, 5, rngs=nnx.Rngs(0))
        >>> report = compare_training(theirs, ours, [(np.ones((4, 3)),)],
        ...     lambda p: torch.optim.Adam(p, lr=0.01), optax.adam(0.01))
        >>> print(report.verdict)
        agree: all 3 rows within tolerance
    """
    if steps < 1 or not batches:
        raise ValueError("`compare_training` needs at least one batch and one step.")
    dtype = "float64"
    data = [
        arrays(tuple(batch), dtype) for batch in itertools.islice(itertools.cycle(batches), steps)
    ]
    role = torch_side.role(torch_module, torch_call)
    with jax_side.precision(dtype):
        theirs, ours, first = twins(torch_module, jax_module, dtype, noise, seed, train)
        got = renamed(jax_side.fit(ours, jax_call, data, tx, dtype, seed), first)

    def torch_fit() -> Values:
        fitted = torch_side.fit(copied(theirs), role.call, data, torch_optimizer, dtype, seed)
        return {(name, "training"): value for name, value in fitted.items()}

    ref = torch_fit()
    trained: Values = {(name, "training"): value for name, value in got.items()}
    rows = judge_all(trained, ref, None, lambda: floors(torch_fit, ref, dtype), dtype, steps)
    name = type(torch_module).__name__
    return Report(f"{name}, {dtype}, training steps = {steps}: JAX against PyTorch", rows)
