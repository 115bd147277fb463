"""Parameters of Haiku's VanillaRNN, LSTM and GRU, as the dicts of one module.

The LSTM has one matrix for [x, h] and gates i, g, f, o, and adds 1 to f. The GRU's gates are
z, r, n; its z is one minus PyTorch's, and its reset gate multiplies h before the product: it is the
cell `cells.reset_before_gru`. The VanillaRNN is a relu RNN.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrnn.interchange import gates
from jaxrnn.interchange.gates import StateDict

KINDS = ("VanillaRNN", "LSTM", "GRU")
IGFO, ZRN = (0, 2, 1, 3), (1, 0, 2)


def to_torch(kind: str, params: Mapping[str, Any], *, suffix: str = "_l0") -> StateDict:
    """Entries of a `state_dict`.

    Args:
        kind: "VanillaRNN" (for `RNN(nonlinearity="relu")`), "LSTM", or "GRU" (for
            `Recurrent(cells.reset_before_gru, ...)`).
        params: `w` and `b` of the LSTM's linear layer; `w_i`, `w_h` and `b` of a GRU; and of a
            VanillaRNN `linear` (of the input) and `linear_1` (of h), dicts of `w` and `b`; with
            `double_bias=False` the second has no `b`.
        suffix: of the names.
    """
    gates.only("haiku.to_torch", kind, KINDS)
    if kind == "VanillaRNN":
        of_x, of_h = params["linear"], params["linear_1"]
        ih, hh, b_ih = (np.asarray(a) for a in (of_x["w"], of_h["w"], of_x["b"]))
        b_hh = np.asarray(of_h.get("b", np.zeros_like(b_ih)))
        return gates.named(suffix, weight_ih=ih.T, weight_hh=hh.T, bias_ih=b_ih, bias_hh=b_hh)
    bias = np.array(params["b"])
    if kind == "LSTM":
        hidden = len(bias) // 4
        w, bias = gates.reorder(params["w"], IGFO, 1).T, gates.reorder(bias, IGFO)
        bias[hidden : 2 * hidden] += 1
        ih, hh = w[:, :-hidden], w[:, -hidden:]
        zero = np.zeros_like(bias)
        return gates.named(suffix, weight_ih=ih, weight_hh=hh, bias_ih=bias, bias_hh=zero)
    ih, hh, bias = (_flip(gates.reorder(np.asarray(a).T, ZRN)) for a in _of_gru(params))
    return gates.named(suffix, weight_ih=ih, weight_hh=hh, bias_ih=bias)


def from_torch(kind: str, state: Mapping[str, Any], *, suffix: str = "_l0") -> dict[str, Any]:
    """The parameters of one Haiku module; the arguments are those of `to_torch`."""
    gates.only("haiku.from_torch", kind, KINDS)
    ih, hh = (gates.find(state, f"weight_{k}", suffix) for k in ("ih", "hh"))
    if kind == "VanillaRNN":
        b_ih, b_hh = gates.biases(state, suffix) or (np.zeros(len(ih), ih.dtype),) * 2
        return {"linear": {"w": ih.T, "b": b_ih}, "linear_1": {"w": hh.T, "b": b_hh}}
    if kind == "LSTM":
        bias = gates.summed(state, suffix)
        bias = np.zeros(len(ih), ih.dtype) if bias is None else np.array(bias)
        hidden = len(bias) // 4
        bias[hidden : 2 * hidden] -= 1
        w = gates.reorder(np.concatenate([ih, hh], 1), gates.inverse(IGFO))
        return {"w": w.T, "b": gates.reorder(bias, gates.inverse(IGFO))}
    bias = np.asarray(state.get(f"bias_ih{suffix}", np.zeros(len(ih), ih.dtype)))
    w_i, w_h, b = (gates.reorder(_flip(a), ZRN).T for a in (ih, hh, bias))
    return {"w_i": w_i, "w_h": w_h, "b": b}


def _of_gru(params: Mapping[str, Any]) -> list[Any]:
    return [params["w_i"], params["w_h"], params["b"]]


def _flip(a: np.ndarray) -> np.ndarray:
    """The gate z, second of three, as one minus itself: σ(-a) = 1 - σ(a)."""
    r, z, n = np.split(a, 3)
    return np.concatenate([r, -z, n])
