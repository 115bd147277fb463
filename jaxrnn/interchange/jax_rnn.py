"""The flat weights of `jax.experimental.rnn`, which are cuDNN's: all matrices, then all biases.

For each layer and direction in turn stand W_ih and W_hh, and after the last of them, in the same
order, b_ih and b_hh; gates stand in PyTorch's order.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxrnn.interchange import gates
from jaxrnn.interchange.gates import StateDict


def to_torch(
    kind: str,
    weights: Any,
    *,
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    bidirectional: bool = False,
) -> StateDict:
    """Entries of a `state_dict` for all layers and directions; `kind` is "LSTM", the only one.

    Raises:
        ValueError: the number of weights is not that of these sizes.
    """
    gates.only("jax_rnn.to_torch", kind, ("LSTM",))
    weights, state, start = np.asarray(weights), {}, 0
    for name, shape in _shapes(input_size, hidden_size, num_layers, bidirectional):
        count = int(np.prod(shape))
        state[name] = weights[start : start + count].reshape(-1)
        if len(state[name]) == count:
            state[name] = state[name].reshape(shape)
        start += count
    if weights.shape != (start,):
        raise ValueError(f"These sizes need {start} weights, got shape {weights.shape}.")
    return state


def from_torch(
    kind: str,
    state: Mapping[str, Any],
    *,
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    bidirectional: bool = False,
) -> np.ndarray:
    """The flat weights of an LSTM with biases; the arguments are those of `to_torch`."""
    gates.only("jax_rnn.from_torch", kind, ("LSTM",))
    names = _shapes(input_size, hidden_size, num_layers, bidirectional)
    return np.concatenate([gates.find(state, name, "").reshape(-1) for name, _ in names])


def _shapes(
    inputs: int, hidden: int, layers: int, bidirectional: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    ends = ("", "_reverse")[: 1 + bidirectional]
    places = [(f"_l{k}{end}", k) for k in range(layers) for end in ends]
    for suffix, k in places:
        yield f"weight_ih{suffix}", (4 * hidden, inputs if k == 0 else hidden * len(ends))
        yield f"weight_hh{suffix}", (4 * hidden, hidden)
    for suffix, _ in places:
        yield f"bias_ih{suffix}", (4 * hidden,)
        yield f"bias_hh{suffix}", (4 * hidden,)
