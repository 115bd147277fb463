"""Copies of PyTorch modules, including those that `copy.deepcopy` rejects."""

import copy
from collections.abc import Iterable
from typing import Any


def import_torch() -> Any:
    """Imports PyTorch, or raises an error that says how to install it."""
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "`jaxrnn.testing` compares with PyTorch, which is not installed: "
            "`pip install 'jaxrnn[torch]'`."
        ) from error
    return torch


def copied(module: Any) -> Any:
    """A deep copy of a module.

    A tensor computed by autograd (the `weight` of `torch.nn.utils.weight_norm`) is copied detached,
    and the module recomputes it. An attribute that cannot be copied, such as a lock or an open
    file, is shared.
    """
    memo: dict[int, Any] = {}
    for part in module.modules():
        for value in _flat(vars(part)):
            if value.grad_fn is not None:
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(module, dict(memo))
    except Exception:
        return copy.deepcopy(module, memo | _shared(module, memo))


def _flat(value: Any) -> Iterable[Any]:
    """Tensors in a value and in its nested dicts, lists and tuples, but not in modules."""
    if import_torch().is_tensor(value):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _flat(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _flat(item)


def _shared(module: Any, memo: dict[int, Any]) -> dict[int, Any]:
    """Memo entries that map each attribute that cannot be copied to itself."""
    shared = {}
    for part in module.modules():
        for name, value in vars(part).items():
            if name in ("_modules", "_parameters", "_buffers"):
                continue
            try:
                copy.deepcopy(value, dict(memo))
            except Exception:
                shared[id(value)] = value
    return shared
