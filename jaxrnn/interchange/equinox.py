"""Parameters of Equinox's LSTMCell and GRUCell, as dicts of their attributes.

Shapes and gate orders are PyTorch's. The LSTM has one bias; the GRU has one for all gates and
`bias_n`, which is b_hn.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrnn.interchange import gates
from jaxrnn.interchange.gates import StateDict

KINDS = ("LSTMCell", "GRUCell")


def to_torch(kind: str, cell: Mapping[str, Any], *, suffix: str = "_l0") -> StateDict:
    """Entries of a `state_dict` from `weight_ih`, `weight_hh`, `bias` and a GRU's `bias_n`."""
    gates.only("equinox.to_torch", kind, KINDS)
    b_ih, b_hh = cell.get("bias"), None
    if b_ih is not None:
        b_hh = np.zeros_like(np.asarray(b_ih))
        if kind == "GRUCell":
            b_hh[2 * len(b_hh) // 3 :] = cell["bias_n"]
    return gates.named(
        suffix,
        weight_ih=cell["weight_ih"],
        weight_hh=cell["weight_hh"],
        bias_ih=b_ih,
        bias_hh=b_hh,
    )


def from_torch(
    kind: str, state: Mapping[str, Any], *, suffix: str = "_l0"
) -> dict[str, np.ndarray]:
    """The attributes of a cell, to be put into it by `eqx.tree_at`."""
    gates.only("equinox.from_torch", kind, KINDS)
    cell = {f"weight_{k}": gates.find(state, f"weight_{k}", suffix) for k in ("ih", "hh")}
    if kind == "LSTMCell":
        bias = gates.summed(state, suffix)
        return cell if bias is None else cell | {"bias": bias}
    parts = gates.split_candidate(state, suffix)
    return cell if parts is None else cell | {"bias": parts[0], "bias_n": parts[1]}
