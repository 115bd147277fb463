"""`strategies.Checkpoint`: its memory, its errors, and chunks within `Shooting`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import cells, strategies
from jaxrnn.cells import Weights
from scripts import run_code

B, I, H = 3, 4, 5
WEIGHTS = Weights(ih=jnp.ones((4 * H, I)), hh=jnp.ones((4 * H, H)))
CARRY = (jnp.zeros((B, H)), jnp.zeros((B, H)))


def test_checkpoint_keeps_less_of_a_long_sequence():
    x = jnp.zeros((4000, B, I))

    def bytes_of(strategy):
        loss = lambda weights: (strategy(cells.lstm, weights, x, CARRY)[0] ** 2).sum()  # noqa: E731
        compiled = jax.jit(jax.grad(loss)).lower(WEIGHTS).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    scan = strategies.Scan()
    outputs = x.shape[0] * B * H * x.dtype.itemsize
    # The difference: on a GPU the products' library adds a workspace to both.
    assert bytes_of(strategies.Checkpoint(64, scan)) + 2 * outputs < bytes_of(scan)


def test_within_shooting_a_cell_keeps_its_parameters_gradients():
    def step(leak, carry, gx, gh):
        return (cells.spread(jax.nn.sigmoid(leak), gx) * carry[0] + jnp.tanh(gx + gh),)

    cell = cells.Cell("leaky", 1, 1, step)
    x = jnp.sin(jnp.arange(6.0 * B * I)).reshape(6, B, I)

    def loss(leak, strategy):
        weights = Weights(ih=0.3 * jnp.ones((H, I)), hh=0.1 * jnp.eye(H), cell=leak)
        return (strategy(cell, weights, x, CARRY[:1])[0] ** 2).sum()

    nested = strategies.Shooting(2, strategies.Checkpoint(2), max_sweeps=2)
    got, wanted = (jax.grad(loss)(jnp.ones(H), s) for s in (nested, strategies.Reference()))
    np.testing.assert_allclose(got, wanted, rtol=1e-12)


def test_a_number_of_steps_below_one_or_unknown_is_refused():
    with pytest.raises(ValueError, match="needs steps >= 1, got 0"):
        strategies.Checkpoint(0)
    (t,) = jax.export.symbolic_shape("t")
    run = jax.jit(lambda x: strategies.Checkpoint(4)(cells.lstm, WEIGHTS, x, CARRY)[0])
    with pytest.raises(ValueError, match="needs a number of steps that is known, got t"):
        jax.export.export(run)(jax.ShapeDtypeStruct((t, B, I), jnp.float64))


# In a process of its own: in this one the types in annotations are checked before the strategy's.
WRONG_TYPES = """
from jaxrnn.strategies import Checkpoint, Scan
for make, told in [
    (lambda: Checkpoint(2.5), "an int, got 2.5"),
    (lambda: Checkpoint(4, Scan), "a strategy, "),
]:
    try:
        make()
    except TypeError as error:
        assert f"needs {told}" in str(error), error
    else:
        raise AssertionError(told)
"""

# In a process of its own, for the same reason.
NUMBERS = """
import jax.numpy as jnp, numpy as np
from jaxrnn import cells, strategies
weights = cells.Weights(jnp.ones((12, 3)), jnp.ones((12, 4)))
mask = jnp.array([[1, 1], [1, 0], [1, 0], [0, 0]])
call = cells.gru, weights, jnp.ones((4, 2, 3)), (jnp.zeros((2, 4)),)
wanted, _ = strategies.Checkpoint(2)(*call, mask.astype(bool))
for dtype in (jnp.int32, jnp.float32):
    np.testing.assert_allclose(strategies.Checkpoint(2)(*call, mask.astype(dtype))[0], wanted)
"""


def test_a_mask_of_numbers_is_one_of_booleans():
    done = run_code(NUMBERS)
    assert done.returncode == 0, done.stderr


def test_options_of_the_wrong_type_take_one_sentence():
    done = run_code(WRONG_TYPES)
    assert done.returncode == 0, done.stderr


def test_vmap_over_the_gradient_of_inputs_alone():
    """Rows of several members must not be merged: what is kept between chunks has other axes."""
    weights = cells.Weights(ih=jnp.ones((4, 3)), hh=0.1 * jnp.eye(4))
    x = jnp.linspace(-1.0, 1.0, 3 * 5 * 2 * 3).reshape(3, 5, 2, 3)

    def gradients(strategy):
        def loss(x):
            return (strategy(cells.rnn_tanh, weights, x, (jnp.zeros((2, 4)),))[0] ** 2).sum()

        return jax.jit(jax.vmap(jax.grad(loss)))(x)

    wanted = gradients(strategies.Scan())
    for chunked in (strategies.Checkpoint(2, strategies.Scan()), strategies.Shooting(2)):
        np.testing.assert_allclose(gradients(chunked), wanted, rtol=1e-12, atol=1e-12)
