"""`Entry`: one PyTorch name and the Flax variables that it stands for."""

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from flax import nnx

from jaxrnn.interchange.layouts import Layout

Path: TypeAlias = tuple[Any, ...]


class Slot:
    """A plain array in a dictionary, with the interface of a variable."""

    def __init__(self, holder: dict[Any, Any], key: Any) -> None:
        self.holder, self.key = holder, key

    def get_value(self) -> Any:
        return self.holder[self.key]

    def set_value(self, value: Any) -> None:
        self.holder[self.key] = value


class Entry(NamedTuple):
    """One PyTorch name and the Flax leaves that it stands for.

    Each of `paths` leads from the root to one of `leaves`: a variable, a slot or, in a state
    without variables, an array. `aliases` are other names that PyTorch may use. `part` names the
    attribute and layer of the leaves, each of which has `rank` dimensions if `rank` is given.
    """

    name: str
    paths: tuple[Path, ...]
    leaves: tuple[Any, ...]
    layout: Layout
    aliases: tuple[str, ...] = ()
    part: str = ""
    rank: int | None = None
    ignored_on_load: bool = False

    @property
    def values(self) -> list[Any]:
        return [leaf.get_value() if is_held(leaf) else leaf for leaf in self.leaves]

    @property
    def dtype(self) -> np.dtype:
        return self.values[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in PyTorch's layout."""
        empty = [np.broadcast_to(np.int8(0), value.shape) for value in self.values]
        return self.layout.to_torch(*empty).shape

    def check_rank(self, name: str) -> None:
        for value in self.values:
            if self.rank is not None and value.ndim != self.rank:
                raise ValueError(
                    f"`{name}` is the {self.part} with {self.rank} dimensions, got {value.ndim}: "
                    "translate stacked layers one by one."
                )


def identity(leaf: Any) -> Any:
    """Equal for two leaves that are the same parameter."""
    return (id(leaf.holder), leaf.key) if isinstance(leaf, Slot) else id(leaf)


def is_held(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable | Slot)


def is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")
