"""Zoneout: states that keep their value at random, or in expectation.

    carry' = m carry + (1 - m) cell(carry, gx, gh),    m ~ Bernoulli(rate), for each unit and step

Source: Krueger et al., "Zoneout: Regularizing RNNs by Randomly Preserving Hidden
Activations", 2017.
"""

import functools
from typing import Any

import jax.numpy as jnp
from jax import Array

from jaxrnn.cells.base import Carry, Cell, advance, is_pure, pure


@functools.lru_cache
def with_masks(cell: Cell, held: tuple[bool, ...]) -> Cell:
    """The cell with a mask for each state that `held` names, in the features that follow gx's own.

    Where a mask is not 0 the state keeps its value.
    """

    def step(params: Any, carry: Carry, gx: Array, gh: Array) -> Carry:
        hidden = gx.shape[-1] // (cell.gates + sum(held))
        own = cell.gates * hidden
        masks = iter(jnp.split(gx[..., own:], sum(held), axis=-1))
        new = advance(cell, params, carry, gx[..., :own], gh)
        pairs = zip(held, new, carry, strict=True)
        return tuple(jnp.where(next(masks) != 0, old, n) if k else n for k, n, old in pairs)

    return _changed(cell, f"{cell.name} with zoneout", step)


@functools.lru_cache
def in_expectation(cell: Cell, rates: tuple[float, ...]) -> Cell:
    """The cell with each state between its old value and the new one, by the rate: evaluation."""

    def step(params: Any, carry: Carry, gx: Array, gh: Array) -> Carry:
        new = advance(cell, params, carry, gx, gh)
        return tuple(r * o + (1 - r) * n for r, o, n in zip(rates, carry, new, strict=True))

    return _changed(cell, f"{cell.name} with expected zoneout", step)


def _changed(cell: Cell, name: str, step: Any) -> Cell:
    def without(carry: Carry, gx: Array, gh: Array) -> Carry:
        return step((), carry, gx, gh)

    def either(*args: Any) -> Carry:
        return step(*args) if len(args) == 4 else without(*args)

    run = pure(either) if is_pure(cell) else either
    return cell._replace(name=name, step=run, additive=False, linear=None)
