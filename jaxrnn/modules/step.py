"""`RNNCell`, `GRUCell` and `LSTMCell`: one step, one set of weights."""

import functools
from typing import Any, Generic

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike

from jaxrnn import cells, checks
from jaxrnn.cells import Carry, Cell, Weights
from jaxrnn.modules import arguments
from jaxrnn.modules.base import Module, State, as_state, carry_dtype, cast_weights, rnn_cell
from jaxrnn.modules.sequential import refuse_unpacked


class Step(Module, Generic[State]):
    """The common part of RNNCell, LSTMCell and GRUCell."""

    _states: tuple[str, ...] = ("h",)
    proj_size = 0

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool,
        *,
        dtype: DTypeLike | None,
        param_dtype: DTypeLike,
        precision: lax.PrecisionLike,
        rngs: nnx.Rngs,
    ):
        name = type(self).__name__
        arguments.dtypes(name, dtype, param_dtype)
        arguments.rngs(name, rngs)
        arguments.constructor(name, input_size=input_size, hidden_size=hidden_size)
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bool(bias)  # of any type, as in PyTorch's cells
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.precision = precision
        self._create_weights("", input_size, rngs)

    @refuse_unpacked
    def __call__(self, input: Any, hx: Any = None) -> State:
        """One step: input (B, I) or (I,) and states (B, H) or (H,), to the new states.

        `hx` is h, or for the LSTM the pair (h, c); None for zeros. So is the result.
        """
        name = type(self).__name__
        x = checks.array(name, input)
        checks.step_input(name, x, self.input_size)
        dtype = self._compute_dtype(x, self.weight_ih)
        batched = x.ndim == 2
        sizes = (self.hidden_size,) * len(self._states)
        states = None
        if hx is not None:
            shapes = [(x.shape[0] if batched else 1, size) for size in sizes]
            states = checks.step_states(name, hx, self._states, batched, shapes)
            self._check_state_dtypes(name, states, self._states, dtype)
        weights = self._weights("", self.input_size)
        return as_state(_run_cell(self.cell, weights, x, states, sizes, dtype, self.precision))


@functools.partial(jax.jit, static_argnames=("cell", "sizes", "dtype", "precision"))
def _run_cell(
    cell: Cell,
    weights: Weights,
    x: Array,
    states: Carry | None,
    sizes: tuple[int, ...],
    dtype: DTypeLike,
    precision: lax.PrecisionLike,
) -> Carry:
    """`cells.step` with the casts and zeros around it, as one program outside `jax.jit` too."""
    batched = x.ndim == 2
    wide = carry_dtype(dtype)
    weights = cast_weights(weights, dtype)
    x = (x if batched else x[None]).astype(dtype)
    if states is None:
        carry = tuple(jnp.zeros((x.shape[0], size), wide) for size in sizes)
    else:
        carry = tuple((s if batched else s[None]).astype(wide) for s in states)
    gx = cells.project(x, weights.ih, weights.b_ih, wide, precision)
    new, _ = cells.step(cell, weights, carry, gx, precision)
    return new if batched else tuple(s[0] for s in new)


class RNNCell(Step[Array]):
    """`torch.nn.RNNCell`: h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu in tanh's place.

    Args:
        input_size, hidden_size, bias, nonlinearity: as in PyTorch, and as in `RNN`.
        dtype, param_dtype, precision, rngs: as in `RNN`. A cell is one step: it has no strategy.

    Attributes:
        weight_ih, weight_hh, bias_ih, bias_hh: parameters, (H, I), (H, H), (H,), (H,).

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> cell = jaxrnn.RNNCell(3, 5, nonlinearity="relu", rngs=nnx.Rngs(0))
        >>> h = cell(jnp.ones((4, 3)))                # the state before is zero
        >>> h = cell(jnp.ones((4, 3)), h)
        >>> h.shape, h.dtype
        ((4, 5), dtype('float32'))

    The new state is in the dtype of the state: float32 also where `dtype` is bfloat16 or float16.

    Source: `torch.nn.RNNCell`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        rngs: nnx.Rngs,
    ):
        arguments.nonlinearity(type(self).__name__, nonlinearity)
        self.nonlinearity = nonlinearity
        super().__init__(
            input_size,
            hidden_size,
            bias,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            rngs=rngs,
        )

    @property
    def cell(self) -> Cell:  # type: ignore[override]
        return rnn_cell(self.nonlinearity)


class GRUCell(Step[Array]):
    """`torch.nn.GRUCell`: one step of `GRU`, with weights weight_ih (3H, I), weight_hh (3H, H).

    Arguments, call and shapes are those of `RNNCell`, without `nonlinearity`.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> cell = jaxrnn.GRUCell(3, 5, rngs=nnx.Rngs(0))
        >>> cell(jnp.ones(3)).shape
        (5,)

    Source: `torch.nn.GRUCell`.
    """

    cell = cells.gru

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            input_size,
            hidden_size,
            bias,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            rngs=rngs,
        )


class LSTMCell(Step[tuple[Array, Array]]):
    """`torch.nn.LSTMCell`: one step of `LSTM`, with weights weight_ih (4H, I), weight_hh (4H, H).

    Arguments are those of `RNNCell`, without `nonlinearity`.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> cell = jaxrnn.LSTMCell(3, 5, rngs=nnx.Rngs(0))
        >>> h, c = cell(jnp.ones((4, 3)))
        >>> h, c = cell(jnp.ones((4, 3)), (h, c))
        >>> h.shape, c.shape
        ((4, 5), (4, 5))

    Source: `torch.nn.LSTMCell`.
    """

    cell = cells.lstm
    _states = ("h", "c")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            input_size,
            hidden_size,
            bias,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            rngs=rngs,
        )
