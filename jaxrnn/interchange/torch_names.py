"""PyTorch's names for the parameters of an nnx module or state.

The names and layouts come from the table in `flax_layers`.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from flax import nnx

from jaxrnn.interchange import weight_norm
from jaxrnn.interchange.entry import Entry, Path, identity, is_array, is_held
from jaxrnn.interchange.flax_layers import BY_SETTINGS, FIXED, Refused, Rule
from jaxrnn.interchange.layouts import SAME

_CONTAINERS = {nnx.Module, nnx.List, nnx.Dict, nnx.Sequential}
_UNNAMED = (nnx.RngState, nnx.Intermediate, nnx.Cache)


def entries(root: nnx.Module | Any) -> list[Entry]:
    """All names under a module or state, each once, in the order of the attributes.

    Raises:
        ValueError: for a layer that cannot be translated, two parameters with one name, ...
    """
    found = list(_walk(root, (), "", ()))
    if any(is_held(leaf) for entry in found for leaf in entry.leaves):
        found = [e for e in found if is_held(e.leaves[0]) or e.ignored_on_load]
    for name, count in Counter(entry.name for entry in found).items():
        if count > 1:
            raise ValueError(f"`{name}` would name two parameters: rename one attribute.")
    if isinstance(root, nnx.Module):
        leaves = {id(leaf) for entry in found for leaf in entry.leaves}
        for path, leaf in nnx.iter_graph(root):
            if _is_named(leaf) and id(leaf) not in leaves:
                where = ".".join(map(str, path))
                raise ValueError(f"`{where}` is inside an object that has no name in PyTorch.")
    return found


def entries_like(module: nnx.Module, state: Any) -> list[Entry]:
    """Names of a state's arrays, by the types of the module that the state belongs to.

    Raises:
        ValueError: as `entries`; for names that the module lacks; for only some of the arrays that
            form one parameter in PyTorch.
    """
    leaves = dict(nnx.to_flat_state(state))
    model = entries(module)
    known = {path for entry in model for path in entry.paths}
    for path, leaf in leaves.items():
        if path not in known and _is_named(leaf):
            where = ".".join(map(str, path))
            raise ValueError(f"The state holds `{where}`, which the module given as `like` lacks.")
    # By identity: a state holds a shared parameter once, under any of its names.
    found = {
        identity(leaf): leaves[path]
        for entry in model
        for path, leaf in zip(entry.paths, entry.leaves, strict=True)
        if path in leaves
    }
    result = []
    for entry in model:
        present = [found[identity(leaf)] for leaf in entry.leaves if identity(leaf) in found]
        if len(present) == len(entry.leaves):
            typed = entry._replace(leaves=tuple(present))
            typed.check_rank(entry.name)
            result.append(typed)
        elif present:
            raise ValueError(
                f"The state holds {len(present)} of the {len(entry.leaves)} parameters that make "
                f"`{entry.name}` in PyTorch: give all of them."
            )
        elif entry.ignored_on_load and (*entry.paths[0][:-1], "mean") in leaves:
            result.append(entry)
    return result


def _walk(node: Any, path: Path, name: str, above: tuple[Any, ...]) -> Iterator[Entry]:
    """Entries under a node that PyTorch calls `name`; `above` are its enclosing nodes."""
    if any(node is other for other in above):
        raise ValueError(f"`{name}` contains itself, so its parameters have no names in PyTorch.")
    if isinstance(node, nnx.WeightNorm):
        inner = (*path, "layer_instance")
        for entry in _walk(node.layer_instance, inner, name, (*above, node)):
            yield from weight_norm.split(node, name, inner, entry)
        return
    layer, rules = _guess(node, name) if isinstance(node, nnx.State) else _layer(node, name)
    prefix = name and name + "."
    for key, child in _children(node):
        where, attribute = (*path, key), prefix + str(key)
        ruled = [rule for rule in rules if rule.paths[0][0] == key]
        if ruled or any(part[0] == key for rule in rules for part in rule.paths):
            for rule in ruled:
                yield from _ruled(node, layer, rule, path, prefix)
        elif isinstance(child, nnx.Pytree | nnx.State | list | tuple | dict):
            unnamed = isinstance(node, nnx.Sequential) and key == "layers"
            yield from _walk(child, where, name if unnamed else attribute, (*above, node))
        elif _is_leaf(child, node):
            yield _checked(Entry(attribute, (where,), (child,), SAME), attribute)
    if layer is nnx.BatchNorm:
        counter = "num_batches_tracked"
        place = (*path, counter)
        yield Entry(prefix + counter, (place,), (np.int64(0),), SAME, ignored_on_load=True)


def _ruled(node: Any, layer: Any, rule: Rule, path: Path, prefix: str) -> Iterator[Entry]:
    """Entry of one rule, if its attributes hold values."""
    leaves = [_get(node, inner) for inner in rule.paths]
    if all(_is_leaf(leaf, node) for leaf in leaves):
        first = rule.paths[0]
        entry = Entry(
            prefix + rule.name,
            tuple((*path, *inner) for inner in rule.paths),
            tuple(leaves),
            rule.layout,
            part=f"{first[-1]} of an nnx.{layer.__name__}",
            rank=rule.rank,
        )
        yield _checked(entry, prefix + ".".join(first))


def _checked(entry: Entry, attribute: str) -> Entry:
    for value in entry.values:
        if not is_array(value):
            kind = type(value).__name__
            raise ValueError(f"`{attribute}` holds a {kind}, not an array.")
    entry.check_rank(attribute)
    return entry


def _get(node: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        node = node[key] if isinstance(node, nnx.State) else getattr(node, key)
    return node


def _children(node: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(node, nnx.List | list | tuple):
        yield from enumerate(node)
    elif isinstance(node, nnx.Dict | nnx.State | dict):
        yield from node.items()
    else:
        yield from ((k, v) for k, v in vars(node).items() if not k.startswith("_pytree__"))


def _layer(node: Any, name: str) -> tuple[type | None, tuple[Rule, ...]]:
    """Flax layer type of a module (its own type or a base class), and the rules for it."""
    for cls in type(node).__mro__:
        where = f"`{name}` is an" if name else "This is an"
        try:
            if cls in BY_SETTINGS:
                return cls, BY_SETTINGS[cls](node)
        except Refused as clause:
            raise ValueError(f"{where} `nnx.{cls.__name__}`{clause}") from None
        if cls in FIXED:
            return cls, FIXED[cls]
        if cls in _CONTAINERS or not issubclass(cls, nnx.Module):
            continue
        if cls.__module__.startswith("flax.") and any(
            _is_named(v) for _, v in nnx.iter_graph(node)
        ):
            advice = "jaxrnn's own" if cls.__module__.endswith("recurrent") else "another layer"
            raise ValueError(
                f"{where} `nnx.{cls.__name__}`, which cannot be translated to PyTorch's names and "
                f"layouts. Use {advice}, or keep the parameters in a module of your own."
            )
    return None, ()


def _guess(group: Any, name: str) -> tuple[type | None, tuple[Rule, ...]]:
    """Flax layer type of a group of parameters, guessed from names and dimensions."""
    layer = _guessed_type(group, name)
    return layer, () if layer is None else FIXED[layer]


def _guessed_type(group: Any, name: str) -> type | None:
    names = set(group)
    where = f"under `{name}`" if name else "at the top"
    if any(isinstance(child, nnx.State) for child in group.values()):
        if names == {"layers"} and all(isinstance(key, int) for key in group["layers"]):
            raise ValueError(
                f"The state has nothing but `layers` {where}, so it may be an nnx.Sequential, "
                "whose names PyTorch shortens. Pass the module: `state_dict(state, like=module)`."
            )
        return None
    if "kernel" in names <= {"kernel", "bias"}:
        dimensions = len(group["kernel"].shape)
        if dimensions < 2 or ("bias" in names and len(group["bias"].shape) != 1):
            raise ValueError(
                f"The state does not say to which layer the `kernel` {where} belongs. "
                "Pass the module: `state_dict(state, like=module)`."
            )
        return nnx.Linear if dimensions == 2 else nnx.Conv
    if {"mean", "var"} <= names <= {"mean", "var", "scale", "bias"}:
        return nnx.BatchNorm
    if names == {"embedding"}:
        return nnx.Embed
    if names == {"negative_slope"}:
        return nnx.PReLU
    return nnx.LayerNorm if "scale" in names <= {"scale", "bias"} else None


def _is_named(leaf: Any) -> bool:
    if not isinstance(leaf, nnx.Variable) or isinstance(leaf, _UNNAMED):
        return False
    return leaf.get_value() is not None


def _is_leaf(leaf: Any, node: Any) -> bool:
    """A variable with a name or, in a state, an array."""
    bare = is_array(leaf) and not isinstance(leaf, nnx.Variable)
    return _is_named(leaf) or (isinstance(node, nnx.State) and bare)
