"""Recurrences that are written as loops in PyTorch: `VanillaRNN` and `SimpleLSTM`.

Their parameters are linear layers, as in PyTorch, and are assembled into the `Weights` of the
library's own cells and strategies. They show how to bring in a recurrence with its own parameter
names.

Letters: B batch, T steps, I inputs, H hidden units, O outputs.
"""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from jaxrnn import cells, checks, layers
from jaxrnn.cells import Carry, Cell, Weights
from jaxrnn.models.linear import linear
from jaxrnn.modules.base import carry_dtype
from jaxrnn.strategies import Strategy


class VanillaRNN(nnx.Module):
    """A tanh RNN made of three linear layers, with one output for each step.

    h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)
    y_t = W_ho h_t + b_ho

    Args:
        input_size: I, features of each step.
        hidden_size: H, features of the state.
        output_size: O, features of each output.
        dtype: dtype of the computation; None for `param_dtype`. With bfloat16 or float16, states
            and sums stay in float32.
        param_dtype: dtype of the parameters.
        strategy: strategy over time (`jaxrnn.strategies`); None chooses one.
        rngs: random numbers for the initial parameters, which follow the distribution of
            `torch.nn.Linear`.

    Attributes:
        W_ih, W_hh, W_ho: `nnx.Linear`, I to H, H to H and H to O.

    Raises:
        ValueError: for inputs or states of the wrong shape or dtype.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn import models
        >>> model = models.VanillaRNN(10, 32, 5, rngs=nnx.Rngs(0))
        >>> outputs, hidden = model(jnp.ones((3, 15, 10)))
        >>> outputs.shape, hidden.shape                            # (B, T, O), (B, H)
        ((3, 15, 5), (3, 32))
        >>> outputs, hidden = model(jnp.ones((3, 2, 10)), hidden)  # two more steps

    Source: Elman, "Finding Structure in Time", 1990.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        strategy: Strategy | None = None,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.hidden_size = hidden_size
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.strategy = strategy
        self.W_ih = linear(input_size, hidden_size, **options)
        self.W_hh = linear(hidden_size, hidden_size, **options)
        self.W_ho = linear(hidden_size, output_size, **options)

    def __call__(
        self, x: Any, hidden: Any = None
    ) -> tuple[Float[Array, "B T O"], Float[Array, "B H"]]:
        """Outputs and the last state, from x (B, T, I) and the initial state, (B, H) or None."""
        x = _inputs("VanillaRNN", x, self.W_ih.in_features, self.dtype, self.param_dtype)
        carry = _states("VanillaRNN", hidden, ("hidden",), x, self.hidden_size)
        weights = Weights(
            ih=self.W_ih.kernel.T.astype(x.dtype),
            hh=self.W_hh.kernel.T.astype(x.dtype),
            b_ih=_bias(self.W_ih),
            b_hh=_bias(self.W_hh),
        )
        ys, (last,) = _run(cells.rnn_tanh, weights, x, carry, self.strategy)
        return self.W_ho(ys), last


class SimpleLSTM(nnx.Module):
    """An LSTM whose gates are four linear layers on [x_t, h_{t-1}], with one output for each step.

    f = σ(W_f [x_t, h_{t-1}] + b_f)          the forget gate
    i = σ(W_i [x_t, h_{t-1}] + b_i)          the input gate
    g = tanh(W_g [x_t, h_{t-1}] + b_g)       the candidate
    o = σ(W_o [x_t, h_{t-1}] + b_o)          the output gate
    c_t = f c_{t-1} + i g
    h_t = o tanh(c_t)
    y_t = W_y h_t + b_y

    The arguments and errors are those of `VanillaRNN`. Each gate has one bias, whereas
    `jaxrnn.LSTM` has two, so training matches PyTorch's loop and not `torch.nn.LSTM`.

    Attributes:
        forget_gate, input_gate, candidate_gate, output_gate: `nnx.Linear`, I + H to H; the first I
            rows of each kernel apply to the input.
        output_layer: `nnx.Linear`, H to O.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxrnn import models
        >>> model = models.SimpleLSTM(10, 32, 5, rngs=nnx.Rngs(0))
        >>> outputs, (h, c) = model(jnp.ones((3, 15, 10)))
        >>> outputs.shape, h.shape, c.shape                        # (B, T, O), (B, H), (B, H)
        ((3, 15, 5), (3, 32), (3, 32))
        >>> outputs, (h, c) = model(jnp.ones((3, 2, 10)), (h, c))  # two more steps

    Source: Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997, with the forget gate of
    Gers, Schmidhuber and Cummins, "Learning to Forget", 2000.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        strategy: Strategy | None = None,
        rngs: nnx.Rngs,
    ):
        options: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.dtype = dtype
        self.param_dtype = param_dtype
        self.strategy = strategy
        self.forget_gate = linear(input_size + hidden_size, hidden_size, **options)
        self.input_gate = linear(input_size + hidden_size, hidden_size, **options)
        self.candidate_gate = linear(input_size + hidden_size, hidden_size, **options)
        self.output_gate = linear(input_size + hidden_size, hidden_size, **options)
        self.output_layer = linear(hidden_size, output_size, **options)

    def __call__(
        self, x: Any, states: Any = None
    ) -> tuple[Float[Array, "B T O"], tuple[Float[Array, "B H"], Float[Array, "B H"]]]:
        """Outputs and the last (h, c), from x (B, T, I) and the initial (h, c), each (B, H)."""
        x = _inputs("SimpleLSTM", x, self.input_size, self.dtype, self.param_dtype)
        carry = _states("SimpleLSTM", states, ("h", "c"), x, self.hidden_size)
        # The gate order of `cells.lstm`: i, f, g, o.
        gates = (self.input_gate, self.forget_gate, self.candidate_gate, self.output_gate)
        both = jnp.concatenate([gate.kernel.T for gate in gates]).astype(x.dtype)
        weights = Weights(
            ih=both[:, : self.input_size],
            hh=both[:, self.input_size :],
            b_ih=jnp.concatenate([_bias(gate) for gate in gates]),
        )
        ys, (h, c) = _run(cells.lstm, weights, x, carry, self.strategy)
        return self.output_layer(ys), (h, c)


def _bias(layer: nnx.Linear) -> Array:
    assert layer.bias is not None
    return layer.bias[...]


def _run(
    cell: Cell, weights: Weights, x: Array, carry: Carry, strategy: Strategy | None
) -> tuple[Array, Carry]:
    """One layer in one direction, batch first: outputs (B, T, H), states (B, H)."""
    ys, last = layers.stack(
        cell, [[weights]], x.swapaxes(0, 1), tuple(s[None] for s in carry), strategy=strategy
    )
    return ys.swapaxes(0, 1).astype(x.dtype), tuple(s[0] for s in last)


def _inputs(
    name: str, x: Any, input_size: int, dtype: DTypeLike | None, param_dtype: DTypeLike
) -> Array:
    """Inputs in the dtype of the computation."""
    x = jnp.asarray(x)
    if x.ndim != 3 or x.shape[-1] != input_size:
        raise checks.InputError(
            f"`{name}(input_size={input_size})` needs inputs of shape (B, T, {input_size}), "
            f"got {x.shape}."
        )
    if dtype is None:
        checks.dtype(name, x, jnp.dtype(param_dtype))
        return x
    return x.astype(dtype)


def _states(name: str, given: Any, names: tuple[str, ...], x: Array, hidden_size: int) -> Carry:
    """Initial states, in the dtype of the carry."""
    shape, dtype = (x.shape[0], hidden_size), carry_dtype(x.dtype)
    if given is None:
        return tuple(jnp.zeros(shape, dtype) for _ in names)
    arrays = checks.step_states(name, given, names, True, [shape] * len(names))
    return tuple(state.astype(dtype) for state in arrays)
