"""Parallel in time: chunks of a sequence side by side, until their boundaries agree.

strategy     `Shooting`: its options, and the number of chunks it chooses
recurrence   the chunks of another recurrence, forwards, its tangent and its adjoint
chunks       cutting, hand-over at the boundaries, the loop of sweeps
"""

from jaxrnn.strategies.shooting.chunks import Info
from jaxrnn.strategies.shooting.strategy import Shooting

__all__ = ["Info", "Shooting"]
