"""Tolerances: the largest errors that count as agreement."""

# dtype: (steps up to, outputs and states, gradients)
_TABLE = {
    "float64": [(1000, 1e-14, 5e-14)],
    "float32": [(100, 1e-6, 3e-6), (1000, 1e-6, 1e-5)],
    "bfloat16": [(1000, 4e-3, 1e-2)],
}
_TRAINING = [(1, 1e-12), (20, 1e-9)]  # (optimizer steps up to, parameters and losses)
ERROR_RATIO = 3.0
"""Largest ratio of an error to its floor, or to PyTorch's own error, that counts as agreement."""


def tolerance(dtype: str, steps: int, kind: str) -> float:
    """Largest error that counts as agreement.

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
    all bounds grow in proportion to the steps. bfloat16 is judged against a float64 reference.
    The kind "training" covers parameters and losses after `steps` optimizer steps in float64,
    judged as outputs: 1e-12 after one step, 1e-9 after up to 20.

    Raises:
        ValueError: for an unknown dtype or kind; for training in another dtype or beyond 20 steps.

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
