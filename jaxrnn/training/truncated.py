"""Truncated backpropagation through time: long sequences in segments that carry the state over."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import jax
from flax import nnx
from jax import Array

from jaxrnn.training.batches import as_arrays, as_batch
from jaxrnn.training.losses import cross_entropy
from jaxrnn.training.scoring import Score, named
from jaxrnn.training.steps import update

CarryForward: TypeAlias = Callable[[Any, Any, Any], tuple[Any, Any]]
"""(model, batch, state) -> (outputs, state)."""


def carry_forward(model: Any, batch: Any, state: Any) -> tuple[Any, Any]:
    """Call a model on a batch's inputs from a state: `model(inputs, state)`.

    A batch with lengths is called as `model(inputs, state, lengths=lengths)`.

    Example:
        >>> from jaxrnn import training
        >>> training.carry_forward(lambda x, state: (x + state, state + 1), {"inputs": 2}, 3)
        (5, 4)
    """
    inputs, _, lengths = as_batch(batch)
    if lengths is None:
        return model(inputs, state)
    return model(inputs, state, lengths=lengths)


def segments(batch: Any, steps: int, *, axis: int = 1) -> Iterator[Any]:
    """Split every array of a batch along time into segments; the last one may be shorter.

    Args:
        batch: any pytree of arrays with the same number of steps.
        steps: number of steps in a segment.
        axis: axis of time.

    Raises:
        ValueError: for `steps` less than 1; for arrays that differ in their number of steps.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxrnn import training
        >>> [part.shape for part in training.segments(jnp.zeros((2, 7, 3)), 3)]
        [(2, 3, 3), (2, 3, 3), (2, 1, 3)]
    """
    counts = {leaf.shape[axis] for leaf in jax.tree.leaves(batch)}
    if steps < 1 or len(counts) != 1:
        raise ValueError(
            f"`segments(batch, steps={steps}, axis={axis})` needs steps of 1 or more and arrays "
            f"with equal numbers of steps, got {sorted(counts)}."
        )
    before = (slice(None),) * axis
    for start in range(0, counts.pop(), steps):
        part = (*before, slice(start, start + steps))
        yield jax.tree.map(lambda a, part=part: a[part], batch)


def tbptt(
    model: nnx.Module,
    optimizer: nnx.Optimizer,
    batches: Iterable[Any],
    state: Any = None,
    *,
    loss: Score = cross_entropy,
    metrics: Mapping[str, Score] | None = None,
    forward: CarryForward = carry_forward,
) -> Iterator[tuple[dict[str, Array], Any]]:
    """Truncated backpropagation through time: one training step for each segment in turn.

    Each segment starts from the final state of the previous one, and no gradient flows back across
    the boundary. With T steps per segment, gradients reach back at most T steps.

    Args:
        model: the model, in the mode to train in, called as `forward(model, batch, state)`.
        optimizer: an optimizer made for this model, as in `train_step`.
        batches: consecutive segments of the same rows; `segments` makes them.
        state: state before the first segment. None lets the model choose it, and compiles again for
            the second segment; `layer.initial_state(batch_size)` compiles once.
        loss, metrics: functions of the outputs and the batch, as in `train_step`.
        forward: function of the model, the batch and the state that returns the outputs and the
            next state. Pass the same function every time: a new one is compiled anew.

    Yields:
        The results of `train_step`, and the state after the segment. They stay on the device.

    Example:
        >>> import jax.numpy as jnp, jaxrnn, optax
        >>> from flax import nnx
        >>> from jaxrnn import training
        >>> gru = jaxrnn.GRU(2, 2, batch_first=True, rngs=nnx.Rngs(0))
        >>> optimizer = nnx.Optimizer(gru, optax.sgd(0.1), wrt=nnx.Param)
        >>> whole = {"inputs": jnp.ones((3, 8, 2)), "labels": jnp.zeros((3, 8), int)}
        >>> parts = training.segments(whole, 4)
        >>> for scores, state in training.tbptt(gru, optimizer, parts, gru.initial_state(3)):
        ...     print(state.shape, scores["loss"].shape)
        (1, 3, 2) ()
        (1, 3, 2) ()

    Source: Williams and Peng, "An Efficient Gradient-Based Algorithm for On-Line Training of
    Recurrent Network Trajectories", 1990.
    """
    step = _compiled(loss, named(metrics), forward)
    for batch in batches:
        scores, state = step(model, optimizer, as_arrays(batch), state)
        yield scores, state


@functools.lru_cache(maxsize=32)
def _compiled(
    loss: Score, metrics: tuple[tuple[str, Score], ...], forward: CarryForward
) -> Callable[..., tuple[dict[str, Array], Any]]:
    def of_outputs(score: Score) -> Score:
        return lambda outputs, batch: score(outputs[0], batch)

    @nnx.jit
    def step(
        model: nnx.Module, optimizer: nnx.Optimizer, batch: Any, state: Any
    ) -> tuple[dict[str, Array], Any]:
        scores, (_, after) = update(
            model,
            optimizer,
            batch,
            of_outputs(loss),
            tuple((name, of_outputs(metric)) for name, metric in metrics),
            lambda model, batch: forward(model, batch, state),
        )
        return scores, after

    return step
