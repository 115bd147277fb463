"""Argument checks, with errors that say what to pass instead."""

import os
from collections.abc import Mapping
from typing import Any

from flax import nnx


def check_module(module: Any) -> nnx.Module:
    if isinstance(module, nnx.Module):
        return module
    advice = ""
    if callable(getattr(module, "load_state_dict", None)):
        advice = " A module of PyTorch has a `state_dict` and a `load_state_dict` of its own."
    kind = type(module).__name__
    raise TypeError(f"An nnx.Module is needed (or its gradient), got {kind}.{advice}")


def check_mapping(module: Any, mapping: Any) -> None:
    call = "`load_state_dict(module, mapping)`"
    if isinstance(mapping, nnx.Module) and not isinstance(module, nnx.Module):
        raise TypeError(f"{call}: the arguments are swapped, the module comes first.")
    check_module(module)
    if isinstance(mapping, nnx.State):
        raise TypeError(
            f"{call} needs PyTorch's names and layouts, got an nnx.State, which has Flax's: "
            "`nnx.update(module, state)` loads it."
        )
    if isinstance(mapping, Mapping):
        return
    if isinstance(mapping, nnx.Module):
        advice = "Pass `jaxrnn.state_dict` of it."
    elif callable(getattr(mapping, "state_dict", None)):
        advice = "Pass its `state_dict()`."
    elif isinstance(mapping, str | bytes | os.PathLike):
        advice = "Pass what `torch.load(path, weights_only=True)` returns."
        if os.fsdecode(mapping).endswith(".safetensors"):
            advice = "Read the file by `load_safetensors(module, path)`."
    else:
        advice = "A model's mapping is its `state_dict()`."
    kind = type(mapping).__name__
    raise TypeError(f"{call} needs a mapping of names to arrays, got {kind}. {advice}")


def check_path(function: str, module: Any, path: Any) -> None:
    call = f"`{function}(module, path)`"
    if isinstance(path, nnx.Module) and not isinstance(module, nnx.Module):
        raise TypeError(f"{call}: the arguments are swapped, the module comes first.")
    check_module(module)
    if not isinstance(path, str | bytes | os.PathLike):
        advice = "Arrays by name are loaded by `load_state_dict`."
        if not isinstance(path, Mapping):
            advice = "Open files and file descriptors are not supported."
        raise TypeError(f"{call} needs a path, got {type(path).__name__}. {advice}")
