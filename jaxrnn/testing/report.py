"""What agreement means, and how it is told: `tolerance`, `Row`, `Report`."""

import dataclasses
import math
from typing import Literal, TypeAlias

import jax.numpy as jnp
import numpy as np

Kind: TypeAlias = Literal["output", "state", "loss", "gradient", "training"]

# dtype: (steps up to, outputs and states, gradients)
_TABLE = {
    "float64": [(1000, 1e-14, 5e-14)],
    "float32": [(100, 1e-6, 3e-6), (1000, 1e-6, 1e-5)],
    "bfloat16": [(1000, 4e-3, 1e-2)],
}
_TRAINING = [(1, 1e-12), (20, 1e-9)]  # (optimiser steps up to, parameters and losses)
ERROR_RATIO = 3.0
"""Our error against float64 over PyTorch's own in the same dtype: at most this.

Of one draw of weights it is a ratio of two extremes: now and then it is larger where nothing is
wrong, more often with larger recurrent weights. Judge a model by several seeds.
"""


def tolerance(dtype: str, steps: int, kind: str) -> float:
    """The largest error that counts as agreement: the only place that says so.

    ==========  =====  =======================  =========
    dtype       steps  output, state and loss   gradient
    ==========  =====  =======================  =========
    float64     1000   1e-14                    5e-14
    float32     100    1e-6                     3e-6
    float32     1000   1e-6                     1e-5
    bfloat16    1000   4e-3                     1e-2
    ==========  =====  =======================  =========

    Let d be the difference from the reference `ref`. Outputs, states and the loss are judged by
    max|d| / max(1, max|ref|), gradients by max|d| / max|ref|, tensor by tensor. Beyond 1000 steps
    all of them grow in proportion to the steps. bfloat16 is judged against a float64 reference.
    "training" is for parameters and losses after that many steps of an optimiser in float64,
    judged as outputs: 1e-12 after one step, 1e-9 after up to 20.

    Raises:
        ValueError: for another dtype or kind, and for training that nothing is promised about.

    Example:
        >>> from jaxrnn.testing import tolerance
        >>> tolerance("float32", 100, "gradient"), tolerance("float32", 101, "gradient")
        (3e-06, 1e-05)
    """
    if kind == "training":
        for most, bound in _TRAINING:
            if dtype == "float64" and steps <= most:
                return bound
        raise ValueError(
            '`tolerance(kind="training")` is for float64 and at most 20 steps, since more amplify '
            f"the last bit and prove nothing; got {dtype} and {steps} steps."
        )
    if dtype not in _TABLE:
        raise ValueError(f"`tolerance` knows the dtypes {', '.join(_TABLE)}; got {dtype!r}.")
    if kind not in ("output", "state", "loss", "gradient"):
        raise ValueError(
            f"`tolerance` knows the kinds output, state, loss, gradient, training; got {kind!r}."
        )
    rows = _TABLE[dtype]
    most, output, gradient = next((row for row in rows if steps <= row[0]), rows[-1])
    return (gradient if kind == "gradient" else output) * max(1.0, steps / most)


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
        error_ratio: the relative error over PyTorch's own; None if not measured. A maximum over
            few elements is small by luck, so PyTorch's counts as no smaller than its mean over the
            rows of this kind, nor than the rounding of one operation.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    max_abs: float
    norm_relative: float
    tolerance: float
    error_ratio: float | None = None

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
        """Whether the error is within tolerance: never with a NaN, on one side or on both."""
        return self.error <= self.tolerance


@dataclasses.dataclass(frozen=True)
class Report:
    """The rows of a comparison; `report["h_n"]` is a row, `str(report)` the table.

    Attributes:
        title: what was compared.
        rows: one for each output, state, loss and gradient.
    """

    title: str
    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        """Whether there are rows and all are within tolerance."""
        return bool(self.rows) and not self.failures

    @property
    def failures(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if not row.ok)

    def __getitem__(self, name: str) -> Row:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no row {name!r} among {', '.join(row.name for row in self.rows)}")

    def worst(self, kind: Kind) -> Row:
        """The row of a kind that is nearest to its tolerance, or furthest beyond it."""
        rows = [row for row in self.rows if row.kind == kind]
        if not rows:
            raise KeyError(f"no row of the kind {kind!r}")
        return max(rows, key=_fraction)

    def __str__(self) -> str:
        cells = [self._header, *self._cells("", "BEYOND")]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(pairs))
            for pairs in (list(zip(row, widths, strict=True)) for row in cells)
        ]
        return "\n".join([self.title, *(line.rstrip() for line in lines), self.verdict])

    def to_markdown(self) -> str:
        """The table in Markdown, without title and verdict."""
        header = [*self._header[:-1], "verdict"]
        rule = ["---"] * 3 + ["---:"] * (len(header) - 4) + ["---"]
        lines = [header, rule, *self._cells("ok", "**beyond**")]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    @property
    def verdict(self) -> str:
        """One line."""
        if not self.rows:
            return "DISAGREE: nothing was compared"
        if self.ok:
            return f"agree: all {len(self.rows)} rows within tolerance"
        names = ", ".join(row.name for row in self.failures)
        count = f"{len(self.failures)} of {len(self.rows)} rows"
        return f"DISAGREE: {count} beyond tolerance: {names}"

    @property
    def _header(self) -> list[str]:
        ratio = ["ratio"] if self._has_ratio else []
        return ["name", "kind", "shape", "max abs", "norm rel", *ratio, "tolerance", ""]

    @property
    def _has_ratio(self) -> bool:
        return any(row.error_ratio is not None for row in self.rows)

    def _cells(self, good: str, bad: str) -> list[list[str]]:
        def cells(row: Row) -> list[str]:
            ratio = "" if row.error_ratio is None else f"{row.error_ratio:.2g}"
            return [
                row.name,
                row.kind,
                "x".join(map(str, row.shape)) or "()",
                f"{row.max_abs:.1e}",
                f"{row.norm_relative:.1e}",
                *([ratio] if self._has_ratio else []),
                f"{row.tolerance:.2g}",
                good if row.ok else bad,
            ]

        return [cells(row) for row in self.rows]


def judge(
    name: str,
    kind: Kind,
    got: np.ndarray,
    ref: np.ndarray,
    *,
    dtype: str,
    steps: int,
    peer_error: float | None = None,
) -> Row:
    """One row: `got` against `ref` by the tolerance, or by PyTorch's own `relative_error`.

    Integers and booleans must be equal.
    """
    size, scale = _sizes(kind, ref)
    max_abs = _max_difference(kind, got, ref, dtype)
    ratio = None
    if not np.issubdtype(ref.dtype, np.floating):
        bound = 0.0
    elif peer_error is not None:
        ratio = _over(max_abs, scale * max(peer_error, float(jnp.finfo(dtype).eps)))
        bound = ERROR_RATIO
    elif kind == "gradient":
        bound = tolerance(dtype, steps, kind)
    else:
        bound = tolerance(dtype, steps, kind) * scale
    return Row(name, kind, ref.shape, max_abs, _over(max_abs, size), bound, ratio)


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


def _fraction(row: Row) -> float:
    return math.inf if math.isnan(row.error) else _over(row.error, row.tolerance)
