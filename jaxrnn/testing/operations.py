"""Rounding properties of PyTorch's operations: exactness, terms of sums, conditioning."""

import functools
import math
from collections.abc import Callable
from typing import Any

_EXACT_NAMES = (
    "argmax argmin argsort bernoulli cat ceil clone constant_pad_nd copy diag_embed "
    "embedding empty_like eq fill flip floor full_like gather ge gt index index_select "
    "le lt masked_fill masked_select ne ones_like repeat roll round scatter "
    "select_backward select_scatter sign slice_backward slice_scatter sort stack to_copy "
    "tril triu trunc unsafe_split where zero zeros_like "
)
_EXACT = frozenset(_EXACT_NAMES.split())
"""Operations that move or compare values without rounding them."""


@functools.cache
def is_exact(func: Any) -> bool:
    """Return True if an operation is exact or returns a view."""
    returns = func._schema.returns
    view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
    return view or _name(func) in _EXACT


@functools.cache
def written(func: Any) -> frozenset[int | str]:
    """Positions and names of the arguments that an operation writes to."""
    return frozenset(
        key
        for i, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
        for key in (i, argument.name)
    )


@functools.cache
def _name(func: Any) -> str:
    return str(func.overloadpacket.__name__).strip("_")


def terms(func: Any, args: Any, dtype: str) -> int:
    """The number of terms, at least 1, in the sums of an operation that `dtype` accumulates."""
    name = _name(func)
    if name not in _TERMS or (dtype == "bfloat16" and name not in _SUMS):
        return 1
    return max(1, _TERMS[name](*args))


_SUMS = {"sum": 0, "mean": 0, "embedding_dense_backward": 0, "convolution_backward": 2}
"""Operations whose sums bfloat16 accumulates itself, and the position of the sum in the results: of
a convolution's gradients, the bias's."""


def position_of_sum(func: Any) -> int | None:
    """The position of a sum over all terms among the results of an operation, or None."""
    return _SUMS.get(_name(func))


def _summed(x: Any, dim: Any = None, *_: Any) -> int:
    if dim is None or dim == []:
        return int(x.numel())
    dims = dim if isinstance(dim, list | tuple) else [dim]
    return math.prod(x.shape[d] for d in dims)


def _per_channel(x: Any, *_: Any) -> int:
    return int(x.numel() // max(1, x.shape[1]))


_TERMS: dict[str, Callable[..., int]] = {
    "sum": _summed,
    "mean": _summed,
    "mm": lambda a, b: a.shape[-1],
    "bmm": lambda a, b: a.shape[-1],
    "addmm": lambda c, a, b: a.shape[-1],
    "baddbmm": lambda c, a, b: a.shape[-1],
    "native_batch_norm": _per_channel,
    "native_batch_norm_backward": lambda dy, *_: _per_channel(dy),
    "native_layer_norm": lambda x, shape, *_: math.prod(shape),
    "native_layer_norm_backward": lambda dy, x, shape, *_: x.numel() // math.prod(shape),
    "native_group_norm": lambda x, *_: x.numel() // x.shape[0],
    "native_group_norm_backward": lambda dy, *_: _per_channel(dy),
    "softmax": lambda x, dim, *_: x.shape[dim],
    "softmax_backward_data": lambda dy, y, dim, *_: dy.shape[dim],
    "log_softmax": lambda x, dim, *_: x.shape[dim],
    "log_softmax_backward_data": lambda dy, y, dim, *_: dy.shape[dim],
    "convolution": lambda x, w, *_: w[0].numel(),
    "convolution_backward": lambda dy, *_: _per_channel(dy),
    "embedding_dense_backward": lambda dy, indices, *_: indices.numel(),
}


def conditioning(func: Any, args: Any, dtype: str) -> tuple[int, Any]:
    """The position of the argument that is normalised, and sqrt(1 + mean^2 / variance) for it.

    The position is -1 for other operations, for normalisation by running statistics and in
    bfloat16.
    """
    name = _name(func)
    backward = name.endswith("_backward")
    kind = name.removesuffix("_backward").removeprefix("native_")
    position = int(backward)
    if kind not in ("batch_norm", "layer_norm", "group_norm") or dtype == "bfloat16":
        return -1, 1.0
    x = args[position]
    if kind == "batch_norm":
        if not args[7 if backward else 5]:
            return -1, 1.0
        grouped, dims = x, [0, *range(2, x.ndim)]
    elif kind == "layer_norm":
        grouped, dims = x, list(range(x.ndim - len(args[position + 1]), x.ndim))
    else:
        grouped, dims = x.reshape(x.shape[0], args[-2], -1), [2]
    mean = grouped.mean(dims, keepdim=True)
    variance = grouped.var(dims, correction=0, keepdim=True)
    smallest = 1e-12 * mean**2 + 1e-300
    factor = (1 + mean**2 / variance.clamp(min=smallest)).sqrt()
    return position, factor.expand_as(grouped).reshape(x.shape)


def softmax_by_rows(func: Any) -> Callable[..., Any] | None:
    """A softmax or its gradient, called as (rounded, *args) with a function that rounds sums.

    An error in the sum of a row is one of all its elements, so that over a row they no longer
    cancel. Returns None for other operations.
    """
    return _BY_ROWS.get(_name(func))


def _softmax(rounded: Callable[[Any], Any], x: Any, dim: int, *_: Any) -> Any:
    exp = (x - x.amax(dim, keepdim=True)).exp()
    return exp / rounded(exp.sum(dim, keepdim=True))


def _softmax_backward(rounded: Callable[[Any], Any], dy: Any, y: Any, dim: int, *_: Any) -> Any:
    return y * (dy - rounded((y * dy).sum(dim, keepdim=True)))


def _log_softmax_backward(rounded: Callable[[Any], Any], dy: Any, y: Any, dim: int, *_: Any) -> Any:
    return dy - y.exp() * rounded(dy.sum(dim, keepdim=True))


_BY_ROWS: dict[str, Callable[..., Any]] = {
    "softmax": _softmax,
    "softmax_backward_data": _softmax_backward,
    "log_softmax_backward_data": _log_softmax_backward,
}
