"""`RNN`, `GRU` and `LSTM`: PyTorch's arguments and equations."""

import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike

from jaxrnn import cells
from jaxrnn.cells import Cell
from jaxrnn.modules import arguments
from jaxrnn.modules.base import rnn_cell
from jaxrnn.modules.stacked import Layers
from jaxrnn.strategies import Strategy


class RNN(Layers[Array]):
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
        proj_size: refused unless 0: only the LSTM has projections.
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

    In `nnx.Sequential`, which unpacks the pair that a layer returns, the output goes on alone by a
    function between: `nnx.Sequential(rnn, lambda output, h_n: output, head)`.

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
        proj_size: int = 0,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        strategy: Strategy | None = None,
        rngs: nnx.Rngs,
    ):
        arguments.nonlinearity(type(self).__name__, nonlinearity)
        arguments.no_projection(type(self).__name__, proj_size)
        self.nonlinearity = nonlinearity
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

    @property
    def _cell(self) -> Cell:  # type: ignore[override]
        return rnn_cell(self.nonlinearity)


class GRU(Layers[Array]):
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
        proj_size: int = 0,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        precision: lax.PrecisionLike = None,
        strategy: Strategy | None = None,
        rngs: nnx.Rngs,
    ):
        arguments.no_projection(type(self).__name__, proj_size)
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


class LSTM(Layers[tuple[Array, Array]]):
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
