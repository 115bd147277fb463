"""`RNN`, `GRU` and `LSTM`: PyTorch's arguments and equations."""

from typing import Unpack

from jax import Array

from jaxrnn import cells
from jaxrnn.modules import arguments
from jaxrnn.modules.base import rnn_cell
from jaxrnn.modules.options import Options
from jaxrnn.modules.recurrent import Recurrent


class RNN(Recurrent[Array]):
    """`torch.nn.RNN`: h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), or relu in tanh's place.

    Arguments, attributes, errors, call and shapes are those of `Recurrent`, without `cell` and with

        nonlinearity: "tanh" or "relu".
        proj_size: refused unless 0: only the LSTM has projections.

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
        proj_size: int = 0,
        **options: Unpack[Options],
    ):
        arguments.options(type(self).__name__, options)
        arguments.nonlinearity(type(self).__name__, nonlinearity)
        arguments.no_projection(type(self).__name__, proj_size)
        self.nonlinearity = nonlinearity
        super().__init__(
            rnn_cell(nonlinearity),
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            **options,
        )


class GRU(Recurrent[Array]):
    """`torch.nn.GRU`, with the reset gate on the product, r (W_hn h + b_hn).

    r = σ(W_ir x + b_ir + W_hr h + b_hr)
    z = σ(W_iz x + b_iz + W_hz h + b_hz)
    n = tanh(W_in x + b_in + r (W_hn h + b_hn))
    h' = (1 - z) n + z h

    Arguments, attributes, errors, call and shapes are those of `Recurrent`, without `cell`;
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
        **options: Unpack[Options],
    ):
        arguments.options(type(self).__name__, options)
        arguments.no_projection(type(self).__name__, proj_size)
        super().__init__(
            cells.gru,
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            **options,
        )


class LSTM(Recurrent[tuple[Array, Array]]):
    """`torch.nn.LSTM`, with projections.

    i = σ(W_ii x + b_ii + W_hi h + b_hi)
    f = σ(W_if x + b_if + W_hf h + b_hf)
    g = tanh(W_ig x + b_ig + W_hg h + b_hg)
    o = σ(W_io x + b_io + W_ho h + b_ho)
    c' = f c + i g
    h' = o tanh(c'),  or  W_hr (o tanh(c'))  with `proj_size`

    Arguments, attributes, errors, call and shapes are those of `Recurrent`, without `cell`;
    the gates stand in the order i, f, g, o in `weight_ih_l0` (4H, I) and its like.

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
        **options: Unpack[Options],
    ):
        arguments.options(type(self).__name__, options)
        super().__init__(
            cells.lstm,
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
            **options,
        )
