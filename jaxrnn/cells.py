"""One step of a recurrent network: pointwise cells, and the weights around them.

A cell is a pointwise function of its carry and of two projections,

    gx_t = W_ih x_t + b_ih
    gh_t = W_hh h_{t-1} + b_hh
    carry_t = cell(carry_{t-1}, gx_t, gh_t)

so the matrices sit in the projections. A cell of one's own may have parameters too (a leak, a
peephole, a gain): any pytree of arrays in `Weights.cell`, which `step` is given. The equations of
the cells below are those of `torch.nn.RNNCell`, `LSTMCell` and `GRUCell`, in their gate order.

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
    dtype is the one in which they are summed. Without `hh` there is no recurrent product, and gh
    is `b_hh` or zero. `cell` holds the cell's own parameters: a pytree of arrays without a batch
    axis, differentiable in every strategy.
    """

    ih: Float[Array, "GH I"]
    hh: Float[Array, "GH P"] | None
    b_ih: Float[Array, " GH"] | None = None
    b_hh: Float[Array, " GH"] | None = None
    hr: Float[Array, "P H"] | None = None
    cell: Any = ()


class Cell(NamedTuple):
    """One step of a recurrence, pointwise in every leading dimension.

    `step(carry, gx, gh)` maps arrays (..., H), (..., G*H) and (..., G*H) to the next carry. With
    parameters in `Weights.cell` it is called as `step(params, carry, gx, gh)`.

    Arrays that `step` closes over, traced or not, are found at every call of a strategy and passed
    as parameters, so their gradients are right under every transformation. Each call outside of
    `jax.jit` traces such a step anew; parameters in `Weights.cell` spare that.

    Args:
        name: in messages.
        gates: G, the number of gates: gx and gh have G*H features.
        states: the number of arrays in the carry, h first.
        step: the function of one step.
        additive: `step` depends on gx + gh alone; reverse mode then stores gx + gh instead of both.
        init: `init(key, hidden_size, dtype)` returns initial parameters for `Weights.cell`; None
            for a cell without parameters.

    Example:
        A leaky integrator with a trainable leak for each unit, over a sequence of five steps.

        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn import cells, strategies
        >>> def step(leak, carry, gx, gh):
        ...     a = jax.nn.sigmoid(leak)
        ...     return (a * carry[0] + (1 - a) * jnp.tanh(gx + gh),)
        >>> leaky = cells.Cell("leaky", gates=1, states=1, step=step)
        >>> def loss(leak):
        ...     weights = cells.Weights(ih=jnp.ones((4, 3)), hh=jnp.eye(4), cell=leak)
        ...     ys, _ = strategies.Scan()(leaky, weights, jnp.ones((5, 2, 3)), (jnp.zeros((2, 4)),))
        ...     return ys.sum()
        >>> jax.grad(loss)(jnp.zeros(4)).shape
        (4,)
    """

    name: str
    gates: int
    states: int
    step: Callable[..., Carry]
    additive: bool = False
    init: Callable[[Array, int, Any], Any] | None = None


def advance(cell: Cell, params: Any, carry: Carry, gx: Array, gh: Array) -> Any:
    """`cell.step`, with the parameters if there are any: the next carry."""
    if isinstance(params, tuple) and not params:
        return cell.step(carry, gx, gh)
    return cell.step(params, carry, gx, gh)


def _pure(step: Callable[..., Carry]) -> Callable[..., Carry]:
    """Mark a step that depends on its arguments alone: no call needs to look for closures."""
    step.pure = True  # type: ignore[attr-defined]
    return step


@_pure
def _rnn_tanh(carry: Carry, gx: Array, gh: Array) -> Carry:
    return (jnp.tanh(gx + gh),)


@_pure
def _rnn_relu(carry: Carry, gx: Array, gh: Array) -> Carry:
    # jax.nn.relu and not jnp.maximum: its derivative at 0 is PyTorch's 0, not 1/2.
    return (jax.nn.relu(gx + gh),)


@_pure
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


@_pure
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


def recurrent_input(
    weights: Weights, h: Array, gx: Array, precision: lax.PrecisionLike = None
) -> Array:
    """gh = W_hh h + b_hh, shaped as gx; zero for what is absent."""
    if weights.hh is not None:
        return project(h, weights.hh, weights.b_hh, gx.dtype, precision)
    if weights.b_hh is not None:
        return jnp.broadcast_to(weights.b_hh.astype(gx.dtype), gx.shape)
    return jnp.zeros_like(gx)


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
    gh = recurrent_input(weights, carry[0], gx, precision)
    m, *rest = advance(cell, weights.cell, carry, gx, gh)
    h = m if weights.hr is None else project(m, weights.hr, None, dtype, precision)
    return (h, *rest), gh
