"""The common part of layers and cells: parameters, dtypes, and the form of the state."""

import inspect
import math
import sys
import warnings
from pathlib import Path
from typing import Any, TypeVar

import flax
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


class _Signature:
    """The signature of the constructor, which Flax's metaclass hides from `inspect` and `help`."""

    def __get__(self, instance: Any, owner: Any) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("__signature__")  # an instance has that of its `__call__`
        _, *parameters = inspect.signature(owner.__init__).parameters.values()
        return inspect.Signature(parameters)


class Module(nnx.Module):
    """Parameters named and laid out as PyTorch's, and the dtypes to compute in."""

    __signature__ = _Signature()

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

    def _shapes(self, suffix: str, inputs: int) -> dict[str, tuple[int, ...]]:
        """The parameters of one layer in one direction, in the order of their creation."""
        gates = self._cell.gates * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (gates, inputs),
            "weight_hh": (gates, self.proj_size or self.hidden_size),
        }
        if self.bias:
            shapes |= {"bias_ih": (gates,), "bias_hh": (gates,)}
        if self.proj_size:
            shapes["weight_hr"] = (self.proj_size, self.hidden_size)
        return {name + suffix: shape for name, shape in shapes.items()}

    def _create_weights(self, suffix: str, inputs: int, rngs: nnx.Rngs) -> None:
        """Every parameter from U(-1/sqrt(H), 1/sqrt(H)), as PyTorch's."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for name, shape in self._shapes(suffix, inputs).items():
            value = jax.random.uniform(rngs.params(), shape, self.param_dtype, -bound, bound)
            setattr(self, name, nnx.Param(value))

    def _weights(self, suffix: str, inputs: int) -> Weights:
        """The parameters as they are, in the form of the functional core."""
        found: dict[str, Any] = {}
        for name, shape in self._shapes(suffix, inputs).items():
            param = getattr(self, name, None)
            found[name.removesuffix(suffix)] = None if param is None else param[...]
            if param is not None and param.shape != shape:
                raise checks.InputError(
                    f"`{self._name}` needs {name} of shape {shape}, got {tuple(param.shape)}."
                )
        return Weights(
            ih=found["weight_ih"],
            hh=found["weight_hh"],
            b_ih=found.get("bias_ih"),
            b_hh=found.get("bias_hh"),
            hr=found.get("weight_hr"),
        )

    def _compute_dtype(self, x: Array, weight: nnx.Param) -> jnp.dtype:
        """The dtype to compute in: `dtype`, or that of inputs and weights alike."""
        name = type(self).__name__
        if self.dtype is None:
            checks.dtype(name, x, weight.dtype)
            return x.dtype
        checks.convertible(name, x, "inputs")
        return jnp.dtype(self.dtype)

    def _check_state_dtypes(
        self, name: str, arrays: tuple[Array, ...], names: tuple[str, ...], dtype: jnp.dtype
    ) -> None:
        allowed = (dtype, carry_dtype(dtype)) if self.dtype is None else None
        checks.state_dtypes(name, arrays, names, allowed)

    @property
    def _name(self) -> str:
        """The module in messages."""
        return f"{type(self).__name__}(input_size={self.input_size})"


def cast_weights(weights: Weights, dtype: DTypeLike) -> Weights:
    """The products' operands in `dtype`; biases join the sums as they are."""
    return weights._replace(
        ih=weights.ih.astype(dtype),
        hh=None if weights.hh is None else weights.hh.astype(dtype),
        hr=None if weights.hr is None else weights.hr.astype(dtype),
    )


def carry_dtype(dtype: DTypeLike) -> jnp.dtype:
    """States and sums are kept in at least float32."""
    return jnp.dtype(jnp.float32 if dtype in _LOW_PRECISION else dtype)


def rnn_cell(nonlinearity: str) -> Cell:
    return cells.rnn_tanh if nonlinearity == "tanh" else cells.rnn_relu


def as_state(states: tuple[Array, ...]) -> Any:
    """One state as it is, several as a tuple: PyTorch's `h_n` and `(h_n, c_n)`."""
    return states[0] if len(states) == 1 else states


_INNER = tuple(str(folder) for folder in (Path(__file__).parents[1], Path(flax.__file__).parent))


def warn(message: str) -> None:
    """Warns at the first line outside of this package and Flax: the user's.

    `warnings.warn` has `skip_file_prefixes` for that from Python 3.12 on.
    """
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INNER):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
