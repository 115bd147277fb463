"""`Recurrent`: any cell as a layer over whole sequences, stacked, in one direction or both."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from jaxrnn import checks
from jaxrnn.cells import Cell
from jaxrnn.modules import arguments
from jaxrnn.modules.base import State, warn
from jaxrnn.modules.initialise import Initialisers, Initializer
from jaxrnn.modules.stack import Stack
from jaxrnn.strategies import Strategy


class Recurrent(Stack[State]):
    """Any cell over time, with all that PyTorch's recurrent layers have; `LSTM` is one of them.

    carry_t = cell(carry_{t-1}, W_ih x_t + b_ih, W_hh h_{t-1} + b_hh)

    Args:
        cell: the step, one of `jaxrnn.cells` or your own.
        input_size: I, features of each step.
        hidden_size: H, features of the state.
        num_layers: L, stacked layers.
        bias: whether there are b_ih and b_hh.
        batch_first: whether inputs and outputs are (B, T, ·) and not (T, B, ·); states never are.
        dropout: probability of an element of every layer's outputs but the last's being zeroed, in
            training (`module.train()`, the initial mode; `module.eval()` ends it).
        bidirectional: whether a second direction runs backwards; D is 2 then, else 1.
        proj_size: P, features of the output and of h; 0 for H and no projection. Adds
            `weight_hr_l0` (P, H) and its like. Refused where the cell uses h itself.
        dtype: of computation: inputs and weights are converted to it. None computes in
            `param_dtype` and refuses inputs of another, as PyTorch. With bfloat16 or float16,
            states and sums stay float32, outputs are of `dtype`, and final states are float32, so
            that a sequence in chunks equals the whole.
        param_dtype: of the parameters.
        precision: of every product, as in `jax.lax.dot_general`.
        strategy: how a direction runs over time (`jaxrnn.strategies`); None chooses.
        initial_state: "zeros", or "learned": then the state that a sequence begins with is a
            parameter for each layer, direction and state, `h_0_l0` (P,), `c_0_l0` (H,), ..., zero
            at first and the same for all rows.
        input_dropout: as `dropout`, of the inputs.
        variational: both kinds of dropout zero the same elements at every step of a row.
        recurrent_dropout: probability of an element of h being zeroed in the product W_hh h, the
            same elements at every step of a row.
        weight_dropout: probability of an element of W_hh being zeroed, for the whole call.
        zoneout: probability of each unit of a state keeping its value at a step; a number for h
            alone, or one for each state. In evaluation a state moves by the expected part.
        kernel_init, recurrent_init, bias_init: Flax's initialisers for W_ih and W_hr, W_hh, and
            both biases. A matrix is initialised gate by gate, so that `orthogonal()` makes each
            gate's W_hh orthogonal. None for U(-1/sqrt(H), 1/sqrt(H)), PyTorch's.
        forget_bias: initial bias of the gate that keeps the state (the LSTM's f, the GRU's z),
            in b_ih; b_hh is 0 there.
        kernel_metadata, recurrent_kernel_metadata, bias_metadata: of the `nnx.Param`s, as in
            Flax's layers; `{"sharding_names": (...)}` for one.
        rngs: for the initial parameters and, as the stream "dropout", for what is random in
            training.

    Attributes:
        weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0, weight_ih_l0_reverse, ...: the
            parameters, (G*H, I or D*P), (G*H, P), (G*H,), (G*H,), named and laid out as PyTorch's.
            A cell with `recurrent=False` has neither `weight_hh_l0` nor `bias_hh_l0`.
        leak_l0, leak_l0_reverse, ...: the cell's own parameters, where `cell.init` returns
            {"leak": ...}. A nested key is joined by "_", and a single array is called `cell_l0`.
            `state_dict` and `load_state_dict` use these names.

    Raises:
        ValueError, TypeError: for arguments and inputs of wrong type, value or shape, with
            PyTorch's phrase where PyTorch has one. Lengths are checked where their values are
            known and clipped to [0, T] where they are traced.

    Example:
        A leaky integrator with a trainable leak for each unit.

        >>> import jax, jax.numpy as jnp, jaxrnn
        >>> from flax import nnx
        >>> from jaxrnn import cells
        >>> @cells.pure
        ... def step(params, carry, gx, gh):
        ...     a = cells.spread(jax.nn.sigmoid(params["leak"]), gx)
        ...     return (a * carry[0] + (1 - a) * jnp.tanh(gx + gh),)
        >>> def init(key, hidden_size, dtype):
        ...     return {"leak": jax.random.normal(key, (hidden_size,), dtype)}
        >>> leaky = cells.Cell("leaky", gates=1, states=1, step=step, init=init, additive=True)
        >>> layer = jaxrnn.Recurrent(leaky, 3, 5, num_layers=2, rngs=nnx.Rngs(0))
        >>> output, h_n = layer(jnp.ones((7, 4, 3)), lengths=jnp.array([7, 2, 0, 5]))
        >>> output.shape, h_n.shape, sorted(jaxrnn.state_dict(layer))[4:6]
        ((7, 4, 5), (2, 4, 5), ['leak_l0', 'leak_l1'])

    In `nnx.Sequential`, which unpacks the pair that a layer returns, the output goes on alone by a
    function between: `nnx.Sequential(layer, lambda output, h_n: output, head)`.

    The whole call is compiled once for its shapes, if the cell's step is marked by `cells.pure`;
    each call of any other step outside of `jax.jit` looks for the arrays that it closes over.
    """

    def __init__(
        self,
        cell: Cell,
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
        initial_state: str = "zeros",
        input_dropout: float = 0.0,
        variational: bool = False,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        zoneout: float | Sequence[float] = 0.0,
        kernel_init: Initializer | None = None,
        recurrent_init: Initializer | None = None,
        bias_init: Initializer | None = None,
        forget_bias: float | None = None,
        kernel_metadata: Mapping[str, Any] = MappingProxyType({}),
        recurrent_kernel_metadata: Mapping[str, Any] = MappingProxyType({}),
        bias_metadata: Mapping[str, Any] = MappingProxyType({}),
        rngs: nnx.Rngs,
    ):
        name = type(self).__name__
        arguments.dtypes(name, dtype, param_dtype)
        arguments.rngs(name, rngs)
        checks.strategy(f"{name}(strategy=...)", strategy)
        arguments.constructor(
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
        arguments.initial_state(name, initial_state)
        arguments.projectable(name, cell, hidden_size, proj_size)
        rates = arguments.rates(
            name,
            cell,
            proj_size,
            between=dropout,
            input_dropout=input_dropout,
            recurrent_dropout=recurrent_dropout,
            weight_dropout=weight_dropout,
            zoneout=zoneout,
            variational=variational,
        )
        initialisers = Initialisers(kernel_init, recurrent_init, bias_init, forget_bias)
        initialisers.check(name, cell, bias)
        if dropout > 0 and num_layers == 1:
            warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero "
                f"dropout expects num_layers greater than 1, but got dropout={dropout} and "
                f"num_layers={num_layers}"
            )
        self._cell = cell
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
        self._rates = rates
        self._learned = initial_state == "learned"
        metadata = {
            "weight_ih": kernel_metadata,
            "weight_hh": recurrent_kernel_metadata,
            "weight_hr": kernel_metadata,
            "bias_ih": bias_metadata,
            "bias_hh": bias_metadata,
        }
        for layer in range(num_layers):
            for suffix in self._suffixes(layer):
                self._create_weights(suffix, self._inputs(layer), rngs, initialisers, metadata)
                for state, size in zip(
                    self._states if self._learned else (), self._sizes, strict=False
                ):
                    setattr(self, state + suffix, nnx.Param(jnp.zeros((size,), param_dtype)))
        if self._counts:
            self._dropout = nnx.Dropout(self.dropout, rngs=rngs)
