"""Truncated backpropagation through time: states continue, gradients stay within a segment."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import training

B, T, S, I, H = 2, 9, 3, 2, 4
X = jnp.asarray(np.random.default_rng(0).standard_normal((B, T, I)), jnp.float32)
LABELS = jnp.asarray(np.random.default_rng(1).integers(0, H, (B, T)))


def model_and_optimizer():
    gru = jaxrnn.GRU(I, H, batch_first=True, rngs=nnx.Rngs(0))
    return gru, nnx.Optimizer(gru, optax.sgd(0.5), wrt=nnx.Param)


def test_segments_continue_the_state_without_gradients():
    ours, optimizer = model_and_optimizer()
    by_hand, _ = model_and_optimizer()
    batch = {"inputs": X, "labels": LABELS}
    state = ours.initial_state(B)
    run = training.tbptt(
        ours, optimizer, training.segments(batch, S), state, metrics={"right": training.accuracy}
    )
    wanted_state = state
    for k, (scores, got) in enumerate(run):
        part = slice(k * S, (k + 1) * S)

        def loss(model, state, part=part):
            output, last = model(X[:, part], state)
            cross = optax.softmax_cross_entropy_with_integer_labels(output, LABELS[:, part])
            return cross.mean(), last

        (value, wanted_state), grads = nnx.value_and_grad(loss, has_aux=True)(by_hand, wanted_state)
        for param, grad in zip(
            jax.tree.leaves(nnx.state(by_hand)), jax.tree.leaves(grads), strict=True
        ):
            assert param.shape == grad.shape
        new = jax.tree.map(lambda p, g: p - 0.5 * g, nnx.state(by_hand), grads)
        nnx.update(by_hand, new)
        np.testing.assert_allclose(scores["loss"], value, rtol=1e-5)
        np.testing.assert_allclose(got, wanted_state, atol=1e-5)
        assert set(scores) == {"loss", "right"}
    assert k == 2
    for name, value in jaxrnn.state_dict(by_hand).items():
        np.testing.assert_allclose(jaxrnn.state_dict(ours)[name], value, atol=1e-5)


def test_segments_of_a_pytree_and_invalid_arguments():
    parts = list(training.segments({"x": X, "y": LABELS}, 4))
    assert [p["x"].shape for p in parts] == [(B, 4, I), (B, 4, I), (B, 1, I)]
    np.testing.assert_array_equal(jnp.concatenate([p["y"] for p in parts], 1), LABELS)
    with pytest.raises(ValueError, match="arrays with equal numbers of steps"):
        list(training.segments((X, X[:, :4]), 2))
    with pytest.raises(ValueError, match="needs steps of 1 or more"):
        list(training.segments(X, 0))
