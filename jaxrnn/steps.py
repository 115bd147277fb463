"""Values of a mask of integers, one for each step of each row."""

from jax import Array

HOLD = 0
"""In a mask of integers: no step, the state is kept."""
RUN = 1
"""In a mask of integers: a step."""
RESET = 2
"""In a mask of integers: a step that starts from the initial state."""


def has_resets(mask: Array | None) -> bool:
    """True for a mask of integers. A mask of booleans says only where a row takes a step."""
    return mask is not None and mask.dtype != bool


def is_reset(mask: Array) -> Array:
    """True at the steps that start from the initial state."""
    return mask == RESET
