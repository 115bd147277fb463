"""Flax's initialisers and metadata in the layers; PyTorch's are tested in test_modules.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import cells

I, H = 3, 8
init = nnx.initializers


def test_each_gate_of_the_recurrent_matrix_is_orthogonal():
    lstm = jaxrnn.LSTM(I, H, 2, recurrent_init=init.orthogonal(), rngs=nnx.Rngs(0))
    parts = jnp.split(lstm.weight_hh_l1[...], 4)
    for w in parts:
        np.testing.assert_allclose(w @ w.T, jnp.eye(H), atol=1e-6)
    assert (parts[0] != parts[1]).any()


def test_a_kernels_fan_in_is_the_number_of_inputs():
    gru = jaxrnn.GRU(400, 50, kernel_init=init.lecun_normal(), rngs=nnx.Rngs(0))
    assert float(gru.weight_ih_l0[...].std()) == pytest.approx(400**-0.5, rel=0.05)
    # The other parameters keep PyTorch's distribution.
    assert float(abs(gru.weight_hh_l0[...]).max()) == pytest.approx(50**-0.5, rel=0.05)
    lstm = jaxrnn.LSTM(I, 400, proj_size=50, kernel_init=init.lecun_normal(), rngs=nnx.Rngs(0))
    assert float(lstm.weight_hr_l0[...].std()) == pytest.approx(400**-0.5, rel=0.05)


KEEPING = "lstm", "peephole_lstm", "coupled_lstm", "gru", "reset_before_gru", "janet", "light_gru"


@pytest.mark.parametrize("name", KEEPING)
def test_an_open_forget_gate_keeps_the_state(name):
    cell = getattr(cells, name)
    zero = dict.fromkeys(["kernel_init", "bias_init"], init.zeros)
    if cell.recurrent:
        zero["recurrent_init"] = init.zeros
    layer = jaxrnn.Recurrent(cell, I, H, forget_bias=50.0, **zero, rngs=nnx.Rngs(0))
    start = jnp.full((1, 2, H), 0.7, jnp.float32)
    state = start if cell.states == 1 else (start,) * cell.states
    last = jax.tree.leaves(layer(jnp.ones((3, 2, I), jnp.float32), state)[1])
    np.testing.assert_allclose(last[-1], start, rtol=1e-6)


@pytest.mark.parametrize(("cls", "gate"), [(jaxrnn.LSTM, 1), (jaxrnn.GRU, 1)])
def test_forget_bias_sets_the_sum_of_both_biases(cls, gate):
    layer = cls(I, H, bias_init=init.constant(3.0), forget_bias=1.0, rngs=nnx.Rngs(0))
    total = jnp.split(
        layer.bias_ih_l0[...] + layer.bias_hh_l0[...], cls(I, H, rngs=nnx.Rngs(0)).cell.gates
    )
    for k, part in enumerate(total):
        assert (part == (1.0 if k == gate else 6.0)).all()


def test_metadata_of_parameters():
    layer = jaxrnn.LSTM(
        I,
        H,
        proj_size=2,
        kernel_metadata={"role": "in"},
        recurrent_kernel_metadata={"role": "recurrent"},
        bias_metadata={"role": "bias"},
        rngs=nnx.Rngs(0),
    )
    roles = {"weight_ih": "in", "weight_hh": "recurrent", "bias_ih": "bias", "bias_hh": "bias"}
    for name, role in (roles | {"weight_hr": "in"}).items():
        assert getattr(layer, f"{name}_l0").get_metadata()["role"] == role


@pytest.mark.parametrize(
    ("cell", "options", "said"),
    [
        (cells.rnn_tanh, {"forget_bias": 1.0}, "cell 'rnn_tanh', which has no forget gate"),
        (cells.lstm, {"forget_bias": 1.0, "bias": False}, "impossible with bias=False"),
        (cells.min_gru, {"recurrent_init": init.orthogonal()}, "multiplies no h for the cell"),
        (cells.lstm, {"kernel_init": "orthogonal"}, "needs an initialiser, such as"),
    ],
)
def test_options_without_a_parameter_are_refused(cell, options, said):
    with pytest.raises((ValueError, TypeError), match=said):
        jaxrnn.Recurrent(cell, I, H, **options, rngs=nnx.Rngs(0))
