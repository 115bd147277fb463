"""Initial values of a layer's parameters, by Flax's initialisers or as PyTorch draws them."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxrnn.cells import Cell

Initializer: TypeAlias = Callable[..., Any]
"""Flax's and JAX's: `init(key, shape, dtype)`, with the inputs of a matrix in the axis before its
outputs."""


class Initialisers(NamedTuple):
    """Initializers of the parameters; None stands for PyTorch's U(-1/sqrt(H), 1/sqrt(H))."""

    kernel: Initializer | None = None
    recurrent: Initializer | None = None
    bias: Initializer | None = None
    forget_bias: float | None = None

    def check(self, name: str, cell: Cell, bias: bool) -> None:
        """Raise ValueError or TypeError for what the cell has no place for."""
        given = {"kernel_init": self.kernel, "recurrent_init": self.recurrent}
        for key, value in (given | {"bias_init": self.bias}).items():
            if value is not None and not callable(value):
                raise TypeError(
                    f"`{name}({key}=...)` needs an initialiser, such as "
                    f"`nnx.initializers.orthogonal()`, got {value!r}."
                )
        if self.recurrent is not None and not cell.recurrent:
            raise ValueError(
                f"`{name}(recurrent_init=...)` has nothing to initialise: the layer multiplies no "
                f"h for the cell {cell.name!r}. Its own parameters start as `Cell.init` says."
            )
        if self.forget_bias is not None and (cell.forget is None or not bias):
            why = "bias=False" if not bias else f"the cell {cell.name!r}, which has no forget gate"
            raise ValueError(f"`{name}(forget_bias=...)` is impossible with {why}.")

    def draw(
        self, name: str, shape: tuple[int, ...], cell: Cell, hidden: int, rngs: nnx.Rngs, dtype: Any
    ) -> Array:
        """The value of one parameter; `name` is without the layer's suffix."""
        init = {
            "weight_ih": self.kernel,
            "weight_hr": self.kernel,
            "weight_hh": self.recurrent,
        }.get(name, self.bias)
        key = rngs.params()
        if init is None:
            bound = 1.0 / math.sqrt(hidden)
            value = jax.random.uniform(key, shape, dtype, -bound, bound)
        elif len(shape) == 1:
            value = init(key, shape, dtype)
        else:
            gates = 1 if name == "weight_hr" else cell.gates
            rows, columns = shape[0] // gates, shape[1]
            parts = [init(k, (columns, rows), dtype).T for k in jax.random.split(key, gates)]
            value = jnp.concatenate(parts)
        if self.forget_bias is not None and cell.forget is not None and len(shape) == 1:
            # b_ih and b_hh are added: the whole of it stands in b_ih.
            part = slice(cell.forget * hidden, (cell.forget + 1) * hidden)
            value = value.at[part].set(self.forget_bias if name == "bias_ih" else 0.0)
        return value


PYTORCH = Initialisers()
