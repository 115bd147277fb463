"""Gradient clipping as in PyTorch."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def clip_grad_norm(max_norm: float) -> optax.GradientTransformation:
    """Clips the global norm of the gradients, as `torch.nn.utils.clip_grad_norm_` does.

    g ← g · min(1, max_norm / (‖g‖ + 1e-6)),  with ‖g‖ = sqrt(Σ g²) over all parameters

    `optax.clip_by_global_norm` divides by ‖g‖ alone, and only if ‖g‖ > max_norm. The two differ
    by 1e-6 / ‖g‖ relative to the gradient. For a large norm this is below float32's rounding, but
    far above float64's, so two training runs differ visibly after a few steps.

    Args:
        max_norm: largest norm, 0 or more; infinity clips nothing.

    Raises:
        ValueError: for a negative or NaN `max_norm`.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from jaxrnn import training
        >>> tx = optax.chain(training.clip_grad_norm(1.0), optax.adam(1e-3))
        >>> clip = training.clip_grad_norm(1.0)
        >>> clipped, _ = clip.update({"w": jnp.array([30.0, 40.0])}, clip.init(None))
        >>> [round(float(g), 4) for g in clipped["w"]]
        [0.6, 0.8]

    Source: Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks",
    2013.
    """
    if not max_norm >= 0:
        raise ValueError(f"`clip_grad_norm(max_norm)` needs max_norm of 0 or more, got {max_norm}.")

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> Any:
        del params
        leaves = jax.tree.leaves(updates)
        with jax.numpy_dtype_promotion("standard"):  # parameters may be of several dtypes
            norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in leaves))
        scale = jnp.minimum(max_norm / (norm + 1e-6), 1.0)
        return jax.tree.map(lambda g: g * scale.astype(g.dtype), updates), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)
