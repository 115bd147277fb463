"""One tensor of a comparison, and its judgement."""

import dataclasses
import math
from typing import Literal, TypeAlias

import jax.numpy as jnp
import numpy as np

from jaxrnn.testing.tolerances import ERROR_RATIO, tolerance

Kind: TypeAlias = Literal["output", "state", "loss", "gradient", "training"]


@dataclasses.dataclass(frozen=True)
class Row:
    """One tensor of a comparison.

    Attributes:
        name: of an output or input, or PyTorch's name of a parameter.
        kind: "output", "state", "loss", "gradient" or "training".
        shape: in PyTorch's layout.
        max_abs: max|d|, where d is JAX's value less PyTorch's.
        norm_relative: max|d| / max|ref|; 0 where d is 0, inf where only ref is 0.
        tolerance: the bound on `error`.
        error_ratio: the error over PyTorch's own; None if not measured. A maximum over few
            elements may be small by chance, so PyTorch's counts as no smaller than `floor`, nor
            than the rounding of one operation.
        floor: the size of d that rounding explains, measured for this tensor alone (see
            `jaxrnn.testing.rounding`); None if not measured, which it is where it matters.
        note: "cancels" for a gradient whose floor times `ERROR_RATIO` is at least max|ref|: it
            consists of rounding, and a wrong factor in it cannot be seen. "ill-conditioned" for
            a row that agrees by its floor alone.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    max_abs: float
    norm_relative: float
    tolerance: float
    error_ratio: float | None = None
    floor: float | None = None
    note: Literal["", "cancels", "ill-conditioned"] = ""

    @property
    def error(self) -> float:
        """What is judged: the ratio if measured, else norm_relative for gradients, else max_abs.

        For outputs, states and losses the tolerance is `tolerance(...)` times max(1, max|ref|).
        """
        if self.error_ratio is not None:
            return self.error_ratio
        return self.norm_relative if self.kind == "gradient" else self.max_abs

    @property
    def ok(self) -> bool:
        """Whether the error is within tolerance or the floor: never with a NaN on any side."""
        return self.error <= self.tolerance or self._by_floor

    @property
    def _by_floor(self) -> bool:
        return self.floor is not None and self.max_abs <= ERROR_RATIO * self.floor

    @property
    def excess(self) -> float:
        """The error over its bound: above 1 for a row that disagrees."""
        if math.isnan(self.error):
            return math.inf
        excess = _over(self.error, self.tolerance)
        if self.floor is not None:
            excess = min(excess, _over(self.max_abs, ERROR_RATIO * self.floor))
        return excess


def judge(
    name: str,
    kind: Kind,
    got: np.ndarray,
    ref: np.ndarray,
    *,
    dtype: str,
    steps: int,
    peer_error: float | None = None,
    floor: float | None = None,
) -> Row:
    """One row: `got` against `ref` by the tolerance, or by PyTorch's own `relative_error`.

    With a `floor`, an error of up to `ERROR_RATIO` times the floor agrees too. Integers and
    booleans must be equal.
    """
    size, scale = _sizes(kind, ref)
    max_abs = _max_difference(kind, got, ref, dtype)
    ratio = None
    least = 0.0 if floor is None else floor
    if not np.issubdtype(ref.dtype, np.floating):
        bound, floor = 0.0, None
    elif peer_error is not None:
        own = scale * max(peer_error, float(jnp.finfo(dtype).eps))
        ratio = _over(max_abs, max(own, least))
        bound, least = ERROR_RATIO, max(own, least)
    elif kind == "gradient":
        bound = tolerance(dtype, steps, kind)
    else:
        bound = tolerance(dtype, steps, kind) * scale
    row = Row(name, kind, ref.shape, max_abs, _over(max_abs, size), bound, ratio, floor)
    if kind == "gradient" and least > 0 and ERROR_RATIO * least >= size:
        return dataclasses.replace(row, note="cancels")
    if row.ok and not row.error <= row.tolerance:
        return dataclasses.replace(row, note="ill-conditioned")
    return row


def relative_error(kind: Kind, got: np.ndarray, ref: np.ndarray, dtype: str) -> float:
    """max|d| / max|ref| for gradients, max|d| / max(1, max|ref|) for the rest."""
    return _over(_max_difference(kind, got, ref, dtype), _sizes(kind, ref)[1])


def _sizes(kind: Kind, ref: np.ndarray) -> tuple[float, float]:
    size = float(np.abs(ref[np.isfinite(ref)].astype(np.float64)).max(initial=0.0))
    return size, size if kind == "gradient" else max(1.0, size)


def _max_difference(kind: Kind, got: np.ndarray, ref: np.ndarray, dtype: str) -> float:
    """max|got - ref|: 0 for equal infinities and for no elements, NaN if there is any NaN."""
    with np.errstate(invalid="ignore"):
        d = np.abs(got.astype(np.float64) - ref.astype(np.float64))
    largest = float(np.where(got == ref, 0.0, d).max(initial=0.0))
    info = jnp.finfo(dtype)
    # Gradients vanish over long sequences, and hardware may flush to zero what is left of them.
    flushed = kind == "gradient" and largest <= float(info.tiny) / float(info.eps)
    return 0.0 if flushed else largest


def _over(error: float, size: float) -> float:
    """error / size, with 0 / 0 = 0."""
    if error == 0 or math.isnan(error):
        return error
    return error / size if size else math.inf
