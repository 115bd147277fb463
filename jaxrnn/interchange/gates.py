"""Gate orders and biases of other libraries, and PyTorch's: shared by the files of the libraries.

    >>> import numpy as np, jaxrnn
    >>> from flax import nnx
    >>> from jaxrnn.interchange import keras
    >>> gru = jaxrnn.GRU(3, 5, rngs=nnx.Rngs(0))
    >>> weights = keras.from_torch("GRU", jaxrnn.state_dict(gru))     # for `layer.set_weights`
    >>> [w.shape for w in weights]
    [(3, 15), (5, 15), (2, 15)]
    >>> report = jaxrnn.load_state_dict(gru, keras.to_torch("GRU", weights))

`suffix` names the layer and direction, "_l0_reverse" for one. What PyTorch's equations, or the
other library's, cannot represent raises a ValueError that says why.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

StateDict = dict[str, np.ndarray]


def reorder(a: Any, order: Sequence[int], axis: int = 0) -> np.ndarray:
    """The parts of an axis, one for each gate, in another order."""
    parts = np.split(np.asarray(a), len(order), axis)
    return np.concatenate([parts[k] for k in order], axis)


def inverse(order: Sequence[int]) -> list[int]:
    return [order.index(k) for k in range(len(order))]


def named(suffix: str, **arrays: Any) -> StateDict:
    """Entries of a `state_dict`, without those that are None."""
    return {f"{k}{suffix}": np.asarray(a) for k, a in arrays.items() if a is not None}


def find(state: Mapping[str, Any], name: str, suffix: str) -> np.ndarray:
    """One entry of a `state_dict`.

    Raises:
        ValueError: there is none of that name.
    """
    if name + suffix not in state:
        raise ValueError(f"There is no `{name}{suffix}` among {', '.join(state)}.")
    return np.asarray(state[name + suffix])


def biases(state: Mapping[str, Any], suffix: str) -> tuple[np.ndarray, np.ndarray] | None:
    """(b_ih, b_hh), or None for a layer without bias."""
    if f"bias_ih{suffix}" not in state:
        return None
    return find(state, "bias_ih", suffix), find(state, "bias_hh", suffix)


def summed(state: Mapping[str, Any], suffix: str) -> np.ndarray | None:
    """b_ih + b_hh, for cells in which only the sum counts."""
    both = biases(state, suffix)
    return None if both is None else both[0] + both[1]


def split_candidate(state: Mapping[str, Any], suffix: str) -> tuple[np.ndarray, np.ndarray] | None:
    """A GRU's biases as the sum of both for r and z, b_in for n, and b_hn apart."""
    both = biases(state, suffix)
    if both is None:
        return None
    b_ih, b_hh = both
    hidden = len(b_ih) // 3
    return np.concatenate([(b_ih + b_hh)[: 2 * hidden], b_ih[2 * hidden :]]), b_hh[2 * hidden :]


def only(what: str, kind: str, known: Sequence[str], why: str = "") -> None:
    """Raise ValueError for a kind of layer that a library's file does not know."""
    if kind not in known:
        raise ValueError(f"`{what}` knows {', '.join(known)}, not {kind!r}.{why and ' ' + why}")
