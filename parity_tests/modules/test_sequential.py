"""Recurrent layers in `nnx.Sequential`, which unpacks the results of a layer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from kinds import rngs

KINDS = [jaxrnn.RNN, jaxrnn.GRU, jaxrnn.LSTM]
X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3, 4)), jnp.float32)


def refused(call):
    with pytest.raises(TypeError, match=r"`nnx.Sequential`.* `lambda y, h: y` .* `hx=h`"):
        call()


@pytest.mark.parametrize("first", KINDS)
@pytest.mark.parametrize("second", KINDS)
def test_a_layer_after_a_layer_is_refused(first, second):
    refused(lambda: nnx.Sequential(first(4, 4, rngs=rngs()), second(4, 4, rngs=rngs(1)))(X))


@pytest.mark.parametrize("cls", [jaxrnn.GRU, jaxrnn.LSTM])
def test_it_is_refused_in_every_form(cls):
    one = cls(4, 4, rngs=rngs())
    both = [cls(i, 4, bidirectional=True, batch_first=True, rngs=rngs()) for i in (4, 8)]
    low = [cls(4, 4, dtype=jnp.bfloat16, rngs=rngs(seed)) for seed in (0, 1)]
    refused(lambda: nnx.Sequential(one, one)(X))
    refused(lambda: nnx.Sequential(*both)(X))
    refused(lambda: nnx.Sequential(*low)(X))
    refused(lambda: nnx.Sequential(one, one)(X[:, 0]))
    refused(lambda: nnx.Sequential(nnx.Sequential(one), one)(X))
    refused(lambda: nnx.jit(nnx.Sequential(one, one))(X))
    refused(lambda: jax.jit(lambda m, x: m(x))(nnx.Sequential(one, one), X))
    refused(lambda: nnx.grad(lambda m: m(X)[0].sum())(nnx.Sequential(one, one)))
    refused(lambda: jax.vmap(nnx.Sequential(one, one))(X[None]))


def test_an_lstm_cells_pair_is_not_taken_for_input_and_state():
    first = jaxrnn.LSTMCell(4, 4, rngs=rngs())
    for second in (jaxrnn.RNNCell, jaxrnn.GRUCell, jaxrnn.LSTMCell, jaxrnn.GRU):
        refused(lambda: nnx.Sequential(first, second(4, 4, rngs=rngs(1)))(X[0, :1]))  # noqa: B023
    layer, cell = jaxrnn.GRU(4, 4, rngs=rngs()), jaxrnn.GRUCell(4, 4, rngs=rngs(1))
    refused(lambda: nnx.Sequential(layer, cell)(X[:1, 0]))


@pytest.mark.parametrize("cls", KINDS)
def test_output_only_layers_match_manual_stacking(cls):
    a, b = cls(4, 5, rngs=rngs()), cls(5, 4, rngs=rngs(1))
    head = nnx.Linear(4, 2, rngs=rngs(2))
    model = nnx.Sequential(a, lambda y, h: y, b, lambda y, h: y, head)
    wanted = head(b(a(X)[0])[0])
    np.testing.assert_array_equal(model(X), wanted)
    np.testing.assert_allclose(nnx.jit(model)(X), wanted, rtol=1e-6, atol=1e-7)


def test_cells_that_return_one_state_stack():
    a, b = jaxrnn.GRUCell(4, 5, rngs=rngs()), jaxrnn.RNNCell(5, 6, rngs=rngs(1))
    np.testing.assert_array_equal(nnx.Sequential(a, b)(X[0]), b(a(X[0])))


@pytest.mark.parametrize("cls", KINDS)
def test_states_are_still_passed_on_by_position(cls):
    a, b = cls(4, 4, rngs=rngs()), cls(4, 4, rngs=rngs(1))
    y, h = a(X)
    first, between = a(X[:2])
    second, _ = a(X[2:], between)
    np.testing.assert_allclose(jnp.concatenate([first, second]), y, rtol=1e-6, atol=1e-7)
    assert (b(X, h)[0] != b(X)[0]).any()  # a decoder that starts from the encoder's state
    assert (b(y, hx=h)[0] != b(y)[0]).any()


@pytest.mark.parametrize("cls", KINDS)
def test_the_first_layer_takes_a_state(cls):
    a = cls(4, 5, rngs=rngs())
    _, h = a(X[:2])
    model = nnx.Sequential(a, lambda y, h: y)
    np.testing.assert_array_equal(model(X[2:], h), a(X[2:], h)[0])


def test_an_output_and_its_state_go_back_into_a_layer():
    """A layer that generates: the results of one call, by position, in a user's own function."""
    layer = jaxrnn.GRU(4, 4, rngs=rngs())

    def generate(x, h):
        for _ in range(3):
            x, h = layer(x, h)
        return x

    x, h = layer(X[:1])
    wanted = layer(*layer(*layer(x, hx=h)))[0]
    np.testing.assert_array_equal(generate(x, h), wanted)
    np.testing.assert_allclose(jax.jit(generate)(x, h), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("transform", [nnx.jit, lambda f: jax.jit(f.__call__)])
def test_transformed_layers_are_refused(transform):
    a, b = jaxrnn.GRU(4, 4, rngs=rngs()), jaxrnn.LSTM(4, 4, rngs=rngs(1))
    refused(lambda: nnx.Sequential(transform(a), transform(b))(X))
    refused(lambda: nnx.Sequential(a, transform(b))(X))
    refused(lambda: nnx.Sequential(transform(a), b)(X))


class Block(nnx.Module):
    """A user's own layer, which returns new arrays."""

    def __init__(self, seed):
        self.gru = jaxrnn.GRU(4, 4, rngs=rngs(seed))

    def __call__(self, x, h=None):
        y, h = self.gru(x, h)
        return y * 1.0, h


def test_a_users_own_layers_pass_on_what_they_mean():
    block, b = Block(0), jaxrnn.GRU(4, 4, rngs=rngs(1))
    refused(lambda: nnx.Sequential(block, b)(X))
    refused(lambda: nnx.Sequential(nnx.jit(block), nnx.Sequential(b))(X))
    y, h = block(X)
    model = nnx.Sequential(block, lambda y, h: b(y, h))
    np.testing.assert_array_equal(model(X)[0], b(y, hx=h)[0])
    inner = nnx.Sequential(lambda y, h: y, b)
    np.testing.assert_array_equal(nnx.Sequential(block.gru, inner)(X)[0], b(y)[0])


@pytest.mark.parametrize(
    "after",
    [
        nnx.Linear(4, 2, rngs=nnx.Rngs(0)),
        nnx.LayerNorm(4, rngs=nnx.Rngs(0)),
        nnx.leaky_relu,
        nnx.elu,
        jnp.tanh,
        functools.partial(nnx.gelu, approximate=False),
    ],
)
def test_layers_of_flax_after_a_pair_are_refused(after):
    """An activation would take the state as its slope."""
    refused(lambda: nnx.Sequential(jaxrnn.GRU(4, 4, rngs=rngs()), after)(X))
    refused(lambda: nnx.Sequential(jaxrnn.LSTMCell(4, 4, rngs=rngs()), after)(X[0]))
