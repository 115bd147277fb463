"""`compare` of two JAX modules: what agrees, what does not, and what is refused."""

import jax
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn.interchange import flax_cells
from jaxrnn.testing import compare
from jaxrnn.testing.jax_pairs import pull_back

pytestmark = pytest.mark.core
X = np.random.default_rng(0).normal(size=(2, 5, 3))


def of_gru(params):
    return flax_cells.to_torch("GRUCell", params["cell"])


def pair(ours=None, weights=of_gru, call=lambda m, x: m(x)[0], **options):
    theirs = nnx.RNN(nnx.GRUCell(3, 4, rngs=nnx.Rngs(0)))
    ours = ours or jaxrnn.GRU(3, 4, batch_first=True, rngs=nnx.Rngs(1))
    return compare(theirs, ours, X, jax_call=call, weights=weights, **options)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_same_layer_in_two_libraries_agrees(dtype):
    report = pair(dtype=dtype)
    assert report.ok
    names = ["cell.dense_h.kernel", "cell.dense_i.bias", "cell.dense_i.kernel"]
    assert [row.name for row in report.rows] == ["output", "loss", *names, "input"]


def test_exchanged_gates_disagree():
    def exchanged(params):
        state = of_gru(params)
        r, z, n = np.split(state["weight_hh_l0"], 3)
        return state | {"weight_hh_l0": np.concatenate([z, r, n])}

    assert {row.name for row in pair(weights=exchanged).rows if not row.ok} >= {"output", "loss"}


def test_a_wrong_gradient_disagrees():
    def half(module, x):
        y = module(x)[0]
        w = module.weight_hh_l0[...]
        return y + (w.sum() - jax.lax.stop_gradient(w.sum()))

    wrong = {row.name for row in pair(call=half).rows if not row.ok}
    assert wrong == {"cell.dense_h.kernel"}


def test_modules_of_the_same_names_need_no_weights():
    first, second = (jaxrnn.LSTM(3, 4, rngs=nnx.Rngs(seed)) for seed in (0, 1))
    report = compare(first, second, X)
    assert report.ok
    assert "weight_hh_l0" in [row.name for row in report.rows]


def test_numbers_may_be_negated_and_shifted_but_not_computed():
    params = {"b": np.array([1.0, 2.0])}
    gradients = {"bias": np.array([3.0, 4.0])}
    found = pull_back(lambda p: {"bias": 1 - p["b"][::-1]}, params, gradients)
    np.testing.assert_array_equal(found["b"], [-4.0, -3.0])
    with pytest.raises(ValueError, match="computes 'bias' in another way"):
        pull_back(lambda p: {"bias": 0.5 * p["b"]}, params, gradients)


def test_what_a_pair_of_jax_modules_cannot_have_is_refused():
    with pytest.raises(ValueError, match="no `against`"):
        pair(dtype="float32", against="float64")
    with pytest.raises(ValueError, match="no `against`"):
        pair(dtype="bfloat16")
    with pytest.raises(ValueError, match="1 in the first module, 2 in the second"):
        pair(call=None)


@pytest.mark.needs("torch")
def test_weights_are_for_two_jax_modules():
    import torch

    with pytest.raises(ValueError, match="two JAX modules only"):
        compare(
            torch.nn.GRU(3, 4), jaxrnn.GRU(3, 4, rngs=nnx.Rngs(0)), X, weights=lambda params: params
        )
