"""Common inputs and weights of all peers at a point, and the check that peers agree."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from points import GATES, Point

Arrays = Mapping[str, np.ndarray]

# These separate a wrong gate from rounding at all sizes of the grid; the parity tests are stricter.
OUTPUT_TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Case:
    """Weights by PyTorch's names, inputs, lengths, and the cotangent of the outputs.

    The loss is the sum of outputs times cotangent. The cotangent is 0 past each length, so outputs
    there do not matter. Flax's GRU has no b_hn, so b_hn is 0 for all peers.
    """

    point: Point
    weights: dict[str, np.ndarray]
    x: np.ndarray  # (T, B, I)
    lengths: np.ndarray | None  # (B,)
    cotangent: np.ndarray  # (T, B, D*H)


def suffixes(point: Point) -> list[list[str]]:
    """Suffixes of PyTorch's parameter names, by layer and direction."""
    ends = ["", "_reverse"][: point.directions]
    return [[f"_l{layer}{end}" for end in ends] for layer in range(point.layers)]


def make(point: Point) -> Case:
    rng = np.random.default_rng(0)
    gates, hidden, outputs = GATES[point.cell], point.hidden, point.directions * point.hidden
    weights = {}
    for layer, ends in enumerate(suffixes(point)):
        inputs = outputs if layer else point.inputs
        for end in ends:
            for name, width in (("weight_ih", inputs), ("weight_hh", hidden)):
                weights[name + end] = _uniform(rng, (gates * hidden, width), hidden)
            for name in ("bias_ih", "bias_hh"):
                weights[name + end] = _uniform(rng, (gates * hidden,), hidden)
            if point.cell == "gru":
                weights["bias_hh" + end][2 * hidden :] = 0
    rows = point.row_lengths()
    x = rng.standard_normal((point.steps, point.batch, point.inputs), np.float32)
    cotangent = rng.standard_normal((point.steps, point.batch, outputs), np.float32)
    cotangent /= np.sqrt(cotangent.size)
    cotangent[np.arange(point.steps)[:, None] >= rows] = 0
    return Case(point, weights, x, rows if point.lengths == "ragged" else None, cotangent)


def _uniform(rng: np.random.Generator, shape: tuple[int, ...], hidden: int) -> np.ndarray:
    return rng.uniform(-(hidden**-0.5), hidden**-0.5, shape).astype(np.float32)


def worst_error(case: Case, reference: Arrays, result: Arrays) -> float:
    """Largest error divided by its tolerance; the peer agrees if this is at most 1.

    Outputs are compared absolutely up to each length, gradients relative to each tensor's largest
    entry. Gradients that the peer lacks (it has one bias instead of two) are left out.
    """
    errors = []
    for name, value in result.items():
        expected = reference[name]
        if name == "output":
            seen = np.arange(case.point.steps)[:, None] < case.point.row_lengths()
            errors.append(np.abs(value - expected)[seen].max() / OUTPUT_TOLERANCE)
        else:
            # With rows of length 1 the recurrent weights have no gradient, so 0 must equal 0.
            scale = max(GRADIENT_TOLERANCE * np.abs(expected).max(), np.finfo(np.float32).tiny)
            errors.append(np.abs(value - expected).max() / scale)
    worst = float(np.max(errors))
    return worst if np.isfinite(worst) else float("inf")
