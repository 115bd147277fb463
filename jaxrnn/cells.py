"""One step of a recurrent network: pointwise cells, and the weights around them.

A cell is a pointwise function of its carry and of two projections,

    gx_t = W_ih x_t + b_ih
    gh_t = W_hh h_{t-1} + b_hh
    carry_t = cell(carry_{t-1}, gx_t, gh_t)

so every weight sits in the projections and the cell itself has none. The equations are those of
`torch.nn.RNNCell`, `LSTMCell` and `GRUCell`, in their gate order.

Shape letters, used in the whole package: T steps, B batch, I inputs, H hidden units, P outputs
(H, or the size of the projection), G gates, L layers, D directions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float

Carry: TypeAlias = tuple[Array, ...]
"""The state between steps: `h` first, then what else the cell keeps. PyTorch's order."""

Size: TypeAlias = Any
"""A dimension: an int, or under `jax.export` a symbolic one."""


class Weights(NamedTuple):
    """The parameters of one layer in one direction, in PyTorch's layout and gate order.

    The dtype of `ih`, `hh` and `hr` is the dtype in which products are computed; the carry's
    dtype is the one in which they are summed.
    """

    ih: Float[Array, "GH I"]
    hh: Float[Array, "GH P"]
    b_ih: Float[Array, " GH"] | None = None
    b_hh: Float[Array, " GH"] | None = None
    hr: Float[Array, "P H"] | None = None


class Cell(NamedTuple):
    """One step. `step(carry, gx, gh)` maps arrays (..., H), (..., G*H) and (..., G*H) to a carry.

    `step` must be pointwise in every leading dimension and must not close over arrays that are
    to be differentiated: all weights belong into the projections. Any such function works in
    every strategy, with every derivative.

    Example:
        A cell of one's own, a leaky integrator, run over a sequence of five steps.

        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn import cells, strategies
        >>> leaky = cells.Cell("leaky", gates=1, states=1,
        ...     step=lambda carry, gx, gh: (0.9 * carry[0] + 0.1 * jnp.tanh(gx + gh),))
        >>> weights = cells.Weights(ih=jnp.ones((4, 3)), hh=jnp.eye(4))
        >>> ys, (h,) = strategies.Scan()(leaky, weights, jnp.ones((5, 2, 3)), (jnp.zeros((2, 4)),))
        >>> ys.shape, h.shape
        ((5, 2, 4), (2, 4))
    """

    name: str
    gates: int
    states: int
    step: Callable[[Carry, Array, Array], Carry]
    additive: bool = False
    """Whether `step` depends on gx + gh alone; a gradient then remembers half as much."""


def _rnn_tanh(carry: Carry, gx: Array, gh: Array) -> Carry:
    return (jnp.tanh(gx + gh),)


def _rnn_relu(carry: Carry, gx: Array, gh: Array) -> Carry:
    # jax.nn.relu and not jnp.maximum: its derivative at 0 is PyTorch's 0, not 1/2.
    return (jax.nn.relu(gx + gh),)


def _lstm(carry: Carry, gx: Array, gh: Array) -> Carry:
    # One tanh for all gates, σ(x) = tanh(x/2)/2 + 1/2: XLA would not vectorise four loops.
    hidden = gx.shape[-1] // 4
    scale, shift = (
        jnp.broadcast_to(np.repeat(np.array(a, gx.dtype), hidden), gx.shape)
        for a in ([0.5, 0.5, 1, 0.5], [0.5, 0.5, 0, 0.5])
    )
    gates = jnp.tanh((gx + gh) * scale) * scale + shift
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    c = f * carry[1] + i * g
    return o * jnp.tanh(c), c


def _gru(carry: Carry, gx: Array, gh: Array) -> Carry:
    (h,) = carry
    xr, xz, xn = jnp.split(gx, 3, axis=-1)
    hr, hz, hn = jnp.split(gh, 3, axis=-1)
    r, z = jax.nn.sigmoid(xr + hr), jax.nn.sigmoid(xz + hz)
    n = jnp.tanh(xn + r * hn)
    return ((1 - z) * n + z * h,)


rnn_tanh = Cell("rnn_tanh", 1, 1, _rnn_tanh, additive=True)
"""h = tanh(gx + gh)."""

rnn_relu = Cell("rnn_relu", 1, 1, _rnn_relu, additive=True)
"""h = max(gx + gh, 0)."""

lstm = Cell("lstm", 4, 2, _lstm, additive=True)
"""i, f, g, o = gx + gh;  c' = σ(f) c + σ(i) tanh(g);  h' = σ(o) tanh(c').

Source: Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997, with the forget gate of Gers,
Schmidhuber and Cummins, "Learning to Forget", 2000.
"""

gru = Cell("gru", 3, 1, _gru)
"""r = σ(gx_r + gh_r);  z = σ(gx_z + gh_z);  n = tanh(gx_n + r gh_n);  h' = (1 - z) n + z h.

The reset gate multiplies the product W_hn h + b_hn, not h. Source: Cho et al., "Learning Phrase
Representations using RNN Encoder-Decoder", 2014, in the variant of PyTorch and cuDNN.
"""


def project(
    x: Float[Array, "... I"],
    weight: Float[Array, "O I"],
    bias: Float[Array, " O"] | None,
    dtype: DTypeLike,
    precision: lax.PrecisionLike = None,
) -> Float[Array, "... O"]:
    """`weight @ x + bias`: multiplied in the weight's dtype, summed and returned in `dtype`."""
    dims = (((x.ndim - 1,), (1,)), ((), ()))
    y = lax.dot_general(
        x.astype(weight.dtype), weight, dims, precision=precision, preferred_element_type=dtype
    )
    return y if bias is None else y + jnp.broadcast_to(bias.astype(dtype), y.shape)


def step(
    cell: Cell,
    weights: Weights,
    carry: Carry,
    gx: Float[Array, "B GH"],
    precision: lax.PrecisionLike = None,
) -> tuple[Carry, Float[Array, "B GH"]]:
    """One whole step from the input's projection: the new carry, and `gh`.

    With `weights.hr` the cell's output m is projected too: h = W_hr m (Sak, Senior and Beaufays,
    "Long Short-Term Memory Based Recurrent Neural Network Architectures", 2014).
    """
    dtype = carry[0].dtype
    gh = project(carry[0], weights.hh, weights.b_hh, dtype, precision)
    m, *rest = cell.step(carry, gx, gh)
    h = m if weights.hr is None else project(m, weights.hr, None, dtype, precision)
    return (h, *rest), gh
