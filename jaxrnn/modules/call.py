"""The call of a stack of layers as a function of arrays, compiled once for its shapes."""

import dataclasses
import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxrnn import layers, strategies
from jaxrnn.cells import Carry, Cell, Weights, is_pure, zoneout
from jaxrnn.modules.base import carry_dtype, cast_weights
from jaxrnn.modules.noise import Masks, Noise, Rates
from jaxrnn.strategies import Strategy
from jaxrnn.strategies.rounding import outputs_in_bfloat16, rounding


class Form(NamedTuple):
    """Everything about a call that is no array. `rates` are all 0 in evaluation."""

    cell: Cell
    sizes: tuple[int, ...]
    dtype: jnp.dtype
    batch_first: bool
    rates: Rates
    strategy: Strategy | None
    precision: lax.PrecisionLike


class CallArrays(NamedTuple):
    """The arrays of a call besides the weights and the inputs, None for what is not given."""

    states: Carry | None = None
    lengths: Array | None = None
    resets: Array | None = None
    keys: tuple[Array, ...] = ()
    masks: Masks | None = None


def run_layers(
    form: Form, weights: Sequence[Sequence[Weights]], x: Array, given: CallArrays
) -> tuple[Array, Carry]:
    """`layers.stack` in PyTorch's layouts, with the casts, initial states and masks around it.

    `Weights.initial` is one state here, arrays (·,), or None for zeros.
    """
    batched = x.ndim == 3
    resets = given.resets
    if not batched:
        x, resets = x[:, None], None if resets is None else resets[:, None]
    elif form.batch_first:
        x, resets = x.swapaxes(0, 1), None if resets is None else resets.swapaxes(0, 1)
    steps, batch = x.shape[:2]
    wide = carry_dtype(form.dtype)
    directions = len(weights[0])
    noise = Noise(form.rates, form.rates.keys(len(weights), directions), given.keys, given.masks)

    def start(w: Weights) -> Carry:
        if w.initial is None:
            return tuple(jnp.zeros((batch, size), wide) for size in form.sizes)
        return tuple(jnp.broadcast_to(s.astype(wide), (batch, s.shape[0])) for s in w.initial)

    def prepared(w: Weights, number: int) -> Weights:
        # A carry that is given is not the state that a reset leads to.
        apart = resets is not None and given.states is not None
        w = cast_weights(w._replace(initial=start(w) if apart else None), dtype)
        return noise.weights(w, number, batch, wide)

    if given.states is None:
        each = [start(w) for sides in weights for w in sides]
        carry = tuple(jnp.stack(states) for states in zip(*each, strict=True))
    else:
        carry = tuple((s if batched else s[:, None]).astype(wide) for s in given.states)
    numbers, gaps = itertools.count(), itertools.count()
    cell: Cell = form.cell
    strategy: Strategy | Callable[..., tuple[Array, Carry]] | None = form.strategy
    held = tuple(rate > 0 for rate in form.rates.zoneout)
    dtype = form.dtype
    if any(held):
        cell = zoneout.with_masks(cell, held)
        strategy = _masking(strategy, noise, steps, form.sizes)
    elif dtype == jnp.bfloat16 and weights[0][0].ih.dtype == wide and not form.rates.recurrent:
        all_round = [rounding(form.strategy, cell, w, x, carry) for sides in weights for w in sides]
        if None not in all_round:
            strategy, dtype = all_round[0], wide
    ys, last = layers.stack(
        cell,
        [[prepared(w, next(numbers)) for w in sides] for sides in weights],
        noise.input(x.astype(dtype)),
        carry,
        given.lengths,
        resets=resets,
        strategy=strategy,
        precision=form.precision,
        between=(lambda y: noise.between(y, next(gaps))) if form.rates.between else None,
    )
    ys = ys.astype(form.dtype) if dtype == form.dtype else outputs_in_bfloat16(ys)
    if not batched:
        return ys[:, 0], tuple(s[:, 0] for s in last)
    return (ys.swapaxes(0, 1) if form.batch_first else ys), last


def _masking(
    strategy: Any, noise: Noise, steps: int, sizes: Sequence[int]
) -> Callable[..., tuple[Array, Carry]]:
    """The strategy, with each direction's masks of zoneout behind its inputs."""
    numbers = itertools.count()

    def run(cell: Cell, weights: Weights, x: Array, carry: Carry, *rest: Any, **options: Any):
        masks = noise.zoneout(next(numbers), steps, x.shape[1], sizes)
        x = jnp.concatenate([x, *(m.astype(x.dtype) for m in masks)], axis=-1)
        inner = strategy or strategies.default(cell, weights, x, carry)
        return inner(cell, weights, x, carry, *rest, **options)

    return run


_compiled = jax.jit(run_layers, static_argnames="form")
"""One program for the whole call, so that a new T or B compiles once outside `jax.jit` too."""


def runner(cell: Cell, strategy: Strategy | None) -> Callable[..., tuple[Array, Carry]]:
    """The compiled call, for a pure cell and a strategy that is a value, a frozen dataclass.

    A function may close over what changes between calls, so it is called every time.
    """
    value = dataclasses.is_dataclass(strategy) and isinstance(strategy, Hashable)
    return _compiled if is_pure(cell) and (strategy is None or value) else run_layers
