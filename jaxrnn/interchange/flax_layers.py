"""Table of Flax layers whose names or layouts differ from PyTorch's.

The row of a layer maps its attributes to PyTorch's parameters and their layouts. Attributes without
a rule keep their names. `BY_SETTINGS` holds functions of the layer, for layers whose translation
depends on their settings or that are unsupported with some settings.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import nnx

from jaxrnn.interchange.layouts import (
    BIASES,
    CONVOLUTION,
    HEADS_TO_MATRIX,
    MATRIX,
    PROJECTIONS,
    SAME,
    TRANSPOSED,
    VECTOR,
    Layout,
)


class Rule(NamedTuple):
    """Attributes of a layer (dotted, separated by spaces) that form PyTorch's parameter `name`.

    If `rank` is given, the attributes must have that number of dimensions: stacks are rejected.
    """

    attributes: str
    name: str
    layout: Layout = SAME
    rank: int | None = None

    @property
    def paths(self) -> list[tuple[str, ...]]:
        return [tuple(attribute.split(".")) for attribute in self.attributes.split()]


class Refused(Exception):
    """Untranslatable layer; the message is a clause that completes "`x` is an `nnx.Layer`"."""


FIXED: dict[type, tuple[Rule, ...]] = {
    nnx.Linear: (Rule("kernel", "weight", MATRIX),),
    nnx.Conv: (Rule("kernel", "weight", CONVOLUTION),),
    nnx.Embed: (Rule("embedding", "weight"),),
    nnx.PReLU: (Rule("negative_slope", "weight", VECTOR),),
    nnx.LayerNorm: (Rule("scale", "weight"),),
    nnx.RMSNorm: (Rule("scale", "weight"),),
    nnx.GroupNorm: (Rule("scale", "weight"),),
    nnx.InstanceNorm: (Rule("scale", "weight"),),
    nnx.BatchNorm: (
        Rule("scale", "weight"),
        Rule("mean", "running_mean"),
        Rule("var", "running_var"),
    ),
}


def _conv(layer: Any) -> tuple[Rule, ...]:
    if layer.mask is not None:
        raise Refused(" with a mask, which PyTorch lacks. Multiply the kernel by the mask instead.")
    return (Rule("kernel", "weight", CONVOLUTION, len(layer.kernel_size) + 2),)


def _conv_transpose(layer: Any) -> tuple[Rule, ...]:
    if layer.mask is not None:
        raise Refused(" with a mask, which PyTorch lacks. Multiply the kernel by the mask instead.")
    if not _torch_padding(layer):
        raise Refused(
            f" with padding={layer.padding!r}, to which no padding and output_padding of PyTorch "
            'correspond. Use padding="VALID" and crop the output.'
        )
    # With transpose_kernel=True, Flax holds the kernel of the convolution that it transposes.
    layout = CONVOLUTION if layer.transpose_kernel else TRANSPOSED
    return (Rule("kernel", "weight", layout, len(layer.kernel_size) + 2),)


def _torch_padding(layer: Any) -> bool:
    """True if PyTorch's transposed convolution has arguments for the layer's padding.

    Flax pads the dilated input by (low, high). PyTorch pads it by d (k - 1) - padding, and by
    output_padding more at the end, which must be less than the stride or the dilation.
    """
    axes = len(layer.kernel_size)
    strides = _per_axis(layer.strides, axes)
    dilations = _per_axis(layer.kernel_dilation, axes)
    padding = layer.padding
    if isinstance(padding, str) and padding not in ("SAME", "VALID"):
        return False
    for axis, (k, s, d) in enumerate(zip(layer.kernel_size, strides, dilations, strict=True)):
        reach = d * (k - 1)
        if padding == "VALID":
            low, high = reach, max(reach, s - 1)
        elif padding == "SAME":
            low = reach if s > reach else -(-(reach + s - 1) // 2)
            high = reach + s - 1 - low
        else:
            one = padding if isinstance(padding, int) else padding[axis]
            low, high = (one, one) if isinstance(one, int) else one
        if low > reach or not 0 <= high - low < max(s, d):
            return False
    return True


def _per_axis(value: Any, axes: int) -> tuple[int, ...]:
    return (value or 1,) * axes if isinstance(value, int | None) else tuple(value)


def _attention(layer: Any) -> tuple[Rule, ...]:
    sizes = {layer.qkv_features, layer.out_features, layer.in_features}
    if len(sizes) > 1 or layer.num_kv_heads != layer.num_heads or layer.normalize_qk:
        raise Refused(
            " that PyTorch lacks: `torch.nn.MultiheadAttention` needs in_features, qkv_features "
            "and out_features to be one number, num_kv_heads=num_heads and normalize_qk=False."
        )
    parts = ("query", "key", "value")
    if layer.in_kv_features == layer.in_features:
        kernels = " ".join(f"{part}.kernel" for part in parts)
        weights = [Rule(kernels, "in_proj_weight", PROJECTIONS, 3)]
    else:
        weights = [Rule(f"{p}.kernel", f"{p[0]}_proj_weight", PROJECTIONS, 3) for p in parts]
    return (
        *weights,
        Rule(" ".join(f"{part}.bias" for part in parts), "in_proj_bias", BIASES, 2),
        Rule("out.kernel", "out_proj.weight", HEADS_TO_MATRIX, 3),
        Rule("out.bias", "out_proj.bias", SAME, 1),
    )


def _einsum(layer: Any) -> tuple[Rule, ...]:
    """Rules for einsums equal to `torch.nn.Linear`: "...i,io->...o" and "...i,oi->...o"."""
    text = layer.einsum_str or ""
    operands, _, result = text.partition("->")
    x, _, kernel = operands.partition(",")
    batch, i, o = x[:-1], x[-1:], result[-1:]
    linear = (
        len(kernel) == 2
        and set(kernel) == {i, o}
        and result[:-1] == batch
        and not set(kernel) & set(batch)
    )
    if not linear or len(layer.bias_shape or (0,)) != 1:
        raise Refused(
            f' with "{text}", which is not a `torch.nn.Linear`: only "...i,io->...o" and '
            '"...i,oi->...o" have a layer in PyTorch. Keep the parameters in a module of your own.'
        )
    return (Rule("kernel", "weight", MATRIX if kernel == i + o else SAME),)


def _spectral_norm(layer: Any) -> tuple[Rule, ...]:
    raise Refused(
        ", which updates its estimate at every call and lacks the vectors u and v of PyTorch's "
        "spectral_norm. Fold the norm into the weight in PyTorch, with "
        "`torch.nn.utils.parametrize.remove_parametrizations`, and use the layer without it."
    )


BY_SETTINGS: dict[type, Callable[[Any], tuple[Rule, ...]]] = {
    nnx.Conv: _conv,
    nnx.ConvTranspose: _conv_transpose,
    nnx.MultiHeadAttention: _attention,
    nnx.Einsum: _einsum,
    nnx.SpectralNorm: _spectral_norm,
}
