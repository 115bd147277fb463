"""One step of a recurrent network: pointwise cells, and the weights around them.

A cell is a pointwise function of its carry and of two projections,

    gx_t = W_ih x_t + b_ih
    gh_t = W_hh h_{t-1} + b_hh
    carry_t = cell(carry_{t-1}, gx_t, gh_t)

so the matrices sit in the projections. A cell of one's own may have parameters too (a leak, a
peephole, a gain): any pytree of arrays in `Weights.cell`, which `step` is given.

    >>> import jax.numpy as jnp
    >>> from jaxrnn import cells
    >>> weights = cells.Weights(ih=jnp.ones((8, 3)), hh=jnp.ones((8, 2)))
    >>> gx = cells.project_inputs(weights, jnp.ones((5, 3)), jnp.float32)
    >>> (h, c), gh = cells.step(cells.lstm, weights, (jnp.zeros((5, 2)),) * 2, gx)
    >>> gx.shape, gh.shape, h.shape
    ((5, 8), (5, 8), (5, 2))

Shape letters, used in the whole package: T steps, B batch, I inputs, H hidden units, P outputs
(H, or the size of the projection), G gates, L layers, D directions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
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
    is `b_hh` or zero. `mask` multiplies h in the product W_hh h alone, by row: recurrent dropout
    (Gal and Ghahramani, 2016). `initial` is the state of each row, arrays (B, ·), that a step with
    a reset starts from; None stands for the carry that the call starts with. `cell` holds the
    cell's own parameters: a pytree of arrays without a batch axis. Everything here is
    differentiable in every strategy.
    """

    ih: Float[Array, "GH I"]
    hh: Float[Array, "GH P"] | None
    b_ih: Float[Array, " GH"] | None = None
    b_hh: Float[Array, " GH"] | None = None
    hr: Float[Array, "P H"] | None = None
    mask: Float[Array, "B P"] | None = None
    initial: Carry | None = None
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
            A step that does not begin by this sum is taken for one that is not additive.
        init: `init(key, hidden_size, dtype)` returns initial parameters for `Weights.cell`; None
            for a cell without parameters. `jaxrnn.Recurrent` names them by their keys.
        recurrent: the layer multiplies h by W_hh. Without it gh is zero, and whatever the cell
            does with h, it does by parameters of its own.
        linear: `linear(gx)` returns (a, b), arrays (..., H), for a cell whose step is
            h' = a h + b; None for every other cell. `strategies.AssociativeScan` runs it.
        forget: the index of the gate that keeps the state where it is open, for `forget_bias`.

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
    recurrent: bool = True
    linear: Callable[[Array], tuple[Array, Array]] | None = None
    forget: int | None = None

    def __repr__(self) -> str:
        return f"Cell({self.name!r}, gates={self.gates}, states={self.states})"


def advance(cell: Cell, params: Any, carry: Carry, gx: Array, gh: Array) -> Any:
    """`cell.step`, with the parameters if there are any: the next carry."""
    if isinstance(params, tuple) and not params:
        return cell.step(carry, gx, gh)
    return cell.step(params, carry, gx, gh)


Step = TypeVar("Step", bound=Callable[..., Any])


def pure(step: Step) -> Step:
    """Mark a step that depends on its arguments alone and closes over no array.

    No call searches such a step for arrays, and a module compiles its whole call once.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn import cells
        >>> @cells.pure
        ... def step(carry, gx, gh):
        ...     return (jnp.tanh(gx + gh),)
        >>> cells.is_pure(cells.Cell("elman", 1, 1, step, additive=True))
        True
    """
    # The step itself: `functools.wraps` copies the mark to functions that may not be pure.
    step.pure = step  # type: ignore[attr-defined]
    return step


def is_pure(cell: Cell) -> bool:
    """True if the cell's step is marked by `pure`."""
    return getattr(cell.step, "pure", None) is cell.step


def linear_step(linear: Callable[..., tuple[Array, Array]]) -> Callable[..., Carry]:
    """The step h' = a h + b of a cell that is linear in its state, from `Cell.linear`."""

    @pure
    def step(carry: Carry, gx: Array, gh: Array) -> Carry:
        a, b = linear(gx)
        return (a * carry[0] + b,)

    return step


def spread(params: Any, like: Array) -> Any:
    """Parameters (H,) along the leading dimensions of `like`, which JAX may not do by itself."""
    return jax.tree.map(lambda p: jnp.broadcast_to(p, (*like.shape[:-1], p.shape[-1])), params)


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


def project_inputs(
    weights: Weights,
    x: Float[Array, "... I"],
    dtype: DTypeLike,
    precision: lax.PrecisionLike = None,
) -> Float[Array, "... GH"]:
    """The input's part of the gates, gx = W_ih x + b_ih.

    Features of x past W_ih's columns follow, as they are, for the cell.
    """
    inputs = weights.ih.shape[1]
    gx = project(x[..., :inputs], weights.ih, weights.b_ih, dtype, precision)
    if x.shape[-1] == inputs:
        return gx
    return jnp.concatenate([gx, x[..., inputs:].astype(dtype)], axis=-1)


def recurrent_input(
    weights: Weights, h: Array, gx: Array, precision: lax.PrecisionLike = None
) -> Array:
    """gh = W_hh h + b_hh (..., G*H); zero for what is absent."""
    if weights.hh is not None:
        seen = h if weights.mask is None else h * weights.mask
        return project(seen, weights.hh, weights.b_hh, gx.dtype, precision)
    shape = (*gx.shape[:-1], weights.ih.shape[0])
    if weights.b_hh is not None:
        return jnp.broadcast_to(weights.b_hh.astype(gx.dtype), shape)
    return jnp.zeros(shape, gx.dtype)


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
