"""Strategies: one cell over time, in one direction.

The contract, the same for all:

    ys, last = strategy(cell, weights, x, carry, mask, precision=precision, reverse=reverse)

`x` is (T, B, I); `carry` is the initial carry, a tuple of (B, ·) arrays with `h` first; `mask` is
(T, B) of booleans or None. Where the mask is False there is no step: the carry is held and the
output is exactly 0; `x` must be finite there (`jaxrnn.layers` sees to it), or 0 * NaN would reach
the gradients. `ys` is (T, B, P); `last` is the carry after the last step.

A mask of integers says at each step `HOLD` (0), `RUN` (1) or `RESET` (2): a step that starts from
`weights.initial`, or where that is None from the initial carry, and not from the step before.

A strategy knows no lengths: `jaxrnn.layers` turns them into a mask, which says all that a strategy
needs about them in either direction. With `reverse` it runs from the last step to the first.

A strategy states what it can do as data, `capabilities`, and `refusal` gives the reason where it
cannot run its arguments. `recurrence` returns what runs, a `jaxrnn.derivative.rule.Recurrence`.

Strategies are frozen dataclasses that carry their own options. A named one runs or raises; only
`strategy=None` chooses, by `default`.

    Reference   plain `lax.scan` and JAX's own derivative: the oracle
    Scan        `lax.scan` with a fast derivative, for every cell, on every platform
    Native      a kernel for the whole sequence: C++ on a CPU, CUDA on an NVIDIA GPU
    AssociativeScan  in parallel over time, for cells that are linear in their state
    Checkpoint  another strategy in chunks of time, in little memory
    Shooting    any of them on chunks of the sequence side by side: for long ones and few rows

Outside of JAX: every strategy goes through `jax.export`; `Exported.serialize()` needs flatbuffers
(`pip install '.[export]'`). For ONNX, build the layer with `strategy=Reference()`, the one
that consists of JAX's own primitives (with the others, `jax2onnx` reports "No plugins
registered"), and install `jax2onnx` by `pip install '.[onnx]'`:

    layer = jaxrnn.LSTM(3, 5, bidirectional=True, strategy=strategies.Reference(), rngs=rngs)
    model = jax2onnx.to_onnx(lambda x: layer(x)[0], [(7, "B", 3)])  # any batch size
"""

from jaxrnn.steps import HOLD, RESET, RUN
from jaxrnn.strategies.associative import AssociativeScan
from jaxrnn.strategies.base import Capabilities, Strategy
from jaxrnn.strategies.checkpoint import Checkpoint
from jaxrnn.strategies.default import default
from jaxrnn.strategies.native import Native
from jaxrnn.strategies.reference import Reference
from jaxrnn.strategies.scan import Scan
from jaxrnn.strategies.shooting import Shooting

__all__ = [
    "HOLD",
    "RESET",
    "RUN",
    "AssociativeScan",
    "Capabilities",
    "Checkpoint",
    "Native",
    "Reference",
    "Scan",
    "Shooting",
    "Strategy",
    "default",
]
