"""Wrong edits of a JAX module, for `rates.py`."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from jaxrnn.interchange.torch_names import entries
from jaxrnn.testing.torch_side import call_recurrent
from pairs import Pair


class Edits(NamedTuple):
    """A wrong change, one number for each parameter of the JAX module; 1, 1 and 0 are right.

    Attributes:
        scale: factor of the gradient alone; 0 stops it.
        keep: factor of the value; 0 drops it.
        swap: the rows of a gate; the first two gates are exchanged.
    """

    scale: np.ndarray
    keep: np.ndarray
    swap: np.ndarray


def no_edits(count: int) -> Edits:
    return Edits(np.ones(count), np.ones(count), np.zeros(count))


def call_theirs(module: Any, x: Any, edits: Edits, *, lengths: Any = None) -> Any:
    if lengths is not None:
        return call_recurrent(module, x, lengths=lengths)
    return module(x)


def call_ours(module: nnx.Module, x: Any, edits: Edits, *, lengths: Any = None) -> Any:
    """The module with the edits. They are inputs, so that all of them share one program."""
    edits = Edits(*map(lax.stop_gradient, edits))
    for i, parameter in enumerate(parameters(module).values()):
        value = parameter[...]
        scale, keep, swap = (edit[i].astype(value.dtype) for edit in edits)
        fixed = lax.stop_gradient(value)
        value = (fixed + (value - fixed) * scale) * keep
        row = jnp.arange(len(value))
        gate = jnp.minimum(swap.astype(row.dtype), len(value) // 2)
        other = jnp.where(row < gate, row + gate, jnp.where(row < 2 * gate, row - gate, row))
        parameter[...] = value[other]
    return module(x) if lengths is None else module(x, lengths=lengths)


def parameters(module: nnx.Module) -> dict[str, Any]:
    """The parameters by PyTorch's names, sorted: a module's attributes change their order."""
    named = {e.name: e.leaves[0] for e in entries(module) if isinstance(e.leaves[0], nnx.Param)}
    return dict(sorted(named.items()))


def wrong(pair: Pair, names: list[str], dtype: str, hidden: int) -> list[tuple[str, Edits]]:
    """Edits of one parameter each, with its name: factors of its gradient, swaps, drops.

    A factor of 1.001 is less than one rounding in bfloat16 (0.4 %), so the factors there are 2
    and 3, and gates are swapped in the whole layer. Gradients that are exactly 0 have no wrong
    factor.
    """
    factors = {"float64": [1 + 1e-6, 1.001], "float32": [1.001, 1.01], "bfloat16": [2.0, 3.0]}
    seen = [i for i, name in enumerate(names) if name not in pair.cancels]
    gates = [i for i in seen if "weight_hh" in names[i]]
    biases = [i for i in seen if "bias" in names[i]]
    scales = [
        (seen[k * len(seen) // 4], "scale", factor)
        for k, factor in enumerate([*factors[dtype], 0.0, -1.0])
    ]
    swaps = [(i, "swap", hidden) for i in gates[:2]]
    drops = [(i, "keep", 0.0) for i in biases[:4]]
    found = []
    for i, field, value in [*scales, *swaps, *drops]:
        edits = no_edits(len(names))
        # One matrix of a short LSTM shifts its outputs by less than the rounding of bfloat16.
        whole = field == "swap" and dtype == "bfloat16"
        for k in layer(names, i) if whole else [i]:
            getattr(edits, field)[k] = value
        found.append((names[i], edits))
    return found


def layer(names: list[str], i: int) -> list[int]:
    """The parameters with the gates of the layer and direction to which the i-th one belongs."""
    prefix, _, suffix = names[i].partition("weight_hh")
    parts = [f"{prefix}{kind}{suffix}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    return [k for k, name in enumerate(names) if name in parts]
