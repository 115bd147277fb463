"""Refusal of a constructor's arguments, with PyTorch's phrase where PyTorch has one."""

import numbers
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jaxrnn.cells import Carry, Cell, advance
from jaxrnn.modules.noise import Rates
from jaxrnn.modules.options import Options


def options(name: str, given: Mapping[str, Any]) -> None:
    """Refuse wrong or missing `Options` in the name of the class that was called."""
    unknown = [key for key in given if key not in Options.__annotations__]
    if unknown:
        raise TypeError(f"{name}.__init__() got an unexpected keyword argument {unknown[0]!r}")
    for key in Options.__required_keys__ - given.keys():
        raise TypeError(f"{name}.__init__() missing 1 required keyword-only argument: {key!r}")


def constructor(
    name: str,
    *,
    input_size: int,
    hidden_size: int,
    num_layers: int = 1,
    bias: bool = True,
    batch_first: bool = False,
    dropout: float = 0.0,
    bidirectional: bool = False,
    proj_size: int = 0,
) -> None:
    """Refuse constructor arguments that `nn.RNNBase` refuses, and some that it does not check."""
    sizes = {
        "input_size": input_size,
        "hidden_size": hidden_size,
        "num_layers": num_layers,
        "proj_size": proj_size,
    }
    flags = {"bias": bias, "batch_first": batch_first, "bidirectional": bidirectional}
    real = isinstance(dropout, numbers.Real) and not isinstance(dropout, bool)
    if not real or not 0 <= dropout <= 1:
        raise ValueError(
            "dropout should be a number in range [0, 1] representing the probability of an "
            f"element being zeroed: `{name}(dropout={dropout!r})`."
        )
    for key, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(
                f"{key} should be of type bool, got: {type(flag).__name__} "
                f"in `{name}({key}={flag!r})`."
            )
    for key, number in sizes.items():
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(
                f"{key} should be of type int, got: {type(number).__name__} "
                f"in `{name}({key}={number!r})`."
            )
    for key in ("input_size", "hidden_size", "num_layers"):
        if sizes[key] <= 0:
            raise ValueError(f"{key} must be greater than zero: `{name}({key}={sizes[key]})`.")
    if proj_size < 0:
        raise ValueError(
            "proj_size should be a positive integer or zero to disable projections: "
            f"`{name}(proj_size={proj_size})`."
        )
    if proj_size >= hidden_size:
        raise ValueError(
            "proj_size has to be smaller than hidden_size: "
            f"`{name}(hidden_size={hidden_size}, proj_size={proj_size})`."
        )


def dtypes(name: str, dtype: Any, param_dtype: Any) -> None:
    """The dtypes of computation and of parameters: real floating ones."""
    for key, value in (("dtype", dtype), ("param_dtype", param_dtype)):
        if value is None and key == "dtype":
            continue
        if not jnp.issubdtype(value, jnp.floating):
            raise TypeError(f"`{name}({key}=...)` needs a floating dtype, got {jnp.dtype(value)}.")


def nonlinearity(name: str, value: Any) -> None:
    if value not in ("tanh", "relu"):
        raise ValueError(
            f"Unknown nonlinearity '{value}'. Select from 'tanh' or 'relu': "
            f"`{name}(nonlinearity={value!r})`."
        )


def projectable(name: str, cell: Cell, hidden_size: int, proj_size: int) -> None:
    """A projected h has another size than the units, so the step must not use it itself."""
    if not isinstance(cell, Cell):
        raise TypeError(f"`{name}(cell=...)` needs a cell, such as `cells.lstm`, got {cell!r}.")
    if not proj_size:
        return
    features = jax.ShapeDtypeStruct((1, cell.gates * hidden_size), jnp.float32)
    units = jax.ShapeDtypeStruct((1, hidden_size), jnp.float32)
    carry = (jax.ShapeDtypeStruct((1, proj_size), jnp.float32), *(units,) * (cell.states - 1))

    def step(carry: Carry, gx: Array, gh: Array) -> Carry:
        init = cell.init
        params = () if init is None else init(jax.random.key(0), hidden_size, jnp.float32)
        return advance(cell, params, carry, gx, gh)

    try:
        with jax.numpy_rank_promotion("allow"):
            made = jax.eval_shape(step, carry, features, features)
        fits = all(a.shape == units.shape for a in made)
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(
            f"proj_size must be 0 for a cell that uses h itself, and {cell.name!r} does: "
            f"`{name}(proj_size={proj_size!r})`."
        )


def initial_state(name: str, value: Any) -> None:
    if value not in ("zeros", "learned"):
        raise ValueError(f"`{name}(initial_state={value!r})` must be 'zeros' or 'learned'.")


def rates(
    name: str,
    cell: Cell,
    proj_size: int,
    *,
    between: float,
    zoneout: Any,
    variational: bool,
    **dropouts: float,
) -> Rates:
    """The probabilities of everything random, of the right number and in range."""
    each = tuple(zoneout) if isinstance(zoneout, list | tuple) else (zoneout,)
    if len(each) not in (1, cell.states):
        raise ValueError(
            f"`{name}(zoneout=...)` needs one number, for h, or one for each of the "
            f"{cell.states} states of the cell {cell.name!r}, got {zoneout!r}."
        )
    for key, value in (*dropouts.items(), *(("zoneout", rate) for rate in each)):
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not real or not 0 <= value <= 1:
            raise ValueError(f"`{name}({key}={value!r})` needs a probability in [0, 1].")
    if not isinstance(variational, bool):
        raise TypeError(f"`{name}(variational={variational!r})` needs a bool.")
    for key in ("recurrent_dropout", "weight_dropout"):
        if dropouts[key] and not cell.recurrent:
            raise ValueError(
                f"`{name}({key}={dropouts[key]!r})` needs W_hh, which the cell {cell.name!r} does "
                "not have."
            )
    if each[0] and proj_size:
        raise ValueError(
            f"`{name}(zoneout={zoneout!r}, proj_size={proj_size})`: with `proj_size` the zoneout "
            "of h must be 0."
        )
    every = tuple(map(float, each)) + (0.0,) * (cell.states - len(each))
    return Rates(
        between=float(between),
        input=float(dropouts["input_dropout"]),
        recurrent=float(dropouts["recurrent_dropout"]),
        weight=float(dropouts["weight_dropout"]),
        zoneout=every if any(every) else (),
        variational=variational,
    )


def no_projection(name: str, proj_size: int) -> None:
    """Only the LSTM has projections."""
    if proj_size:
        raise ValueError(
            "proj_size argument is only supported for LSTM, not RNN or GRU: "
            f"`{name}(proj_size={proj_size!r})`."
        )


def rngs(name: str, value: Any) -> None:
    """The source of the initial parameters."""
    if not isinstance(value, nnx.Rngs):
        raise TypeError(
            f"`{name}(rngs=...)` needs an `nnx.Rngs`, such as `rngs=nnx.Rngs(0)`, got {value!r}."
        )
