"""Parameters of Flax's recurrent cells, of `flax.nnx` and Linen, as nested dicts of arrays.

`nnx.to_pure_dict(nnx.state(cell, nnx.Param))` makes such a dict, and `variables["params"]` of a
Linen cell is one. Kernels are transposed; gates stand in PyTorch's order. An LSTM has one bias, so
PyTorch's second one is 0.

nnx.GRUCell has no b_hn, Linen's has. Linen's MGUCell is another equation than `cells.mgu`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrnn.interchange import gates
from jaxrnn.interchange.gates import StateDict

NNX = ("LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell")
LINEN = ("linen.LSTMCell", "linen.OptimizedLSTMCell", "linen.GRUCell", "linen.SimpleCell")
_LETTERS = {
    "LSTMCell": (("ii", "if_", "ig", "io"), ("hi", "hf", "hg", "ho")),
    "linen.LSTMCell": (("ii", "if", "ig", "io"), ("hi", "hf", "hg", "ho")),
    "linen.OptimizedLSTMCell": (("ii", "if", "ig", "io"), ("hi", "hf", "hg", "ho")),
    "linen.GRUCell": (("ir", "iz", "in"), ("hr", "hz", "hn")),
    "linen.SimpleCell": (("i",), ("h",)),
    "OptimizedLSTMCell": (("dense_i",), ("dense_h",)),
    "GRUCell": (("dense_i",), ("dense_h",)),
    "SimpleCell": (("dense_i",), ("dense_h",)),
}
"""The dense layers of each cell, on the input and on h, in PyTorch's order of gates."""


def _why(kind: str) -> str:
    """Reason why a known cell has no equivalent; empty for any other."""
    if kind != "linen.MGUCell":
        return ""
    return "Linen's MGUCell computes (1 - f) n + f h, and `cells.mgu` (1 - f) h + f n."


def to_torch(kind: str, params: Mapping[str, Any], *, suffix: str = "_l0") -> StateDict:
    """A cell's parameters by PyTorch's names.

    Args:
        kind: the cell's class, as "GRUCell" of nnx or "linen.GRUCell".
        params: a dense layer's `kernel`, and its `bias` if it has one, by the layer's name.
        suffix: of the names.
    """
    gates.only("flax_cells.to_torch", kind, (*NNX, *LINEN), _why(kind))
    sides = [
        np.concatenate([np.asarray(params[name]["kernel"]).T for name in names])
        for names in _LETTERS[kind]
    ]
    b_ih, b_hh = (_bias(params, names) for names in _LETTERS[kind])
    if b_ih is not None or b_hh is not None:
        b_ih = np.zeros(len(sides[0]), sides[0].dtype) if b_ih is None else b_ih
        b_hh = np.zeros_like(b_ih) if b_hh is None else b_hh
    return gates.named(suffix, weight_ih=sides[0], weight_hh=sides[1], bias_ih=b_ih, bias_hh=b_hh)


def from_torch(
    kind: str, state: Mapping[str, Any], *, suffix: str = "_l0"
) -> dict[str, dict[str, np.ndarray]]:
    """A cell's parameters from PyTorch's; the arguments are those of `to_torch`.

    Raises:
        ValueError: an nnx.GRUCell of a GRU whose b_hn is not 0; the file does not know the cell.
    """
    gates.only("flax_cells.from_torch", kind, (*NNX, *LINEN), _why(kind))
    inputs, hiddens = _LETTERS[kind]
    ih, hh = (gates.find(state, f"weight_{k}", suffix) for k in ("ih", "hh"))
    params = {
        name: {"kernel": part.T}
        for names, matrix in ((inputs, ih), (hiddens, hh))
        for name, part in zip(names, np.split(matrix, len(names)), strict=True)
    }
    lstm, gru = "LSTM" in kind, "GRU" in kind
    on_input, on_h = None, None
    if gru:
        parts = gates.split_candidate(state, suffix)
        on_input, b_hn = parts if parts is not None else (np.zeros(len(ih)), np.zeros(len(ih) // 3))
        if kind == "GRUCell" and np.any(b_hn):
            raise ValueError(
                "An nnx.GRUCell has no b_hn, and this GRU's is not 0: use Linen's GRUCell, or a "
                "jaxrnn.GRU."
            )
        if kind == "linen.GRUCell":
            params["hn"]["bias"] = b_hn.astype(ih.dtype)
    else:
        one = gates.summed(state, suffix)
        one = np.zeros(len(ih)) if one is None else one
        on_input, on_h = (None, one) if lstm else (one, None)
    for names, bias in ((inputs, on_input), (hiddens, on_h)):
        if bias is not None:
            for name, part in zip(names, np.split(bias, len(names)), strict=True):
                params[name]["bias"] = part.astype(ih.dtype)
    return params


def _bias(params: Mapping[str, Any], names: tuple[str, ...]) -> np.ndarray | None:
    """The biases of dense layers side by side, 0 for those that have none; None if none has."""
    if not any("bias" in params[name] for name in names):
        return None
    return np.concatenate(
        [
            np.asarray(params[name]["bias"])
            if "bias" in params[name]
            else np.zeros(params[name]["kernel"].shape[1], params[name]["kernel"].dtype)
            for name in names
        ]
    )
