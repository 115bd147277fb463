"""The common part of layers and cells: parameters, dtypes, and the form of the state."""

import functools
import inspect
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import flax
import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jax.typing import DTypeLike

from jaxrnn import cells, checks
from jaxrnn.cells import Cell, Weights
from jaxrnn.modules.initialise import PYTORCH, Initialisers

_LOW_PRECISION = (jnp.bfloat16, jnp.float16)

State = TypeVar("State")
"""A module's state: an array, or for the LSTM a pair."""


class _Signature:
    """The signature of the constructor, which Flax's metaclass hides from `inspect` and `help`."""

    def __get__(self, instance: Any, owner: Any) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("__signature__")  # an instance has that of its `__call__`
        return inspect.Signature(_parameters(owner.__mro__))


def _parameters(classes: tuple[type, ...]) -> list[inspect.Parameter]:
    """The parameters of the first class's constructor, those that it hands on written out."""
    _, *own = inspect.signature(classes[0].__init__).parameters.values()  # type: ignore[misc]
    if not own or own[-1].kind is not inspect.Parameter.VAR_KEYWORD:
        return own
    above = next((k for k, c in enumerate(classes) if k and "__init__" in vars(c)), 0)
    if not above or classes[above] is object:
        return own
    handed_on = [p for p in _parameters(classes[above:]) if p.kind is p.KEYWORD_ONLY]
    return own[:-1] + [p for p in handed_on if p.name not in {q.name for q in own}]


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
    cell: Cell

    def _shapes(self, suffix: str, inputs: int) -> dict[str, tuple[int, ...]]:
        """The parameters of one layer in one direction, in the order of their creation."""
        gates = self.cell.gates * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (gates, inputs)}
        if self.cell.recurrent:
            shapes["weight_hh"] = (gates, self.proj_size or self.hidden_size)
        if self.bias:
            shapes["bias_ih"] = (gates,)
        if self.bias and self.cell.recurrent:
            shapes["bias_hh"] = (gates,)
        if self.proj_size:
            shapes["weight_hr"] = (self.proj_size, self.hidden_size)
        return {name + suffix: shape for name, shape in shapes.items()}

    def _create_weights(
        self,
        suffix: str,
        inputs: int,
        rngs: nnx.Rngs,
        initialisers: Initialisers = PYTORCH,
        metadata: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    ) -> None:
        """The parameters of one layer in one direction, the cell's own last."""
        for name, shape in self._shapes(suffix, inputs).items():
            kind = name.removesuffix(suffix)
            value = initialisers.draw(
                kind, shape, self.cell, self.hidden_size, rngs, self.param_dtype
            )
            setattr(self, name, nnx.Param(value, **metadata.get(kind, {})))
        own = own_parameters(self.cell, self.hidden_size)
        if own.shapes and self.cell.init is not None:
            values = self.cell.init(rngs.params(), self.hidden_size, self.param_dtype)
            for name, value in zip(own.shapes, jax.tree.leaves(values), strict=True):
                setattr(self, name + suffix, nnx.Param(value))

    def _weights(self, suffix: str, inputs: int) -> Weights:
        """The parameters as they are, in the form of the functional core."""
        found: dict[str, Any] = {}
        own = own_parameters(self.cell, self.hidden_size)
        shapes = self._shapes(suffix, inputs)
        states = [name + suffix for name in state_names(self.cell)]
        learned = getattr(self, states[0], None) is not None
        for name, shape in (shapes | {n + suffix: s for n, s in own.shapes.items()}).items():
            param = getattr(self, name, None)
            found[name.removesuffix(suffix)] = None if param is None else param[...]
            if param is not None and param.shape != shape:
                raise checks.InputError(
                    f"`{self._name}` needs {name} of shape {shape}, got {tuple(param.shape)}."
                )
        return Weights(
            ih=found["weight_ih"],
            hh=found["weight_hh"] if self.cell.recurrent else None,
            b_ih=found.get("bias_ih"),
            b_hh=found.get("bias_hh"),
            hr=found.get("weight_hr"),
            initial=tuple(getattr(self, name)[...] for name in states) if learned else None,
            cell=jax.tree.unflatten(own.structure, [found[name] for name in own.shapes]),
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
        """Name of the module in error messages."""
        return f"{type(self).__name__}(input_size={self.input_size})"


class Own(NamedTuple):
    """The cell's own parameters: their shapes by name, and the pytree that they make."""

    shapes: dict[str, tuple[int, ...]]
    structure: Any


@functools.lru_cache
def own_parameters(cell: Cell, hidden_size: int) -> Own:
    """The parameters that `cell.init` makes, named by the keys of its pytree, joined by "_".

    A pytree that is one array makes a parameter called `cell`.
    """
    init = cell.init
    if init is None:
        return Own({}, jax.tree.structure(()))
    made = jax.eval_shape(lambda: init(jax.random.key(0), hidden_size, jnp.float32))
    leaves, structure = jax.tree.flatten_with_path(made)
    return Own({_name(path): leaf.shape for path, leaf in leaves}, structure)


def _name(path: Any) -> str:
    parts = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", None))) for k in path)
    return "_".join(map(str, parts)) or "cell"


def cast_weights(weights: Weights, dtype: DTypeLike) -> Weights:
    """The products' operands in `dtype`, the cell's own parameters in the carry's dtype.

    Biases join the sums as they are.
    """
    wide = carry_dtype(dtype)
    return weights._replace(
        cell=jax.tree.map(
            lambda a: a.astype(wide) if jnp.issubdtype(a.dtype, jnp.floating) else a, weights.cell
        ),
        ih=weights.ih.astype(dtype),
        hh=None if weights.hh is None else weights.hh.astype(dtype),
        hr=None if weights.hr is None else weights.hr.astype(dtype),
    )


def carry_dtype(dtype: DTypeLike) -> jnp.dtype:
    """States and sums are kept in at least float32."""
    return jnp.dtype(jnp.float32 if dtype in _LOW_PRECISION else dtype)


def rnn_cell(nonlinearity: str) -> Cell:
    return cells.rnn_tanh if nonlinearity == "tanh" else cells.rnn_relu


def state_names(cell: Cell) -> tuple[str, ...]:
    """h_0, c_0 and what follows, in PyTorch's way of naming initial states."""
    letters = ("h", "c", "n", "m")
    return tuple(
        f"{letters[k]}_0" if k < len(letters) else f"state_{k}_0" for k in range(cell.states)
    )


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
