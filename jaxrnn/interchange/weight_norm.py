"""Translation of `nnx.WeightNorm` to PyTorch's `weight_norm`: w = g v / |v|, two parameters.

The names are those of the older `torch.nn.utils.weight_norm`, `weight_g` and `weight_v`, because
both styles of PyTorch load them. Loading also accepts the names of the newer style,
`parametrizations.weight.original0` and `original1`.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from flax import nnx

from jaxrnn.interchange.entry import Entry, Slot
from jaxrnn.interchange.layouts import Layout, Shape


def split(node: nnx.WeightNorm, name: str, path: tuple, entry: Entry) -> Iterator[Entry]:
    """Entries for one parameter of the wrapped layer: itself, or g and v.

    Args:
        node: the wrapper.
        name: PyTorch's name of the wrapper.
        path: path from the root to the wrapped layer.
        entry: a parameter of the wrapped layer.

    Raises:
        ValueError: for a setting that PyTorch's `weight_norm` lacks.
    """
    keys = [inner[len(path) :] for inner in entry.paths]
    if entry.ignored_on_load or not any(
        isinstance(leaf, nnx.Param) and node.variable_filter(key, leaf)
        for key, leaf in zip(keys, entry.leaves, strict=True)
    ):
        yield entry
        return
    ndim = entry.values[0].ndim
    axes = {axis % ndim for axis in _axes(node)}
    if not node.use_scale or len(axes) > 1 or len(keys) > 1:
        where = f"`{name}` is an" if name else "This is an"
        raise ValueError(
            f"{where} `nnx.WeightNorm` of `{entry.name}` that PyTorch lacks: its weight_norm has "
            "use_scale=True and one axis in feature_axes (or None), on one parameter."
        )
    prefix, _, attribute = entry.name.rpartition(".")
    stem = (prefix and prefix + ".") + f"parametrizations.{attribute}.original"
    scales: Any = node.scales
    scale = scales[keys[0]]
    yield Entry(
        f"{entry.name}_g",
        ((*path[:-1], "scales", keys[0]),),
        (scale if isinstance(scale, nnx.Variable) else Slot(scales, keys[0]),),
        _gain(entry.layout, ndim, axes),
        (stem + "0",),
        "scale of an nnx.WeightNorm",
        len(axes),
    )
    yield entry._replace(name=f"{entry.name}_v", aliases=(stem + "1",))


def _axes(node: nnx.WeightNorm) -> Sequence[int]:
    axes = node.feature_axes
    return (axes,) if isinstance(axes, int) else tuple(axes or ())


def _gain(layout: Layout, ndim: int, axes: set[int]) -> Layout:
    """Layout between Flax's vector of scales and PyTorch's g with v's dimensions."""

    def to_torch(scale: Any) -> Any:
        if not axes:
            return scale
        return layout.to_torch(scale.reshape([-1 if i in axes else 1 for i in range(ndim)]))

    def from_torch(array: Any, shapes: Sequence[Shape]) -> Sequence[Any]:
        size = math.prod(shapes[0])
        full = [tuple(size if i in axes else 1 for i in range(ndim))]
        parts = layout.from_torch(array, full) if axes else [array]
        return [parts[0].reshape(shapes[0])]

    return Layout(to_torch, from_torch)
