"""The tensors W, R and B of ONNX's RNN, LSTM and GRU, one direction of one layer at a time.

ONNX puts directions first: W (D, G*H, I), R (D, G*H, H), B (D, 2*G*H). Gates stand in the
order i, o, f, c, and z, r, h. With `linear_before_reset=1` a GRU is PyTorch's, with 0, ONNX's
default, `cells.reset_before_gru`. An LSTM with peepholes P (D, 3*H) is `cells.peephole_lstm`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrnn.interchange import gates
from jaxrnn.interchange.gates import StateDict

KINDS = ("RNN", "LSTM", "GRU", "reset_before_gru", "peephole_lstm")
ORDERS = {"LSTM": (0, 2, 3, 1), "peephole_lstm": (0, 2, 3, 1), "RNN": (0,)}
ZRH = (1, 0, 2)
PEEPHOLES = {"peephole_i": 0, "peephole_o": 1, "peephole_f": 2}


def to_torch(
    kind: str, tensors: Mapping[str, Any], *, direction: int = 0, suffix: str = "_l0"
) -> StateDict:
    """Entries of a `state_dict` for one direction.

    Args:
        kind: "RNN", "LSTM", "GRU" (`linear_before_reset=1`), "reset_before_gru" or
            "peephole_lstm".
        tensors: "W", "R", and "B" and "P" if there are any.
        direction: 0, or 1 for the second one.
        suffix: of the names, "_l0_reverse" for the second direction.
    """
    gates.only("onnx.to_torch", kind, KINDS)
    order = ORDERS.get(kind, ZRH)
    ih, hh = (gates.reorder(np.asarray(tensors[k])[direction], order) for k in ("W", "R"))
    b_ih = b_hh = None
    if "B" in tensors:
        both = np.split(np.asarray(tensors["B"])[direction], 2)
        b_ih, b_hh = (gates.reorder(b, order) for b in both)
    if kind == "reset_before_gru":
        b_ih, b_hh = (None, None) if b_ih is None else (b_ih + b_hh, None)
    own = {}
    if kind == "peephole_lstm":
        parts = np.split(np.asarray(tensors["P"])[direction], 3)
        own = {name: parts[k] for name, k in PEEPHOLES.items()}
    return gates.named(suffix, weight_ih=ih, weight_hh=hh, bias_ih=b_ih, bias_hh=b_hh, **own)


def from_torch(
    kind: str, state: Mapping[str, Any], *, suffix: str = "_l0"
) -> dict[str, np.ndarray]:
    """The tensors of one direction, with an axis of directions of length 1 in front."""
    gates.only("onnx.from_torch", kind, KINDS)
    order = gates.inverse(ORDERS.get(kind, ZRH))
    w, r = (gates.reorder(gates.find(state, f"weight_{k}", suffix), order) for k in ("ih", "hh"))
    tensors = {"W": w[None], "R": r[None]}
    if f"bias_ih{suffix}" in state:
        b_ih = gates.find(state, "bias_ih", suffix)
        b_hh = np.asarray(state.get(f"bias_hh{suffix}", np.zeros_like(b_ih)))
        tensors["B"] = np.concatenate([gates.reorder(b, order) for b in (b_ih, b_hh)])[None]
    if kind == "peephole_lstm":
        ordered = sorted(PEEPHOLES, key=PEEPHOLES.__getitem__)
        tensors["P"] = np.concatenate([gates.find(state, name, suffix) for name in ordered])[None]
    return tensors
