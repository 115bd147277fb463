"""Directions, lengths and stacked layers, over any strategy. Plain functions on plain pytrees.

This is the whole of PyTorch's `nn.RNN`, `nn.LSTM` and `nn.GRU` but for the parameters: without
Flax, call `stack` with weights of your own.
"""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Integer

from jaxrnn import sharding, strategies
from jaxrnn.cells import Carry, Cell, Size, Weights
from jaxrnn.strategies import Strategy


def stack(
    cell: Cell,
    weights: Sequence[Sequence[Weights]],
    x: Float[Array, "T B I"],
    carry: Carry,
    lengths: Integer[Array, " B"] | None = None,
    *,
    resets: Bool[Array, "T B"] | None = None,
    strategy: Strategy | Callable[..., tuple[Array, Carry]] | None = None,
    precision: lax.PrecisionLike = None,
    between: Callable[[Array], Array] | None = None,
) -> tuple[Float[Array, "T B DP"], Carry]:
    """Run stacked layers, each in one direction or both, over sequences of their own lengths.

    For every row, with n its length: outputs past n are exactly 0, the final state is the state
    after step n (for n = 0 the initial state), the reverse direction begins at step n-1, and what
    `x` holds past n has no effect on anything, be it NaN or infinite; its gradient is exactly 0.

    Args:
        cell: the step, one of `jaxrnn.cells` or your own.
        weights: `weights[layer][direction]`. Layer 0 takes I inputs, the others D*P.
        x: the inputs, (T, B, I).
        carry: the initial carry, arrays (L*D, B, ·); index `layer * D + direction`. Its dtype is
            the one in which states are kept and products summed.
        lengths: steps in each row, (B,) integers in [0, T]; None stands for T in every row.
        resets: True where a sequence begins: the state before this step is `Weights.initial`, or
            the initial carry where that is None, no gradient flows across, and the reverse
            direction begins anew at the step before. Past a row's length they count for nothing.
        strategy: how one direction runs over time, a strategy or any function called like one;
            None for `strategies.default`.
        precision: of every product, as in `jax.lax.dot_general`.
        between: applied to the outputs of every layer but the last: dropout, say.

    Raises:
        ValueError, TypeError: a carry that has not one row for each layer and direction, lengths
            that are no integers of shape (B,). Lengths outside [0, T] count as 0 or T.

    Returns:
        The last layer's outputs (T, B, D*P), directions side by side in the last axis, and the
        final carry, shaped as the initial one.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxrnn import cells, layers
        >>> keys = jax.random.split(jax.random.key(0), 2)
        >>> weights = [[cells.Weights(ih=jax.random.normal(key, (12, 3)), hh=jnp.zeros((12, 4)))
        ...             for key in keys]]                              # one layer, both directions
        >>> h = jnp.zeros((2, 5, 4))
        >>> ys, (h_n,) = layers.stack(cells.gru, weights, jnp.ones((7, 5, 3)), (h,),
        ...                           lengths=jnp.array([7, 3, 0, 1, 7]))
        >>> ys.shape, h_n.shape, float(abs(ys[3:, 1]).max())
        ((7, 5, 8), (2, 5, 4), 0.0)
    """
    _check(weights, x, carry, lengths, resets)
    mask = None
    if lengths is not None:
        mask = step_mask(lengths, x.shape[0])
        # Masked at the entrance and not at the exit, where 0 * NaN would poison the gradients.
        x = jnp.where(mask[:, :, None], x, jnp.zeros_like(x))
    steps = _number_steps(mask, resets)
    x = sharding.gather_features(x)
    weights = [[sharding.gather_weights(w) for w in directions] for directions in weights]
    carry = sharding.placed_as(x, weights, carry)
    last: list[Carry] = []
    for layer, directions in enumerate(weights):
        if layer > 0 and between is not None:
            x = between(x)
        outputs = []
        for reverse, w in enumerate(directions):
            initial = tuple(c[len(last)] for c in carry)
            run = strategy or strategies.default(cell, w, x, initial)
            ys, final = run(
                cell, w, x, initial, steps[reverse], precision=precision, reverse=bool(reverse)
            )
            outputs.append(ys)
            last.append(final)
        x = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=-1)
    return x, tuple(jnp.stack(states) for states in zip(*last, strict=True))


def _number_steps(
    mask: Bool[Array, "T B"] | None, resets: Bool[Array, "T B"] | None
) -> tuple[Array | None, Array | None]:
    """The masks of steps that strategies take, for the forward and the reverse direction."""
    if resets is None:
        return mask, mask
    runs = jnp.ones_like(resets) if mask is None else mask
    starts = resets & runs
    ends = jnp.concatenate([starts[1:], jnp.zeros_like(starts[:1])])

    def number(begins: Array) -> Array:
        kinds = jnp.where(begins, strategies.RESET, strategies.RUN)
        return jnp.where(runs, kinds, strategies.HOLD).astype(jnp.uint8)

    return number(starts), number(ends)


def step_mask(lengths: Integer[Array, " B"], steps: Size) -> Bool[Array, "T B"]:
    """True where a row still runs: `mask[t, b] = t < lengths[b]`, for t in 0..steps-1."""
    # Wide integers are clipped in their own dtype before the cast, so that none wraps into range.
    bound, info = jnp.iinfo(jnp.int32).max, jnp.iinfo(lengths.dtype)
    if info.max > bound:
        lengths = jnp.minimum(lengths, jnp.full_like(lengths, bound))
    if info.min < -bound:
        lengths = jnp.maximum(lengths, jnp.zeros_like(lengths))
    t = lax.broadcasted_iota(jnp.int32, (steps, lengths.shape[0]), 0)
    return t < jnp.broadcast_to(lengths.astype(jnp.int32), t.shape)


def _check(
    weights: Sequence[Sequence[Weights]],
    x: Array,
    carry: Carry,
    lengths: Array | None,
    resets: Array | None,
) -> None:
    """Check what shapes in annotations cannot say; JAX would clamp, or broadcast, and go on."""
    rows, batch = sum(len(directions) for directions in weights), x.shape[1]
    if rows == 0:
        raise ValueError("`stack` needs the weights of one layer at least, got none.")
    for states in carry:
        if states.ndim != 3 or states.shape[:2] != (rows, batch):
            raise ValueError(
                "`stack` needs a carry of arrays (L*D, B, ·), here "
                f"({rows}, {batch}, ·), got {tuple(states.shape)}."
            )
    if resets is not None and (resets.dtype != bool or resets.shape != x.shape[:2]):
        raise ValueError(
            f"`stack` needs resets of booleans (T, B) = {tuple(x.shape[:2])}, got {resets.dtype} "
            f"of shape {tuple(resets.shape)}."
        )
    if lengths is None:
        return
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(f"`stack` needs lengths that are integers, got {lengths.dtype}.")
    if lengths.shape != (batch,):
        raise ValueError(
            f"`stack` needs lengths of shape (B,) = ({batch},), got {tuple(lengths.shape)}."
        )
