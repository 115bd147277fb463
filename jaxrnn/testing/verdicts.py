"""One tensor of a comparison, and its verdict."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import jax.numpy as jnp
import numpy as np

from jaxrnn.testing.rounding import Floor
from jaxrnn.testing.tolerances import ERROR_RATIO, tolerance

Kind: TypeAlias = Literal["output", "state", "loss", "gradient", "training"]
Values: TypeAlias = dict[tuple[str, Kind], np.ndarray]  # of one side, by name and kind of row


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
        floor: the size of max|d| that rounding explains, measured for this tensor alone (see
            `jaxrnn.testing.rounding`); None if not measured, which it is where it matters.
        norm: the 2-norm of d, over the 2-norm that rounding explains; None if not measured.
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
    norm: float | None = None
    note: Literal["", "cancels", "ill-conditioned"] = ""

    @property
    def error(self) -> float:
        """The judged error: the ratio if measured, else norm_relative for gradients, else max_abs.

        For outputs, states and losses the tolerance is `tolerance(...)` times max(1, max|ref|).
        """
        if self.error_ratio is not None:
            return self.error_ratio
        return self.norm_relative if self.kind == "gradient" else self.max_abs

    @property
    def ok(self) -> bool:
        """True if the error is within the tolerance or the floor; False with a NaN on any side."""
        return self.error <= self.tolerance or self._by_floor

    @property
    def _by_floor(self) -> bool:
        return self._over_floor <= ERROR_RATIO

    @property
    def _over_floor(self) -> float:
        if self.floor is None or self.norm is None:
            return math.inf
        element = _over(self.max_abs, self.floor)
        return math.nan if math.isnan(element + self.norm) else max(element, self.norm)

    @property
    def excess(self) -> float:
        """The error over its bound: above 1 for a row that disagrees."""
        if math.isnan(self.error):
            return math.inf
        by_floor = self._over_floor / ERROR_RATIO
        excess = _over(self.error, self.tolerance)
        return excess if math.isnan(by_floor) else min(excess, by_floor)


def judge(
    name: str,
    kind: Kind,
    got: np.ndarray,
    ref: np.ndarray,
    *,
    dtype: str,
    steps: int,
    peer_error: float | None = None,
    floor: Floor | None = None,
) -> Row:
    """One row: `got` against `ref` by the tolerance, or by PyTorch's own `relative_error`.

    With a `floor`, an error of up to `ERROR_RATIO` times the floor agrees too, if both its largest
    element and its 2-norm are. Integers and booleans must be equal.
    """
    size, scale = _sizes(kind, ref)
    difference = _difference(kind, got, ref, dtype)
    max_abs = float(difference.max(initial=0.0))
    ratio = None
    least = 0.0 if floor is None else floor.element
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
    row = Row(name, kind, ref.shape, max_abs, _over(max_abs, size), bound, ratio)
    if floor is not None:
        norm = _over(float(np.linalg.norm(difference)), floor.norm)
        row = dataclasses.replace(row, floor=floor.element, norm=norm)
    if kind == "gradient" and least > 0 and ERROR_RATIO * least >= size:
        return dataclasses.replace(row, note="cancels")
    if row.ok and not row.error <= row.tolerance:
        return dataclasses.replace(row, note="ill-conditioned")
    return row


def judge_all(
    got: Values,
    ref: Values,
    peer: Values | None,
    find_floors: Callable[[], Mapping[tuple[str, Kind], Floor]],
    dtype: str,
    steps: int,
) -> tuple[Row, ...]:
    """Rows in the order of `ref`; with `peer`, PyTorch in `dtype`, judged by the ratio of errors.

    Floors are measured if a row exceeds its tolerance, and for every ratio.
    """
    if peer is None:
        rows = tuple(judge(*key, got[key], ref[key], dtype=dtype, steps=steps) for key in ref)
        if all(row.ok for row in rows):
            return rows
    found = find_floors()
    errors: dict[tuple[str, Kind], float] = {}
    if peer is not None:
        errors = {key: relative_error(key[1], peer[key], ref[key], dtype) for key in ref}
    return tuple(
        judge(
            *key,
            got[key],
            ref[key],
            dtype=dtype,
            steps=steps,
            peer_error=errors.get(key),
            floor=found[key],
        )
        for key in ref
    )


def relative_error(kind: Kind, got: np.ndarray, ref: np.ndarray, dtype: str) -> float:
    """max|d| / max|ref| for gradients, max|d| / max(1, max|ref|) for the rest."""
    largest = float(_difference(kind, got, ref, dtype).max(initial=0.0))
    return _over(largest, _sizes(kind, ref)[1])


def _sizes(kind: Kind, ref: np.ndarray) -> tuple[float, float]:
    size = float(np.abs(ref[np.isfinite(ref)].astype(np.float64)).max(initial=0.0))
    return size, size if kind == "gradient" else max(1.0, size)


def _difference(kind: Kind, got: np.ndarray, ref: np.ndarray, dtype: str) -> np.ndarray:
    """|got - ref|, flat: 0 for equal infinities, NaN where there is a NaN."""
    with np.errstate(invalid="ignore"):
        d = np.abs(got.astype(np.float64) - ref.astype(np.float64))
    d = np.where(got == ref, 0.0, d).ravel()
    info = jnp.finfo(dtype)
    # Gradients vanish over long sequences, and hardware may flush to zero what is left of them.
    flushed = kind == "gradient" and d.max(initial=0.0) <= float(info.tiny) / float(info.eps)
    return np.zeros_like(d) if flushed else d


def _over(error: float, size: float) -> float:
    """error / size, with 0 / 0 = 0."""
    if error == 0 or math.isnan(error):
        return error
    return error / size if size else math.inf
