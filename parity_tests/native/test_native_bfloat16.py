"""The CPU kernel in bfloat16: it converts the weights once a call."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from contract import needs_kernel
from jaxrnn import cells, native, strategies
from kernel_cases import arguments, calls, cotangents_for, value_and_gradients

pytestmark = needs_kernel


@pytest.mark.parametrize("projected", [False, True])
def test_bfloat16_is_float32_on_rounded_weights_and_inputs(projected):
    weights, x, carry = arguments(cells.lstm, (6, 3, 3, 5), jnp.float32, projected=projected)
    mask = jnp.arange(6)[:, None] < jnp.array([[6, 0, 4]])
    low = jax.tree.map(lambda w: w.astype(jnp.bfloat16), weights)
    if projected:  # as a layer's `dtype` leaves them
        low = low._replace(b_ih=weights.b_ih, b_hh=weights.b_hh)
    rounded = jax.tree.map(lambda w: w.astype(jnp.float32), low)
    seen = x.astype(jnp.bfloat16).astype(jnp.float32)
    cotangents = cotangents_for(x, carry)
    run = partial(value_and_gradients, strategies.Native(), cells.lstm, mask)
    results, (dweights, *others) = run((low, x, carry), cotangents)
    wanted, (of_weights, *rest) = run((rounded, seen, carry), cotangents)
    assert_equal = partial(jax.tree.map, np.testing.assert_array_equal)
    assert_equal((results, others), (wanted, rest))
    assert_equal(dweights, jax.tree.map(lambda d, w: d.astype(w.dtype), of_weights, low))


@pytest.mark.core
@pytest.mark.parametrize("option", ["dtype", "param_dtype"])
def test_layers_in_bfloat16_run_the_kernel(option):
    layer = jaxrnn.LSTM(3, 5, rngs=nnx.Rngs(0), **{option: jnp.bfloat16})
    x = jnp.ones((4, 2, 3), layer.weight_ih_l0[...].dtype)
    graph, state = nnx.split(layer)
    assert calls(lambda state, x: nnx.merge(graph, state)(x)[0], state, x) == [native.FORWARD]


def test_bfloat16_in_forward_mode_and_of_the_second_order():
    weights, x, carry = arguments(cells.gru, (4, 2, 3, 5), jnp.float32)
    low = jax.tree.map(lambda w: w.astype(jnp.bfloat16), weights)
    rounded = jax.tree.map(lambda w: w.astype(jnp.float32), low)

    def curvature(strategy, weights):
        along = jax.tree.map(jnp.ones_like, x)
        loss = lambda x: (strategy(cells.gru, weights, x, carry)[0] ** 2).sum()  # noqa: E731
        return jax.jvp(jax.grad(loss), (x,), (along,))

    x = x.astype(jnp.bfloat16).astype(jnp.float32)
    got, wanted = curvature(strategies.Native(), low), curvature(strategies.Scan(), rounded)
    # The cotangents of the inputs pass bfloat16.
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-2), got, wanted)
