"""All cells of `jaxrnn.cells`: against PyTorch, and under every transformation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from contract import CELLS, jit_oracle
from jaxrnn import cells, strategies
from jaxrnn.cells import Weights
from jaxrnn.testing import compare

I, H = 3, 4
LITERATURE = [name for name in cells.READY if name not in CELLS]  # those: test_strategies.py


def layer(name, *args, **options):
    return jaxrnn.Recurrent(getattr(cells, name), *args, **options, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("name", cells.READY)
def test_a_stack_in_both_directions_on_ragged_rows_agrees_with_pytorch(name):
    torch_cells = pytest.importorskip("torch_ref.cells")
    theirs = torch_cells.Recurrent(torch_cells.CELLS[name], I, H, 2, bidirectional=True)
    x = np.random.default_rng(0).normal(size=(5, 3, I))

    def call(module, x, lengths):
        output, states = module(x, lengths=lengths)
        return output, states if isinstance(states, tuple) else (states,)

    ours = layer(name, I, H, 2, bidirectional=True)
    report = compare(theirs, ours, x, lengths=np.array([5, 0, 2]), torch_call=call, jax_call=call)
    assert report.ok, report


def test_every_cell_has_a_pytorch_counterpart():
    torch_cells = pytest.importorskip("torch_ref.cells")
    assert sorted(cells.READY) == sorted(torch_cells.CELLS)
    made = [value for value in vars(cells).values() if isinstance(value, cells.Cell)]
    assert sorted(cell.name for cell in made) == sorted(cells.READY)


def arguments(name, steps=5, batch=2):
    """Random weights, inputs and carry, all different from their initial values."""
    rng, cell = np.random.default_rng(1), getattr(cells, name)
    draw = lambda *shape: jnp.asarray(0.5 * rng.standard_normal(shape))  # noqa: E731
    own = () if cell.init is None else cell.init(jax.random.key(0), H, jnp.float64)
    weights = Weights(
        ih=draw(cell.gates * H, I),
        hh=draw(cell.gates * H, H) if cell.recurrent else None,
        b_ih=draw(cell.gates * H),
        cell=jax.tree.map(lambda p: p + draw(*p.shape), own),
    )
    # A fresh state, then one that is not: a normaliser is positive.
    carry = tuple(abs(draw(batch, H)) for _ in range(cell.states))
    return weights, draw(steps, batch, I), carry


MASK = jnp.asarray(np.random.default_rng(3).random((5, 2)) < 0.7)


def everything(strategy, cell, weights, x, carry):
    """Values, forward-over-reverse mode, and a batch of weights, in one program.

    The most complicated cells also get reverse-over-reverse mode.
    """
    twice = cell in (cells.layer_norm_lstm, cells.slstm, cells.reset_before_gru)

    def loss(*args):
        ys, last = strategy(cell, *args, MASK)
        return (ys**2).sum() + sum((state * jnp.cos(state)).sum() for state in last)

    args = weights, x, carry
    gradient = jax.grad(loss, argnums=(0, 1, 2))
    along = jax.tree.map(lambda a: jnp.sin(a + 1), args)
    weights_of_two = jax.tree.map(lambda a: jnp.stack([a, 0.7 * a]), weights)
    second = ()
    if twice:
        norm = lambda w: sum((g**2).sum() for g in jax.tree.leaves(gradient(w, x, carry)))  # noqa: E731
        second = jax.grad(norm)(weights)
    return (
        strategy(cell, *args, MASK),
        jax.jvp(gradient, args, along),
        jax.vmap(lambda w: strategy(cell, w, x, carry, MASK))(weights_of_two),
        second,
    )


@functools.cache
def expected(name):
    run = functools.partial(everything, strategies.Reference(), getattr(cells, name))
    return jit_oracle(run)(*arguments(name))


def close(got, wanted, tolerance=1e-11):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(g, w, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", LITERATURE)
def test_transformations(name):
    run = functools.partial(everything, strategies.Scan(), getattr(cells, name))
    close(jax.jit(run)(*arguments(name)), expected(name))


@pytest.mark.parametrize("name", [n for n in cells.READY if getattr(cells, n).linear is not None])
@pytest.mark.parametrize("reverse", [False, True])
def test_associative_scan_matches_the_sequential_scan(name, reverse):
    """Values and derivatives, with masked steps and resets."""
    cell, (weights, x, carry) = getattr(cells, name), arguments(name, steps=7)
    kinds = jnp.asarray(np.random.default_rng(5).integers(0, 3, (7, 2)), jnp.uint8)
    weights = weights._replace(initial=(carry[0] + 1,))

    def run(strategy):
        def loss(weights, x, carry):
            ys, (last,) = strategy(cell, weights, x, carry, kinds, reverse=reverse)
            return (ys**2).sum() + last.sum(), (ys, last)

        grad = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
        return jax.jit(grad)(weights, x, carry)

    close(run(strategies.AssociativeScan()), run(strategies.Scan()))


def test_associative_scan_refuses_nonlinear_cells():
    weights, x, carry = arguments("gru")
    with pytest.raises(jaxrnn.InputError, match=r"are linear in their state, by `Cell\.linear`"):
        strategies.AssociativeScan()(cells.gru, weights, x, carry)
    module = layer("min_gru", I, H, strategy=strategies.AssociativeScan())
    assert module(jnp.zeros((0, 2, I), jnp.float32))[0].shape == (0, 2, H)


def test_a_cell_that_uses_h_itself_has_no_projection():
    with pytest.raises(ValueError, match="proj_size must be 0 for a cell that uses h itself"):
        layer("gru", I, H, proj_size=2)
    assert layer("slstm", I, H, proj_size=2)(jnp.ones((5, 2, I), jnp.float32))[0].shape == (5, 2, 2)
    with pytest.raises(TypeError, match="needs a cell, such as"):
        jaxrnn.Recurrent("lstm", I, H, rngs=nnx.Rngs(0))


def test_a_cell_that_closes_over_an_array_sees_it_change():
    """Such a step must not be cached as a constant of a compiled call."""

    class Leak:
        value = jnp.zeros(H, jnp.float32)

        def step(self, carry, gx, gh):
            return (cells.spread(self.value, gx) * carry[0] + gx + gh,)

    leak = Leak()
    module = jaxrnn.Recurrent(cells.Cell("leaky", 1, 1, leak.step), I, H, rngs=nnx.Rngs(0))
    x = jnp.ones((3, 2, I), jnp.float32)
    before = module(x)[0]
    leak.value = jnp.ones(H, jnp.float32)
    assert (module(x)[0] != before).any()


def test_a_new_slstm_state_takes_any_input_gate():
    """However small the first exponent is, nothing overflows: the state takes the input whole."""
    i, f, z, o = (jnp.full((1, H), value) for value in (-1000.0, 0.5, 0.3, 0.2))
    gx = jnp.concatenate([i, f, z, o], axis=-1)
    h, c, n, m = cells.slstm.step((jnp.zeros((1, H)),) * 4, gx, jnp.zeros_like(gx))
    close((h, c, n, m), (jax.nn.sigmoid(o) * jnp.tanh(z), jnp.tanh(z), jnp.ones_like(z), i))


def test_names_of_a_cells_parameters():
    def make(init):
        cell = cells.rnn_tanh._replace(
            name="own", step=cells.pure(lambda params, c, gx, gh: (jnp.tanh(gx),)), init=init
        )
        return jaxrnn.Recurrent(cell, I, H, 2, bias=False, rngs=nnx.Rngs(0))

    nested = make(lambda key, hidden, dtype: {"a": {"b": jnp.ones(hidden, dtype)}})
    single = make(lambda key, hidden, dtype: jnp.ones(hidden, dtype))
    assert [k for k in jaxrnn.state_dict(nested) if "weight" not in k] == ["a_b_l0", "a_b_l1"]
    assert [k for k in jaxrnn.state_dict(single) if "weight" not in k] == ["cell_l0", "cell_l1"]
    single.cell_l1 = nnx.Param(jnp.ones(H + 1))
    with pytest.raises(jaxrnn.InputError, match=r"needs cell_l1 of shape \(4,\), got \(5,\)"):
        single(jnp.ones((3, 2, I), jnp.float32))


@pytest.mark.parametrize("low", [jnp.bfloat16, jnp.float16])
def test_low_precision_keeps_a_cells_parameters_and_states_wide(low):
    for options in ({"dtype": low}, {"param_dtype": low}):
        module = layer("layer_norm_lstm", I, H, **options)
        x = jnp.ones((3, 2, I), jnp.float32 if "dtype" in options else low)
        output, (h_n, c_n) = jax.eval_shape(module, x)
        assert (output.dtype, h_n.dtype, c_n.dtype) == (low, jnp.float32, jnp.float32)
