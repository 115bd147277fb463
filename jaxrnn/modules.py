"""PyTorch's `nn.RNN`, `nn.LSTM`, `nn.GRU` and their cells as `flax.nnx` modules.

Constructor arguments, defaults, shapes, parameter names and layouts are PyTorch's; the keyword-only
arguments after them are Flax's. The parameters are plain `nnx.Param` attributes named as PyTorch
names them, so weights move across by copying.
"""

import math
import warnings
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike

from jaxrnn import cells, checks, layers
from jaxrnn.cells import Cell, Weights
from jaxrnn.strategies import Strategy

_LOW_PRECISION = (jnp.bfloat16, jnp.float16)


class _Module(nnx.Module):
    """What layers and cells share: parameters, dtypes, and how a step accumulates."""

    def _create(self, name: str, shape: tuple[int, ...], rngs: nnx.Rngs) -> None:
        """A parameter drawn from U(-1/sqrt(H), 1/sqrt(H)), as every one of PyTorch's."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        value = jax.random.uniform(rngs.params(), shape, self.param_dtype, -bound, bound)
        setattr(self, name, nnx.Param(value))

    def _create_weights(self, suffix: str, inputs: int, rngs: nnx.Rngs) -> None:
        gates = self._cell.gates * self.hidden_size
        outputs = self.proj_size or self.hidden_size
        self._create(f"weight_ih{suffix}", (gates, inputs), rngs)
        self._create(f"weight_hh{suffix}", (gates, outputs), rngs)
        if self.bias:
            self._create(f"bias_ih{suffix}", (gates,), rngs)
            self._create(f"bias_hh{suffix}", (gates,), rngs)
        if self.proj_size:
            self._create(f"weight_hr{suffix}", (self.proj_size, self.hidden_size), rngs)

    def _weights(self, suffix: str, dtype: DTypeLike) -> Weights:
        """The parameters in the form of the functional core; biases join the sums as they are."""

        def get(name: str, dtype: DTypeLike | None = None) -> Array | None:
            param = getattr(self, f"{name}{suffix}", None)
            return None if param is None else param[...] if dtype is None else param.astype(dtype)

        return Weights(
            ih=get("weight_ih", dtype),
            hh=get("weight_hh", dtype),
            b_ih=get("bias_ih"),
            b_hh=get("bias_hh"),
            hr=get("weight_hr", dtype),
        )

    def _input(self, x: Any) -> tuple[Array, jnp.dtype]:
        """The input as an array, and the dtype to compute in."""
        x = jnp.asarray(x)
        if self.dtype is None:
            checks.dtype(type(self).__name__, x, jnp.dtype(self.param_dtype))
            return x, x.dtype
        return x.astype(self.dtype), jnp.dtype(self.dtype)


def _carry_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """States and sums are kept in at least float32."""
    return jnp.dtype(jnp.float32) if dtype in _LOW_PRECISION else dtype


class _Layers(_Module):
    """The common part of RNN, LSTM and GRU."""

    _cell: Cell
    _states: tuple[str, ...] = ("h_0",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        proj_size: int,
        *,
        dtype: DTypeLike | None,
        param_dtype: DTypeLike,
        precision: lax.PrecisionLike,
        strategy: Strategy | None,
        rngs: nnx.Rngs,
    ):
        name = type(self).__name__
        checks.constructor(
            name,
            input_size=input_size,
            hidden_size=hidden_size,
            num_layers=num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            proj_size=proj_size,
        )
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero "
                f"dropout expects num_layers greater than 1, but got dropout={dropout} and "
                f"num_layers={num_layers}",
                stacklevel=3,
            )
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.precision = precision
        self.strategy = strategy
        for layer in range(num_layers):
            inputs = input_size if layer == 0 else self._outputs * self._directions
            for direction in range(self._directions):
                self._create_weights(_suffix(layer, direction), inputs, rngs)
        if dropout > 0 and num_layers > 1:
            self._between = nnx.Dropout(self.dropout, rngs=rngs)

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def _outputs(self) -> int:
        return self.proj_size or self.hidden_size

    def _run(self, input: Any, hx: Any, lengths: Any, rngs: Any) -> tuple[Array, tuple[Array, ...]]:
        name = type(self).__name__
        x = jnp.asarray(input)
        checks.sequence(name, self._call, x, self.input_size, self.batch_first)
        x, dtype = self._input(x)
        batched = x.ndim == 3
        if not batched:
            x = x[:, None]
        elif self.batch_first:
            x = x.swapaxes(0, 1)
        steps, batch, _ = x.shape

        sizes = (self._outputs, self.hidden_size)[: len(self._states)]
        shapes = [(self.num_layers * self._directions, batch, size) for size in sizes]
        carry_dtype = _carry_dtype(dtype)
        if hx is None:
            carry = tuple(jnp.zeros(shape, carry_dtype) for shape in shapes)
        else:
            arrays = checks.states(self._call, hx, self._states, batched, shapes)
            carry = tuple(a.astype(carry_dtype) for a in arrays)
        if lengths is not None:
            lengths = checks.lengths(lengths, batch, steps, batched)

        weights = [
            [self._weights(_suffix(layer, d), dtype) for d in range(self._directions)]
            for layer in range(self.num_layers)
        ]
        between = getattr(self, "_between", None)
        ys, last = layers.stack(
            self._cell,
            weights,
            x,
            carry,
            lengths,
            strategy=self.strategy,
            precision=self.precision,
            between=None if between is None else lambda y: between(y, rngs=rngs),
        )
        ys = ys.astype(dtype)
        if not batched:
            return ys[:, 0], tuple(s[:, 0] for s in last)
        return (ys.swapaxes(0, 1) if self.batch_first else ys), last

    @property
    def _call(self) -> str:
        return f"{type(self).__name__}(input_size={self.input_size})"


def _suffix(layer: int, direction: int) -> str:
    return f"_l{layer}" + ("_reverse" if direction else "")


class RNN(_Layers):
    """`torch.nn.RNN`: h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), or relu in tanh's place.

    Args:
        input_size: I, features of each step.
        hidden_size: H, features of the state.
        num_layers: L, stacked layers.
        nonlinearity: "tanh" or "relu".
        bias: whether there are b_ih and b_hh.
        batch_first: whether inputs and outputs are (B, T, ·) and not (T, B, ·); states never are.
        dropout: probability of an element of every layer's outputs but the last's being zeroed, in
            training (`module.train()`, the initial mode; `module.eval()` ends it).
        bidirectional: whether a second direction runs backwards; D is 2 then, else 1.
        dtype: of computation: inputs and weights are converted to it. None computes in
            `param_dtype` and refuses inputs of another, as PyTorch. With bfloat16 or float16,
            states and sums stay float32, outputs are of `dtype`, and final states are float32, so
            that a sequence in chunks equals the whole.
        param_dtype: of the parameters.
        precision: of every product, as in `jax.lax.dot_general`.
        strategy: how a direction runs over time (`jaxrnn.strategies`); None chooses.
        rngs: for the initial parameters, each from U(-1/sqrt(H), 1/sqrt(H)), and for dropout.

    Attributes:
        weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0, weight_ih_l0_reverse, ...: the
        parameters, (G*H, I or D*P), (G*H, P), (G*H,), (G*H,), named and laid out as PyTorch's.

    Raises:
        ValueError, TypeError: for arguments and inputs of wrong type, value or shape, with
            PyTorch's phrase where PyTorch has one. Lengths are checked where their values are
            known and clipped to [0, T] where they are traced.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> rnn = jaxrnn.RNN(3, 5, num_layers=2, bidirectional=True, rngs=nnx.Rngs(0))
        >>> output, h_n = rnn(jnp.ones((7, 4, 3)), lengths=jnp.array([7, 2, 0, 5]))
        >>> output.shape, h_n.shape                    # (T, B, D*H), (D*L, B, H)
        ((7, 4, 10), (4, 4, 5))

    Source: Elman, "Finding Structure in Time", 1990; `torch.nn.RNN`.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        strategy: Strategy | None = None,
        rngs: nnx.Rngs,
    ):
        checks.nonlinearity("RNN", nonlinearity)
        self.nonlinearity = nonlinearity
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            0,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            strategy=strategy,
            rngs=rngs,
        )

    @property
    def _cell(self) -> Cell:  # type: ignore[override]
        return _rnn_cell(self.nonlinearity)

    def __call__(
        self, input: Any, hx: Any = None, *, lengths: Any = None, rngs: Any = None
    ) -> tuple[Array, Array]:
        """Runs over a sequence.

        Args:
            input: (T, B, I), or (B, T, I) with `batch_first`, or (T, I) unbatched.
            hx: initial state, (D*L, B, H), or (D*L, H) unbatched; None for zeros.
            lengths: steps in each row, integers (B,) in [0, T], or () unbatched; None for T.
            rngs: in place of the constructor's for dropout: `nnx.Rngs`, a stream or a key.

        Returns:
            output: (T, B, D*H) in the input's layout, exactly 0 past each length.
            h_n: (D*L, B, H), each row's state after its last step.
        """
        ys, (h,) = self._run(input, hx, lengths, rngs)
        return ys, h


class GRU(_Layers):
    """`torch.nn.GRU`, with the reset gate on the product, r (W_hn h + b_hn).

    r = σ(W_ir x + b_ir + W_hr h + b_hr)
    z = σ(W_iz x + b_iz + W_hz h + b_hz)
    n = tanh(W_in x + b_in + r (W_hn h + b_hn))
    h' = (1 - z) n + z h

    Arguments, attributes, errors, call and shapes are those of `RNN`, without `nonlinearity`;
    the gates stand in the order r, z, n in `weight_ih_l0` (3H, I) and its like.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> gru = jaxrnn.GRU(3, 5, batch_first=True, rngs=nnx.Rngs(0))
        >>> output, h_n = gru(jnp.ones((4, 7, 3)))
        >>> bool((output[:, -1] == h_n[0]).all())
        True

    Source: Cho et al., 2014, "Learning Phrase Representations using RNN Encoder-Decoder";
    `torch.nn.GRU`.
    """

    _cell = cells.gru

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        strategy: Strategy | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            0,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            strategy=strategy,
            rngs=rngs,
        )

    def __call__(
        self, input: Any, hx: Any = None, *, lengths: Any = None, rngs: Any = None
    ) -> tuple[Array, Array]:
        """Runs over a sequence; arguments and results as in `RNN.__call__`."""
        ys, (h,) = self._run(input, hx, lengths, rngs)
        return ys, h


class LSTM(_Layers):
    """`torch.nn.LSTM`, with projections.

    i = σ(W_ii x + b_ii + W_hi h + b_hi)
    f = σ(W_if x + b_if + W_hf h + b_hf)
    g = tanh(W_ig x + b_ig + W_hg h + b_hg)
    o = σ(W_io x + b_io + W_ho h + b_ho)
    c' = f c + i g
    h' = o tanh(c'),  or  W_hr (o tanh(c'))  with `proj_size`

    Arguments, attributes, errors and shapes are those of `RNN`, without `nonlinearity` and with

        proj_size: P, features of the output and of h; 0 for H and no projection. Adds
            `weight_hr_l0` (P, H) and its like.

    The gates stand in the order i, f, g, o in `weight_ih_l0` (4H, I) and its like.

    Example:
        >>> import jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> lstm = jaxrnn.LSTM(3, 5, proj_size=2, rngs=nnx.Rngs(0))
        >>> output, (h_n, c_n) = lstm(jnp.ones((7, 4, 3)))
        >>> output.shape, h_n.shape, c_n.shape
        ((7, 4, 2), (1, 4, 2), (1, 4, 5))

    Source: Hochreiter and Schmidhuber, 1997, "Long Short-Term Memory"; projections: Sak, Senior and
    Beaufays, 2014; `torch.nn.LSTM`.
    """

    _cell = cells.lstm
    _states = ("h_0", "c_0")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        strategy: Strategy | None = None,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            dtype=dtype,
            param_dtype=param_dtype,
            precision=precision,
            strategy=strategy,
            rngs=rngs,
        )

    def __call__(
        self, input: Any, hx: Any = None, *, lengths: Any = None, rngs: Any = None
    ) -> tuple[Array, tuple[Array, Array]]:
        """Runs over a sequence; arguments as in `RNN.__call__`, but for the pair of states.

        Args:
            input: (T, B, I), or (B, T, I) with `batch_first`, or (T, I) unbatched.
            hx: initial states (h_0, c_0), (D*L, B, P) and (D*L, B, H), or without B; None for zeros.
            lengths: steps in each row, integers (B,) in [0, T], or () unbatched; None for T.
            rngs: in place of the constructor's for dropout.

        Returns:
            output: (T, B, D*P) in the input's layout, exactly 0 past each length.
            (h_n, c_n): (D*L, B, P) and (D*L, B, H), each row's states after its last step.
        """
        ys, (h, c) = self._run(input, hx, lengths, rngs)
        return ys, (h, c)


class _Step(_Module):
    """The common part of RNNCell, LSTMCell and GRUCell: one step, one set of weights."""

    _cell: Cell
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
        checks.constructor(
            type(self).__name__, input_size=input_size, hidden_size=hidden_size, bias=bias
        )
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.precision = precision
        self._create_weights("", input_size, rngs)

    def _run(self, input: Any, hx: Any) -> tuple[Array, ...]:
        name = type(self).__name__
        x = jnp.asarray(input)
        checks.step_input(name, x, self.input_size)
        x, dtype = self._input(x)
        batched = x.ndim == 2
        if not batched:
            x = x[None]
        shapes = [(x.shape[0], self.hidden_size)] * len(self._states)
        carry_dtype = _carry_dtype(dtype)
        if hx is None:
            carry = tuple(jnp.zeros(shape, carry_dtype) for shape in shapes)
        else:
            arrays = checks.step_states(name, hx, self._states, batched, shapes)
            carry = tuple(a.astype(carry_dtype) for a in arrays)
        weights = self._weights("", dtype)
        gx = cells.project(x, weights.ih, weights.b_ih, carry_dtype, self.precision)
        new, _ = cells.step(self._cell, weights, carry, gx, self.precision)
        return new if batched else tuple(s[0] for s in new)


class RNNCell(_Step):
    """`torch.nn.RNNCell`: h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu in tanh's place.

    Args:
        input_size, hidden_size, bias, nonlinearity: as in PyTorch, and as in `RNN`.
        dtype, param_dtype, precision, rngs: as in `RNN`. A cell is one step: it has no strategy.

    Attributes:
        weight_ih (H, I), weight_hh (H, H), bias_ih (H,), bias_hh (H,).

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
        checks.nonlinearity("RNNCell", nonlinearity)
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
    def _cell(self) -> Cell:  # type: ignore[override]
        return _rnn_cell(self.nonlinearity)

    def __call__(self, input: Any, hx: Any = None) -> Array:
        """One step: input (B, I) or (I,), hx (B, H) or (H,) or None, to the new state."""
        (h,) = self._run(input, hx)
        return h


class GRUCell(_Step):
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

    _cell = cells.gru

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

    def __call__(self, input: Any, hx: Any = None) -> Array:
        """One step: input (B, I) or (I,), hx (B, H) or (H,) or None, to the new state."""
        (h,) = self._run(input, hx)
        return h


class LSTMCell(_Step):
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

    _cell = cells.lstm
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

    def __call__(self, input: Any, hx: Any = None) -> tuple[Array, Array]:
        """One step: input (B, I) or (I,), hx a pair (B, H) or (H,) or None, to the new (h, c)."""
        h, c = self._run(input, hx)
        return h, c


def _rnn_cell(nonlinearity: str) -> Cell:
    return cells.rnn_tanh if nonlinearity == "tanh" else cells.rnn_relu
