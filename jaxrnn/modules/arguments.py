"""Refusal of a constructor's arguments, with PyTorch's phrase where PyTorch has one."""

import numbers
from typing import Any

import jax.numpy as jnp
from flax import nnx


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
    """Refuses constructor arguments as PyTorch's `nn.RNNBase` does, and what it forgets to."""
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
