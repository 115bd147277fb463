"""The strategies and cells that the tests of the contract take: a new strategy is one line here."""

import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import cells, native, strategies

BUILDS = native.load()
needs_kernel = pytest.mark.skipif(
    not BUILDS, reason="jaxrnn was installed without a C++ compiler: there is no CPU kernel"
)


@dataclasses.dataclass(frozen=True)
class Flipped:
    """A strategy that runs from the last step to the first, on flipped sequences."""

    inner: strategies.Strategy

    @property
    def capabilities(self):
        return self.inner.capabilities

    def __call__(self, cell, weights, x, carry, mask=None, *, precision=None):
        mask = None if mask is None else mask[::-1]
        options = {"precision": precision, "reverse": True}
        ys, last = self.inner(cell, weights, x[::-1], carry, mask, **options)
        return ys[::-1], last


# `jax.jit` for the plain side of a comparison. Few optimisations halve the time of compiling it.
jit_oracle = partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


class Case(NamedTuple):
    """A strategy, and the tests of the contract that are worth their compilation for it."""

    strategy: strategies.Strategy
    kernel: bool = False
    """Runs the compiled kernel."""
    variants: tuple[str, ...] | None = None
    """Of `test_strategies.VARIANTS`; None for all."""
    resets: bool = True
    reverse: bool = True
    products: bool = True
    """Its products are operations of JAX, and its answer is the sequential one."""
    devices: bool = True
    """Runs a GRU in the programs for several devices, each of which is a process of its own."""


# A strategy that is made of others adds the same to each cell's formulas.
FEW = ("gru", "lstm", "user", "gru without bias", "lstm with projection")
SWEEPS = {"burn_in": 1, "max_sweeps": 4}  # as many as chunks, so no answer is the sequential one

STRATEGIES = {
    "Reference": Case(strategies.Reference(), devices=False),  # the oracle itself
    "Scan": Case(strategies.Scan()),
    # Unrolling changes no formula.
    "Scan(unroll=3)": Case(
        strategies.Scan(unroll=3),
        variants=("gru", "lstm with projection"),
        resets=False,
        reverse=False,
        products=False,
        devices=False,
    ),
    "Native": Case(strategies.Native(), kernel=True, reverse=False, products=False),
    "Native, reversed": Case(
        Flipped(strategies.Native()), kernel=True, reverse=False, products=False, devices=False
    ),
    "Checkpoint": Case(strategies.Checkpoint(steps=4), variants=FEW),
    "Shooting": Case(
        strategies.Shooting(4, strategies.Scan(), **SWEEPS), variants=FEW, products=False
    ),
    "Shooting(Native)": Case(
        strategies.Shooting(4, strategies.Native(), **SWEEPS),
        kernel=True,
        variants=FEW,
        reverse=False,
        products=False,
        devices=False,
    ),
    "AssociativeScan": Case(
        strategies.AssociativeScan(), variants=("min_gru",), products=False, devices=False
    ),
}


def _leaky(carry, gx, gh):
    """A cell of a user's own: two states, and a carry that the output does not show."""
    h, slow = carry
    slow = 0.9 * slow + 0.1 * jnp.tanh(gx)
    return jnp.tanh(gh) * slow + 0.5 * h, slow


CELLS = {
    "rnn_tanh": cells.rnn_tanh,
    "rnn_relu": cells.rnn_relu,
    "gru": cells.gru,
    "lstm": cells.lstm,
    "user": cells.Cell("user", 1, 2, _leaky),
}


LINEAR = {"min_gru": cells.min_gru}


def cells_of(strategy):
    """The cells to test a strategy with, by its capabilities: linear ones if it runs no others."""
    able = strategy.capabilities
    tested = LINEAR if able.linear else CELLS
    return {n: c for n, c in tested.items() if able.cells is None or c in able.cells}


def runs(strategy, cell, projected=False):
    """Return True if a strategy has the capabilities for a cell and a projection."""
    able = strategy.capabilities.projections
    projects = not projected or able is None or cell in able
    return projects and cell in cells_of(strategy).values()


def marks(name):
    return [needs_kernel] if STRATEGIES[name].kernel else []


def case(name, *others, **options):
    """Parameters of a test: a strategy of the table, and others."""
    chosen = [*marks(name), *options.pop("marks", [])]
    return pytest.param(STRATEGIES[name].strategy, *others, marks=chosen, **options)


def each(names):
    return pytest.mark.parametrize("strategy", [case(name, id=name) for name in names])


def assert_close(got, wanted, tolerance=1e-13):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert g.shape == w.shape
        assert g.dtype == w.dtype
        np.testing.assert_allclose(g, w, rtol=tolerance, atol=tolerance)
