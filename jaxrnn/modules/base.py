"""What layers and cells share: their parameters, their dtypes, and the form of their state."""

import math
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike

from jaxrnn import cells, checks
from jaxrnn.cells import Cell, Weights

_LOW_PRECISION = (jnp.bfloat16, jnp.float16)

State = TypeVar("State")
"""A module's state: an array, or for the LSTM a pair."""


class Module(nnx.Module):
    """Parameters named and laid out as PyTorch's, and the dtypes to compute in."""

    input_size: int
    hidden_size: int
    bias: bool
    proj_size: int = 0
    dtype: DTypeLike | None
    param_dtype: DTypeLike
    precision: lax.PrecisionLike
    weight_ih: nnx.Param
    weight_ih_l0: nnx.Param
    _cell: Cell

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

        def get(name: str, dtype: DTypeLike | None = None) -> Any:
            param = getattr(self, f"{name}{suffix}", None)
            return None if param is None else param[...] if dtype is None else param.astype(dtype)

        return Weights(
            ih=get("weight_ih", dtype),
            hh=get("weight_hh", dtype),
            b_ih=get("bias_ih"),
            b_hh=get("bias_hh"),
            hr=get("weight_hr", dtype),
        )

    def _cast(self, x: Array, weight: nnx.Param) -> tuple[Array, jnp.dtype]:
        """The input in the dtype to compute in, and that dtype."""
        if self.dtype is None:
            checks.dtype(type(self).__name__, x, weight.dtype)
            return x, x.dtype
        checks.convertible(type(self).__name__, x, "inputs")
        return x.astype(self.dtype), jnp.dtype(self.dtype)

    def _cast_states(
        self, name: str, arrays: tuple[Array, ...], names: tuple[str, ...], dtype: jnp.dtype
    ) -> tuple[Array, ...]:
        """The states in the dtype that they are kept in."""
        wide = carry_dtype(dtype)
        checks.state_dtypes(name, arrays, names, (dtype, wide) if self.dtype is None else None)
        return tuple(a.astype(wide) for a in arrays)


def carry_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """States and sums are kept in at least float32."""
    return jnp.dtype(jnp.float32) if dtype in _LOW_PRECISION else dtype


def rnn_cell(nonlinearity: str) -> Cell:
    return cells.rnn_tanh if nonlinearity == "tanh" else cells.rnn_relu


def as_state(states: tuple[Array, ...]) -> Any:
    """One state as it is, several as a tuple: PyTorch's `h_n` and `(h_n, c_n)`."""
    return states[0] if len(states) == 1 else states
