"""Dropout between layers: where it falls, its scale, its keys, and `eval()`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import strategies
from kinds import LAYERS, rngs

F32 = jnp.float32


@pytest.mark.parametrize("cls", LAYERS)
def test_dropout_is_elementwise_scaled_and_between_layers_only(cls):
    p, steps, batch, hidden = 0.3, 40, 16, 50
    seen = []

    def spy(cell, weights, x, carry, mask=None, **options):
        ys, last = strategies.Reference()(cell, weights, x, carry, mask, **options)
        seen.append((np.asarray(x), np.asarray(ys)))
        return ys, last

    module = cls(4, hidden, 2, dropout=p, strategy=spy, rngs=nnx.Rngs(0, dropout=1))
    output, _ = module(jnp.ones((steps, batch, 4), jnp.float32))
    (_, before), (after, _) = seen
    assert before.shape == (steps, batch, hidden)
    dropped = after == 0
    np.testing.assert_allclose(after[~dropped], before[~dropped] / (1 - p), 1e-6)
    spread = np.sqrt(p * (1 - p) / dropped.size)
    assert abs(dropped.mean() - p) < 5 * spread
    for axis in range(3):  # per step, per row and per unit: no axis shares its mask
        assert 0 < dropped.any(axis).mean() <= 1
        assert not dropped.all(axis).any()
    assert (output != 0).all()  # none after the last layer


@pytest.mark.parametrize("cls", LAYERS)
def test_eval_turns_dropout_off_and_train_on(cls):
    module = cls(4, 8, num_layers=2, dropout=0.5, rngs=rngs())
    twin = cls(4, 8, num_layers=2, rngs=rngs())
    jaxrnn.load_state_dict(twin, jaxrnn.state_dict(module))
    x = jnp.ones((5, 3, 4), jnp.float32)
    assert (module(x)[0] != twin(x)[0]).any()
    module.eval()
    np.testing.assert_array_equal(module(x)[0], twin(x)[0])
    module.train()
    assert (module(x)[0] != twin(x)[0]).any()


def test_a_table_of_a_layer_with_dropout():
    """Flax's table calls every submodule with positional arguments alone for this column."""
    module = jaxrnn.LSTM(3, 5, 2, dropout=0.5, rngs=rngs())
    x = jnp.ones((5, 4, 3), F32)
    assert "vjp_flops" in nnx.tabulate(module, x, compute_flops=True, compute_vjp_flops=True)
    assert module(x)[0].shape == (5, 4, 5)


def test_dropouts_masks_are_those_of_flax():
    module = jaxrnn.GRU(3, 5, 2, dropout=0.3, rngs=rngs())
    lower, upper = (jaxrnn.GRU(i, 5, rngs=rngs()) for i in (3, 5))
    state = jaxrnn.state_dict(module)
    for part, layer in ((lower, "l0"), (upper, "l1")):
        mine = {k.replace(layer, "l0"): v for k, v in state.items() if k.endswith(layer)}
        jaxrnn.load_state_dict(part, mine)
    x = jax.random.normal(jax.random.key(0), (5, 4, 3), F32)
    key = jax.random.key(7)
    between = nnx.Dropout(0.3)(lower(x)[0], rngs=key)
    np.testing.assert_allclose(module(x, rngs=key)[0], upper(between)[0], rtol=1e-5, atol=1e-6)


def test_a_key_is_split_among_the_gaps():
    seen = []

    def spy(cell, weights, x, carry, mask=None, **options):
        seen.append(np.asarray(x) == 0)
        return strategies.Reference()(cell, weights, x, carry, mask, **options)

    module = jaxrnn.GRU(8, 8, 3, dropout=0.5, strategy=spy, rngs=rngs())
    module(jnp.ones((5, 4, 8), F32), rngs=jax.random.key(0))
    assert seen[1].any()
    assert (seen[1] != seen[2]).any()
