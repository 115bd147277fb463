"""The strategies and cells that the tests of the contract take: a new strategy is one line here."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
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

STRATEGIES = {
    "Reference": strategies.Reference(),
    "Scan": strategies.Scan(),
    "Scan(unroll=3)": strategies.Scan(unroll=3),
    "Native": strategies.Native(),
    "Native, reversed": Flipped(strategies.Native()),
    "Checkpoint": strategies.Checkpoint(steps=4),
    # With as many sweeps as chunks, so that no answer is the sequential one.
    "Shooting": strategies.Shooting(4, strategies.Scan(), burn_in=1, max_sweeps=4),
    "Shooting(Native)": strategies.Shooting(4, strategies.Native(), burn_in=1, max_sweeps=4),
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


def marks(name):
    return [needs_kernel] if "Native" in name else []


def each(names):
    cases = [pytest.param(STRATEGIES[name], id=name, marks=marks(name)) for name in names]
    return pytest.mark.parametrize("strategy", cases)


def runs_the_kernel(strategy):
    return isinstance(getattr(strategy, "inner", strategy), strategies.Native)


def skip_if_refused(strategy, cell, projected=False):
    """Native refuses what it does not run; another test checks that."""
    if runs_the_kernel(strategy) and (cell is CELLS["user"] or projected):
        pytest.skip("Native runs PyTorch's cells, without projections")
