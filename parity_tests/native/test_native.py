"""CPU kernel: odd sizes, every instruction set, accuracy of its functions, and what it refuses."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrnn
from contract import BUILDS, needs_kernel
from jaxrnn import cells, strategies
from jaxrnn.cells import Weights
from kernel_cases import (
    arguments,
    assert_close,
    cotangents_for,
    every_build,
    every_layer,
    value_and_gradients,
)

pytestmark = needs_kernel
# T, B, I, H: one unit, partial vectors, several panels, several blocks of rows; the first and the
# last have so few rows that the kernel reads the weights in place. Then shapes that use several
# threads, which divide the rows, or the units if there are few rows and many weights.
SHAPES = [(5, 1, 3, 1), (4, 7, 1, 3), (7, 5, 3, 17), (4, 7, 2, 63), (6, 3, 33, 100), (2, 4, 9, 37)]
THREADED = [(40, 30, 33, 100), (60, 2, 16, 260), (2, 4, 400, 257)]


def expected(run, mask, args, cotangents, *, reverse):
    """The results of `run`, a program with biases, a mask and one direction, for any arguments.

    No bias is a bias of zeros, no mask is one of ones, and the reverse direction is a flip.
    """
    flip = (lambda a: a[::-1]) if reverse else lambda a: a
    weights, x, carry = jax.tree.map(np.asarray, args)
    mask = np.ones(x.shape[:2], bool) if mask is None else mask
    zeros, bias = np.zeros(weights.hh.shape[0], x.dtype), weights.b_ih is not None
    full = weights if bias else weights._replace(b_ih=zeros, b_hh=zeros)
    seeds = flip(cotangents[0]), cotangents[1]
    (ys, last), (dweights, dx, dcarry) = run(flip(mask), (full, flip(x), carry), seeds)
    dweights = dweights if bias else dweights._replace(b_ih=None, b_hh=None)
    return (flip(np.asarray(ys)), last), (dweights, flip(np.asarray(dx)), dcarry)


def compare(build, cell, shape, dtype, tolerance, *, projected):
    """Compares with `Scan` in both directions, without a mask and with lengths from 0 to T."""
    steps, batch = shape[:2]
    rng = np.random.default_rng(1)
    lengths = rng.permutation([*rng.integers(0, steps + 1, max(0, batch - 2)), 0, steps][-batch:])
    prefix = np.arange(steps)[:, None] < lengths[None]
    scan = jax.jit(partial(value_and_gradients, strategies.Scan(), cell))
    for bias, mask, reverse in [
        (True, prefix, False),
        (False, None, False),
        (True, None, True),
        (False, prefix, True),
    ]:
        args = arguments(cell, shape, dtype, bias=bias, projected=projected)
        kernel = partial(strategies.Native(build), reverse=reverse)
        run = jax.jit(partial(value_and_gradients, kernel, cell))
        call = mask, args, cotangents_for(*args[1:])
        assert_close(run(*call), expected(scan, *call, reverse=reverse), tolerance)


@pytest.mark.parametrize("shape", SHAPES + THREADED, ids=str)
@every_layer
def test_odd_sizes_match_scan_in_float64(cell, projected, shape):
    tolerance = 3e-13 if shape in THREADED else 5e-14
    compare(None, cell, shape, jnp.float64, tolerance, projected=projected)


@pytest.mark.parametrize("shape", [SHAPES[2], THREADED[1]], ids=str)
@every_layer
def test_odd_sizes_match_scan_in_float32(cell, projected, shape):
    compare(None, cell, shape, jnp.float32, 3e-5, projected=projected)


@pytest.mark.core
@pytest.mark.parametrize("build", BUILDS[1:])
@every_layer
def test_every_instruction_set(cell, projected, build):
    compare(build, cell, SHAPES[2], jnp.float64, 5e-14, projected=projected)
    compare(build, cell, (3, 9, 5, 24), jnp.float32, 3e-5, projected=projected)
    compare(build, cell, (2, 4, 9, 37), jnp.float32, 3e-5, projected=projected)


@pytest.mark.parametrize("build", BUILDS)
def test_the_instruction_set_that_is_named_is_the_one_that_runs(build):
    args = arguments(cells.gru, (4, 2, 3, 5), jnp.float32)
    program = jax.jit(partial(strategies.Native(build), cells.gru)).lower(*args).as_text()
    assert f"build = {BUILDS.index(build)} : i32" in program


def functions(build, x):
    """tanh and the logistic function of x, taken from one step of a tanh RNN and of a GRU."""
    n = x.size
    zeros, ones = jnp.zeros((1, n), x.dtype), jnp.ones((1, n), x.dtype)
    run = strategies.Native(build)

    def bias(*gates):
        return Weights(
            jnp.zeros((len(gates) * n, 1), x.dtype),
            jnp.zeros((len(gates) * n, n), x.dtype),
            jnp.concatenate(gates),
        )

    step = jnp.zeros((1, 1, 1), x.dtype)
    tanh = run(cells.rnn_tanh, bias(x), step, (zeros,))[0]
    z = run(cells.gru, bias(zeros[0], x, zeros[0]), step, (ones,))[0]  # h = (1 - z) 0 + z 1
    return np.asarray(tanh).ravel(), np.asarray(z).ravel()


@every_build
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_functions_are_accurate_to_the_last_places(build, dtype):
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [rng.uniform(-20, 20, 300), rng.uniform(-1, 1, 300), 10.0 ** rng.uniform(-30, 0, 100)]
    ).astype(dtype)
    wide = x.astype(np.longdouble)
    got = functions(build, jnp.asarray(x))
    for values, exact in zip(got, (np.tanh(wide), 1 / (1 + np.exp(-wide))), strict=True):
        assert (np.abs(values - exact) <= 4 * np.spacing(np.abs(exact.astype(dtype)))).all()


@pytest.mark.core
@every_build
def test_functions_at_extreme_arguments(build):
    x = jnp.asarray([0.0, -0.0, np.inf, -np.inf, np.nan, 1e30, -1e30, 500.0, -500.0], jnp.float32)
    tanh, logistic = functions(build, x)
    np.testing.assert_array_equal(tanh, [0, 0, 1, -1, np.nan, 1, -1, 1, -1])
    np.testing.assert_allclose(logistic, [0.5, 0.5, 1, 0, np.nan, 1, 0, 1, 0], atol=1e-37)


@every_layer
def test_nan_and_infinity_propagate_as_in_scan(cell, projected):
    weights, x, carry = arguments(cell, (6, 4, 3, 5), jnp.float32, projected=projected)
    x = x.at[2, 1, 0].set(np.nan).at[3, 2, 1].set(np.inf).at[4, 3, 2].set(-np.inf)
    (got, _), (wanted, _) = (
        strategy(cell, weights, x, carry) for strategy in (strategies.Native(), strategies.Scan())
    )
    np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.core
def test_unsupported_arguments_raise_one_sentence():
    run = strategies.Native()
    weights, x, carry = arguments(cells.lstm, (2, 2, 3, 4), jnp.float32)
    with pytest.raises(jaxrnn.InputError, match=r"not own; strategies.Scan runs every cell"):
        run(cells.lstm._replace(name="own"), weights, x, carry)
    projected = Weights(weights.ih[:4], weights.hh[:4, :2], hr=jnp.ones((2, 4), jnp.float32))
    with pytest.raises(jaxrnn.InputError, match=r"does not project rnn_tanh .*Scan does\."):
        run(cells.rnn_tanh, projected, x, (carry[0][:, :2],))
    low = weights._replace(ih=weights.ih.astype(jnp.bfloat16))
    with pytest.raises(jaxrnn.InputError, match=r"float32 or in float64, not in bfloat16, float32"):
        run(cells.lstm, low, x, carry)
    matrices = weights._replace(hh=weights.hh.astype(jnp.bfloat16), ih=low.ih)
    narrow = tuple(c.astype(jnp.bfloat16) for c in carry)
    assert run.refusal(cells.lstm, matrices, x, carry) == ""
    for state in (narrow, (carry[0], narrow[1])):
        assert "not in bfloat16, float32" in run.refusal(cells.lstm, matrices, x, state)
    with pytest.raises(jaxrnn.InputError, match="no build 'sse1' for this machine, only"):
        strategies.Native("sse1")


@pytest.mark.core
@pytest.mark.parametrize(
    ("steps", "served"), [(2**31 - 1, True), (2**31, False), (2**32 - 1, False)]
)
def test_the_number_of_steps_is_limited_to_31_bits(steps, served):
    """`jax.eval_shape` allocates nothing."""
    weights, x, carry = arguments(cells.lstm, (1, 1, 1, 1), jnp.float32)
    long = jax.ShapeDtypeStruct((steps, 1, 1), x.dtype)
    run = partial(jax.eval_shape, partial(strategies.Native(), cells.lstm), weights, long, carry)
    if served:
        assert run()[0].shape == (steps, 1, 1)
    else:
        with pytest.raises(jaxrnn.InputError, match=r"T \* B below 2\*\*31"):
            run()
