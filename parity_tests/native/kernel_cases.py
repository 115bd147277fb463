"""Cells, arguments and comparisons that the tests of the CPU kernel share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from contract import BUILDS
from jaxrnn import cells, native
from jaxrnn.cells import Weights

CELLS = [cells.rnn_tanh, cells.rnn_relu, cells.lstm, cells.gru]
every_layer = pytest.mark.parametrize(
    ("cell", "projected"),
    [*((c, False) for c in CELLS), (cells.lstm, True)],
    ids=[*(c.name for c in CELLS), "projected lstm"],
)
every_build = pytest.mark.parametrize("build", BUILDS)


def arguments(cell, shape, dtype, *, bias=True, projected=False, seed=0):
    steps, batch, inputs, hidden = shape
    rng = np.random.default_rng(seed)
    rows, outputs = cell.gates * hidden, (hidden + 1) // 2 if projected else hidden

    def draw(*size, scale=0.5):
        return jnp.asarray(scale * rng.standard_normal(size), dtype)

    weights = Weights(
        draw(rows, inputs),
        draw(rows, outputs, scale=hidden**-0.5),
        draw(rows) if bias else None,
        draw(rows) if bias else None,
        draw(outputs, hidden, scale=hidden**-0.5) if projected else None,
    )
    carry = (draw(batch, outputs), *(draw(batch, hidden) for _ in range(cell.states - 1)))
    return weights, draw(steps, batch, inputs), carry


def cotangents_for(x, carry):
    """Random cotangents of the outputs and of the last carry."""
    rng = np.random.default_rng(5)
    shapes = (*x.shape[:2], carry[0].shape[1]), tuple(c.shape for c in carry)
    draw = lambda shape: rng.standard_normal(shape).astype(x.dtype)  # noqa: E731
    return draw(shapes[0]), tuple(map(draw, shapes[1]))


def value_and_gradients(strategy, cell, mask, args, cotangents):
    outputs, pull = jax.vjp(lambda *a: strategy(cell, *a, mask), *args)
    return outputs, pull(cotangents)


def assert_close(got, wanted, tolerance):
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(g, w, rtol=tolerance, atol=tolerance * (1 + np.abs(w).max()))


def calls(run, *args):
    """Number of kernel calls in the compiled program of a function."""
    text = jax.jit(run).lower(*args).compile().as_text()
    return [name for name in (native.FORWARD, native.ADJOINT) if f'"{name}"' in text]


def stacked(count, shape, seed=0):
    several = [arguments(cells.lstm, shape, jnp.float32, seed=seed + k) for k in range(count)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
