"""Loss, metrics and watched score of a run."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import jax.numpy as jnp
from jax import Array

Score: TypeAlias = Callable[[Any, Any], Any]  # (outputs, batch) -> scalar
Forward: TypeAlias = Callable[[Any, Any], Any]  # (model, batch) -> outputs

RESERVED = {"epoch", "step", "loss", "learning_rate", "seconds"}  # names in a record
_BETTER = {"validation_loss": "lower", "validation_accuracy": "higher"}


@dataclasses.dataclass(frozen=True)
class Scoring:
    """Loss, metrics and watched score of a run."""

    loss: Score
    metrics: Mapping[str, Score]
    forward: Forward
    watch: str  # a name in the records of the validation
    sign: int  # 1 where a lower value is better, -1 where a higher one is


def choose(
    loss: Score,
    metrics: dict[str, Score],
    forward: Forward,
    watch: str,
    better: Literal["lower", "higher"] | None,
) -> Scoring:
    """The scoring of a run.

    Raises:
        ValueError: the watched score does not exist, or it is not known which values are better.
    """
    names = [f"validation_{name}" for name in ("loss", *metrics)]
    if watch not in names:
        raise ValueError(f"`fit(watch)` must be one of {', '.join(names)}, got `{watch}`.")
    chosen = better or _BETTER.get(watch)
    if chosen is None:
        raise ValueError(
            f'`fit(watch="{watch}")` needs `better="lower"` or `better="higher"`, to determine '
            "the best epoch."
        )
    return Scoring(loss, metrics, forward, watch, 1 if chosen == "lower" else -1)


def describe(watch: str, sign: int) -> str:
    """The arguments of `fit` that choose a watched score."""
    return f'watch="{watch}", better="{"lower" if sign > 0 else "higher"}"'


def named(metrics: Mapping[str, Score] | None) -> tuple[tuple[str, Score], ...]:
    """Metrics as a hashable value.

    Raises:
        ValueError: for a name that the records already use.
    """
    metrics = metrics or {}
    for name in metrics:
        if name in RESERVED or name.startswith("validation_"):
            raise ValueError(
                f"No metric may have the name `{name}`, which the records already use."
            )
    return tuple(metrics.items())


def scalar(name: str, value: Any) -> Array:
    """A score as an array of shape ()."""
    value = jnp.asarray(value)
    if value.shape != ():
        raise ValueError(
            f"`{name}` must be a scalar, got shape {value.shape}: take its mean, or "
            "`training.masked_mean` over the true steps."
        )
    return value
