"""Which names PyTorch gives to the parameters of an nnx module, and in which layout.

`RULES` is the one table that drives both directions; `entries` applies it to a module or a state.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from flax import nnx

Path: TypeAlias = tuple[str | int, ...]


def _same(array: Any) -> Any:
    return array


def _swap_last_two(array: Any) -> Any:
    return array.swapaxes(-1, -2)


def _channels_first(kernel: Any) -> Any:
    n = kernel.ndim
    return kernel.transpose(n - 1, n - 2, *range(n - 2))


def _channels_last(weight: Any) -> Any:
    return weight.transpose(*range(2, weight.ndim), 1, 0)


class Rule(NamedTuple):
    """`layer.attribute` in Flax is `name` in PyTorch; two functions on arrays change the layout."""

    layer: type[nnx.Module]
    attribute: str
    name: str
    to_torch: Callable[[Any], Any] = _same
    from_torch: Callable[[Any], Any] = _same


RULES = [
    Rule(nnx.Linear, "kernel", "weight", _swap_last_two, _swap_last_two),
    Rule(nnx.Conv, "kernel", "weight", _channels_first, _channels_last),
    Rule(nnx.Embed, "embedding", "weight"),
    Rule(nnx.LayerNorm, "scale", "weight"),
    Rule(nnx.RMSNorm, "scale", "weight"),
    Rule(nnx.GroupNorm, "scale", "weight"),
    Rule(nnx.BatchNorm, "scale", "weight"),
    Rule(nnx.BatchNorm, "mean", "running_mean"),
    Rule(nnx.BatchNorm, "var", "running_var"),
]
"""What PyTorch names or lays out otherwise. Other attributes of these layers keep their names."""

_RULES: dict[Any, Rule] = {(rule.layer, rule.attribute): rule for rule in RULES}
_LAYERS = {rule.layer for rule in RULES}
_CONTAINERS = {nnx.Module, nnx.List, nnx.Dict, nnx.Sequential}
_UNNAMED = (nnx.RngState, nnx.Intermediate, nnx.Cache)


class Entry(NamedTuple):
    """One of PyTorch's names, and what stands behind it in Flax.

    `path` leads from the root to `leaf`, a variable or, in a state that has none, an array.
    """

    name: str
    path: Path
    leaf: Any
    rule: Rule
    ignored_on_load: bool = False

    @property
    def value(self) -> Any:
        return self.leaf.get_value() if isinstance(self.leaf, nnx.Variable) else self.leaf

    @property
    def shape(self) -> tuple[int, ...]:
        """In PyTorch's layout."""
        return self.rule.to_torch(np.broadcast_to(np.int8(0), self.value.shape)).shape


def entries(root: nnx.Module | Any) -> list[Entry]:
    """All names under a module or state, each once, in the order of the attributes.

    Raises:
        ValueError: a layer that cannot be translated, two parameters of one name, ...
    """
    found = list(_walk(root, (), "", ()))
    if any(isinstance(entry.leaf, nnx.Variable) for entry in found):
        found = [e for e in found if isinstance(e.leaf, nnx.Variable) or e.ignored_on_load]
    for name, count in Counter(entry.name for entry in found).items():
        if count > 1:
            raise ValueError(f"`{name}` would name two parameters: rename one attribute.")
    if isinstance(root, nnx.Module):
        leaves = {id(entry.leaf) for entry in found}
        for path, leaf in nnx.iter_graph(root):
            if _is_named(leaf) and id(leaf) not in leaves:
                where = ".".join(map(str, path))
                raise ValueError(f"`{where}` is inside an object that PyTorch has no names for.")
    return found


def entries_like(module: nnx.Module, state: Any) -> list[Entry]:
    """The names of a state's arrays, by the types of the module that it belongs to.

    Raises:
        ValueError: as `entries`; the state holds what the module lacks.
    """
    leaves = dict(nnx.to_flat_state(state))
    model = entries(module)
    known = {entry.path for entry in model}
    for path, leaf in leaves.items():
        if path not in known and _is_named(leaf):
            where = ".".join(map(str, path))
            raise ValueError(f"The state holds `{where}`, which the module given as `like` lacks.")
    # By identity: a state holds a shared parameter once, under any of its names.
    found = {id(entry.leaf): leaves[entry.path] for entry in model if entry.path in leaves}
    result = []
    for entry in model:
        if id(entry.leaf) in found:
            typed = entry._replace(leaf=found[id(entry.leaf)])
            if entry.rule.to_torch is _channels_first:
                _check_rank(entry.name, typed.value.ndim, entry.value.ndim)
            result.append(typed)
        elif entry.ignored_on_load and (*entry.path[:-1], "mean") in leaves:
            result.append(entry)
    return result


def is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _walk(node: Any, path: Path, name: str, above: tuple[Any, ...]) -> Iterator[Entry]:
    """The entries under a node that PyTorch calls `name`; `above` are the nodes that hold it."""
    if any(node is other for other in above):
        raise ValueError(f"`{name}` contains itself, and PyTorch has no names for that.")
    layer = _guess(node, name) if isinstance(node, nnx.State) else _layer(node, name)
    prefix = name and name + "."
    for key, child in _children(node):
        where, attribute = (*path, key), prefix + str(key)
        if isinstance(child, nnx.Pytree | nnx.State | list | tuple | dict):
            unnamed = isinstance(node, nnx.Sequential) and key == "layers"
            yield from _walk(child, where, name if unnamed else attribute, (*above, node))
        elif _is_named(child) or (isinstance(node, nnx.State) and _is_bare(child)):
            rule = _RULES.get((layer, key), Rule(nnx.Module, str(key), str(key)))
            entry = Entry(prefix + rule.name, where, child, rule)
            if not is_array(entry.value):
                kind = type(entry.value).__name__
                raise ValueError(f"`{attribute}` holds a {kind}, not an array.")
            if layer is nnx.Conv and key == "kernel" and isinstance(node, nnx.Conv):
                _check_rank(attribute, entry.value.ndim, len(node.kernel_size) + 2)
            yield entry
    if layer is nnx.BatchNorm:
        rule = Rule(layer, "", "num_batches_tracked")
        yield Entry(prefix + rule.name, (*path, rule.name), np.int64(0), rule, True)


def _children(node: Any) -> Iterator[tuple[str | int, Any]]:
    if isinstance(node, nnx.List | list | tuple):
        yield from enumerate(node)
    elif isinstance(node, nnx.Dict | nnx.State | dict):
        yield from node.items()
    else:
        yield from ((k, v) for k, v in vars(node).items() if not k.startswith("_pytree__"))


def _layer(node: Any, name: str) -> type | None:
    """The layer of Flax whose rules hold for a module: its own type, or the one it derives from."""
    for cls in type(node).__mro__:
        if cls in _LAYERS:
            return cls
        if cls in _CONTAINERS or not issubclass(cls, nnx.Module):
            continue
        if cls.__module__.startswith("flax.") and any(
            _is_named(v) for _, v in nnx.iter_graph(node)
        ):
            advice = "jaxrnn's own" if cls.__module__.endswith("recurrent") else "another layer"
            where = f"`{name}` is an" if name else "This is an"
            raise ValueError(
                f"{where} `nnx.{cls.__name__}`, which cannot be translated to PyTorch's names and "
                f"layouts. Use {advice}, or hold the parameters in a module of your own."
            )
    return None


def _guess(group: Any, name: str) -> type | None:
    """The layer of Flax that a group of parameters is of, by their names and dimensions."""
    names = set(group)
    where = f"under `{name}`" if name else "at the top"
    if any(isinstance(child, nnx.State) for child in group.values()):
        if names == {"layers"} and all(isinstance(key, int) for key in group["layers"]):
            raise ValueError(
                f"The state has nothing but `layers` {where}, so it may be an nnx.Sequential, "
                "whose names PyTorch shortens. Say it by `state_dict(state, like=module)`."
            )
        return None
    if "kernel" in names <= {"kernel", "bias"}:
        dimensions = len(group["kernel"].shape)
        if dimensions < 2 or ("bias" in names and len(group["bias"].shape) != 1):
            raise ValueError(
                f"The state does not say of which layer the `kernel` {where} is. "
                "Say it by `state_dict(state, like=module)`."
            )
        return nnx.Linear if dimensions == 2 else nnx.Conv
    if {"mean", "var"} <= names <= {"mean", "var", "scale", "bias"}:
        return nnx.BatchNorm
    if names == {"embedding"}:
        return nnx.Embed
    return nnx.LayerNorm if "scale" in names <= {"scale", "bias"} else None


def _check_rank(name: str, got: int, needed: int) -> None:
    if got != needed:
        raise ValueError(
            f"`{name}` is the kernel of an nnx.Conv with {needed} dimensions, got {got}: "
            "translate stacked ones one by one."
        )


def _is_named(leaf: Any) -> bool:
    if not isinstance(leaf, nnx.Variable) or isinstance(leaf, _UNNAMED):
        return False
    return leaf.get_value() is not None


def _is_bare(leaf: Any) -> bool:
    return is_array(leaf) and not isinstance(leaf, nnx.Variable)
