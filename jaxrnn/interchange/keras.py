"""Weights of Keras 3's LSTM, GRU and SimpleRNN, as `layer.get_weights()` returns them.

Matrices are transposed. The LSTM's gates stand in PyTorch's order, the GRU's are z, r, n. A GRU
with `reset_after=True`, Keras's default, is PyTorch's; with `reset_after=False` it is the cell
`cells.reset_before_gru`. A `Bidirectional` has the weights of one direction after the other's.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxrnn.interchange import gates
from jaxrnn.interchange.gates import StateDict

KINDS = ("RNN", "LSTM", "GRU", "reset_before_gru")
ZRN = (1, 0, 2)


def to_torch(kind: str, weights: Sequence[Any], *, suffix: str = "_l0") -> StateDict:
    """Keras's weights by PyTorch's names.

    Args:
        kind: "RNN", "LSTM", "GRU" (`reset_after=True`) or "reset_before_gru".
        weights: kernel, recurrent kernel, and the bias if there is one.
        suffix: of the names.
    """
    gates.only("keras.to_torch", kind, KINDS)
    ih, hh, *bias = (np.asarray(w) for w in weights)
    b_ih = b_hh = None
    if bias:
        two = bias[0] if bias[0].ndim == 2 else np.stack([bias[0], np.zeros_like(bias[0])])
        b_ih, b_hh = two
    if kind == "GRU" and bias and bias[0].ndim == 1:
        raise ValueError(
            'A GRU with one bias has reset_after=False: its kind is "reset_before_gru", for '
            "`jaxrnn.Recurrent(cells.reset_before_gru, ...)`."
        )
    ih, hh = ih.T, hh.T
    if kind in ("GRU", "reset_before_gru"):
        ih, hh = gates.reorder(ih, ZRN), gates.reorder(hh, ZRN)
        b_ih = None if b_ih is None else gates.reorder(b_ih, ZRN)
        b_hh = None if b_hh is None else gates.reorder(b_hh, ZRN)
    if kind == "reset_before_gru":
        b_hh = None
    return gates.named(suffix, weight_ih=ih, weight_hh=hh, bias_ih=b_ih, bias_hh=b_hh)


def from_torch(kind: str, state: Mapping[str, Any], *, suffix: str = "_l0") -> list[np.ndarray]:
    """A list for `layer.set_weights`; the arguments are those of `to_torch`.

    The LSTM and the simple RNN have one bias in Keras, the sum of PyTorch's two.
    """
    gates.only("keras.from_torch", kind, KINDS)
    ih, hh = (gates.find(state, f"weight_{k}", suffix) for k in ("ih", "hh"))
    if kind == "reset_before_gru":
        one = state.get(f"bias_ih{suffix}")
        bias = None if one is None else gates.reorder(one, ZRN)
    elif kind == "GRU":
        both = gates.biases(state, suffix)
        bias = None if both is None else np.stack([gates.reorder(b, ZRN) for b in both])
    else:
        bias = gates.summed(state, suffix)
    if "gru" in kind.lower():
        ih, hh = gates.reorder(ih, ZRN), gates.reorder(hh, ZRN)
    return [ih.T, hh.T, *([] if bias is None else [bias])]
