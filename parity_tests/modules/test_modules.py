"""Parameters, dtypes, strategies and inputs of the modules."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxrnn
from jaxrnn import strategies
from kinds import CELLS, LAYERS, rngs

F32 = jnp.float32


@pytest.mark.parametrize("cls", LAYERS + CELLS)
@pytest.mark.parametrize("bias", [True, False])
def test_parameters_have_pytorchs_names_shapes_and_distribution(cls, bias):
    options = {"num_layers": 2, "bidirectional": True} if cls in LAYERS else {}
    if cls is jaxrnn.LSTM:
        options["proj_size"] = 7
    theirs = getattr(torch.nn, cls.__name__)(30, 40, bias=bias, **options)
    ours = cls(30, 40, bias=bias, **options, rngs=rngs())
    state = jaxrnn.state_dict(ours)
    assert {k: v.shape for k, v in state.items()} == {
        k: tuple(v.shape) for k, v in theirs.state_dict().items()
    }
    bound = 1 / np.sqrt(40)
    for value in state.values():
        assert value.dtype == np.float32
        assert np.abs(value).max() <= bound
        if value.size > 1000:  # uniform: its standard deviation is bound / sqrt(3)
            assert np.abs(value).max() > 0.98 * bound
            np.testing.assert_allclose(value.std(), bound / np.sqrt(3), rtol=0.1)
    for a, b in zip(state.values(), list(state.values())[1:], strict=False):
        assert a.shape != b.shape or (a != b).any()


@pytest.mark.parametrize("cls", LAYERS)
@pytest.mark.parametrize("low", [jnp.bfloat16, jnp.float16])
def test_low_precision_returns_low_outputs_and_wide_states(cls, low):
    module = cls(3, 5, num_layers=2, dtype=low, rngs=rngs())
    wide = cls(3, 5, num_layers=2, rngs=rngs())
    x = jax.random.normal(jax.random.key(0), (6, 4, 3), jnp.float32)
    output, state = module(x)
    assert output.dtype == low
    assert {s.dtype for s in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}
    scan = cls(3, 5, num_layers=2, dtype=low, strategy=strategies.Scan(), rngs=rngs())
    text = str(jax.make_jaxpr(scan)(x))
    products = re.findall(
        r"(\w+)\[[^]]*\] = dot_general\[.*?preferred_element_type=(\w+)", text, re.S
    )
    assert {preferred for _, preferred in products} == {"float32"}
    wanted, _ = wide(x)
    np.testing.assert_allclose(output.astype(jnp.float32), wanted, atol=2e-2)
    # In chunks with the state carried over, a sequence is the whole up to the rounding of float32.
    first, between = module(x[:2])
    second, last = module(x[2:], between)
    chunks = jnp.concatenate([first, second]).astype(jnp.float32)
    np.testing.assert_allclose(chunks, output.astype(jnp.float32), rtol=2 * jnp.finfo(low).eps)
    for got, wanted in zip(jax.tree.leaves(last), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-3)


@pytest.mark.parametrize("low", [jnp.bfloat16, jnp.float16])
def test_parameters_in_low_precision(low):
    module = jaxrnn.LSTM(3, 5, param_dtype=low, rngs=rngs())
    x = jnp.ones((6, 4, 3), low)
    output, (h, c) = jax.eval_shape(module, x)
    assert (output.dtype, h.dtype, c.dtype) == (low, jnp.float32, jnp.float32)
    assert jax.eval_shape(module, x, (h, c))[0].dtype == low  # the wide state goes on
    cell = jaxrnn.GRUCell(3, 5, param_dtype=low, rngs=rngs())
    assert jax.eval_shape(cell, x[0]).dtype == jnp.float32
    grads = jax.eval_shape(jax.grad(lambda m: m(x)[0].astype(jnp.float32).sum()), module)
    assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype(low)}


@pytest.mark.parametrize("cls", CELLS)
def test_dtype_and_precision_of_the_cells(cls):
    cell = cls(3, 5, dtype=jnp.bfloat16, precision="highest", rngs=rngs())
    wide = cls(3, 5, rngs=rngs())
    x = jax.random.normal(jax.random.key(0), (4, 3), F32)
    text = str(jax.make_jaxpr(cell)(x))
    products = re.findall(r"dot_general\[(.*?)\] (\w+) ", text, re.S)
    assert len(products) == 2
    for options, _ in products:
        assert "HIGHEST" in options
        assert "preferred_element_type=float32" in options
    assert "bf16[4,3]" in text  # both operands are rounded
    assert "bf16[4,5]" in text
    for got, wanted in zip(jax.tree.leaves(cell(x)), jax.tree.leaves(wide(x)), strict=True):
        assert got.dtype == F32
        np.testing.assert_allclose(got, wanted, atol=2e-2)
        assert (got != wanted).any()


def test_precision_reaches_every_product():
    module = jaxrnn.LSTM(3, 5, proj_size=2, precision="highest", rngs=rngs())
    x = jnp.ones((6, 4, 3), jnp.float32)
    for strategy in (strategies.Scan(), strategies.Reference()):
        module.strategy = strategy
        grad = jax.grad(lambda m, x: m(x)[0].sum(), argnums=(0, 1))
        text = str(jax.make_jaxpr(grad)(module, x))
        found = re.findall(r"dot_general\[.*?precision=([^\n]*)", text, re.S)
        assert len(found) >= 6
        assert all("HIGHEST" in p for p in found)


@dataclasses.dataclass(frozen=True)
class Spy:
    """A strategy of a user's own: `Reference`, and a note of each call."""

    calls: list = dataclasses.field(default_factory=list, compare=False)

    def __call__(self, cell, weights, x, carry, mask=None, *, precision=None, reverse=False):
        self.calls.append((cell.name, x.shape, mask is not None, precision))
        options = {"precision": precision, "reverse": reverse}
        return strategies.Reference()(cell, weights, x, carry, mask, **options)


@pytest.mark.parametrize("cls", LAYERS)
def test_the_strategy_that_is_named_is_the_one_that_runs(cls):
    spy = Spy()
    module = cls(3, 5, 2, bidirectional=True, strategy=spy, precision="highest", rngs=rngs())
    x, lengths = jnp.ones((7, 2, 3), F32), jnp.array([7, 2])
    jax.eval_shape(jax.grad(lambda m: m(x, lengths=lengths)[0].sum()), module)
    name = {"RNN": "rnn_tanh", "GRU": "gru", "LSTM": "lstm"}[cls.__name__]
    assert spy.calls == [(name, (7, 2, inputs), True, "highest") for inputs in (3, 3, 10, 10)]


@pytest.mark.parametrize("layout", ["numpy", "jax", "list"])
def test_inputs_and_lengths_of_any_array_kind(layout):
    module = jaxrnn.GRU(3, 5, rngs=rngs())
    x = np.random.default_rng(0).standard_normal((4, 2, 3)).astype(np.float32)
    convert = {"numpy": np.asarray, "jax": jnp.asarray, "list": list}[layout]
    got = module(x if layout == "list" else convert(x), lengths=convert(np.array([4, 1])))
    wanted = module(jnp.asarray(x), lengths=jnp.asarray([4, 1]))
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), got, wanted))


def test_no_rows_at_all():
    output, h_n = jaxrnn.GRU(3, 5, rngs=rngs())(jnp.zeros((4, 0, 3), F32), lengths=[])
    assert (output.shape, h_n.shape) == ((4, 0, 5), (1, 0, 5))
