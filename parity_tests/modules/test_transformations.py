"""Modules under all JAX and Flax transformations, as arguments and closed over."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import strategies

pytestmark = pytest.mark.gpu

T, B, I, H = 5, 3, 4, 6
F64 = {"param_dtype": jnp.float64}

LAYERS = {
    "RNN": partial(jaxrnn.RNN, I, H, **F64),
    "GRU": partial(jaxrnn.GRU, I, H, num_layers=2, **F64),
    "LSTM": partial(jaxrnn.LSTM, I, H, bidirectional=True, proj_size=2, **F64),
}
every_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
both_ways = pytest.mark.parametrize("closed_over", [False, True], ids=["argument", "closed over"])


def build(make, seed=0):
    module = make(rngs=nnx.Rngs(seed))
    module.eval()
    return module


def inputs(seed=0, batch=B):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.standard_normal((T, batch, I)))
    return x, jnp.asarray([T, 2, 0][:batch])


def loss(module, x, lengths=None):
    output, state = module(x, lengths=lengths)
    return (output**2).sum() + sum((s**3).sum() for s in jax.tree.leaves(state))


def assert_trees_close(got, wanted, tolerance=1e-12):
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(g, w, rtol=tolerance, atol=tolerance)


@functools.cache
def plain(make):
    """The value and gradients by the slow way."""
    module = build(partial(make, strategy=strategies.Reference()))
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(module, *inputs())


@both_ways
@every_layer
def test_jit_grad_and_checkpoint(make, closed_over):
    module, (x, lengths) = build(make), inputs()
    value, (in_module, in_x) = plain(make)
    for wrap in (lambda f: f, lambda f: jax.jit(jax.checkpoint(f))):
        if closed_over:
            f = wrap(lambda x: loss(module, x, lengths))
            assert_trees_close(jax.value_and_grad(f)(x), (value, in_x))
        else:
            f = wrap(loss)
            got = jax.value_and_grad(f, argnums=(0, 1))(module, x, lengths)
            assert_trees_close(got, (value, (in_module, in_x)))


@both_ways
@every_layer
def test_jvp_and_hessian(make, closed_over):
    module, (x, lengths) = build(make), inputs()
    _, (in_module, in_x) = plain(make)
    dx = jnp.asarray(np.random.default_rng(1).standard_normal(x.shape))
    if closed_over:
        _, pushed = jax.jit(lambda x: jax.jvp(lambda x: loss(module, x, lengths), (x,), (dx,)))(x)
        wanted = (in_x * dx).sum()
        h = jax.jit(jax.hessian(lambda b: loss(module, x.at[:, :1].set(b), lengths)))(x[:, :1])
        h = h.reshape(T * I, T * I)
        np.testing.assert_allclose(h, h.T, atol=1e-12)
        assert np.abs(h).max() > 1e-3
    else:
        dmodule = jax.tree.map(jnp.ones_like, module)
        run = jax.jit(lambda m, x: jax.jvp(lambda m, x: loss(m, x, lengths), (m, x), (dmodule, dx)))
        _, pushed = run(module, x)
        wanted = (in_x * dx).sum() + sum(g.sum() for g in jax.tree.leaves(in_module))
    np.testing.assert_allclose(pushed, wanted, rtol=1e-12)


@every_layer
def test_vmap_over_inputs_equals_the_batch(make):
    module, (x, lengths) = build(make), inputs()
    output, state = module(x, lengths=lengths)
    got = jax.vmap(lambda x, n: module(x, lengths=n), in_axes=(1, 0), out_axes=1)(x, lengths)
    assert_trees_close(got, (output, state))


@every_layer
def test_per_sample_gradients(make):
    module, (x, lengths) = build(make), inputs()
    each = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 1, 0)))(module, x, lengths)
    _, (in_module, _) = plain(make)
    assert_trees_close(jax.tree.map(lambda g: g.sum(0), each), in_module)
    alone = jax.grad(loss)(module, x[:, 1:2], lengths[1:2])
    assert_trees_close(jax.tree.map(lambda g: g[1], each), alone)


@every_layer
def test_vmap_over_stacked_weights(make):
    x, lengths = inputs()
    models = [build(make, seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    got = jax.jit(jax.vmap(jax.value_and_grad(loss), in_axes=(0, None, None)))(stacked, x, lengths)
    alone = jax.jit(jax.value_and_grad(loss))
    rows = [alone(m, x, lengths) for m in models]
    assert_trees_close(got, jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows))


def test_an_ensemble_is_built_by_vmap():
    keys = jax.random.split(jax.random.key(0), 3)
    stacked = jax.vmap(lambda key: jaxrnn.GRU(I, H, rngs=nnx.Rngs(key)))(keys)
    assert stacked.weight_ih_l0.shape == (3, 3 * H, I)
    one = jaxrnn.GRU(I, H, rngs=nnx.Rngs(keys[1]))
    np.testing.assert_array_equal(stacked.weight_hh_l0[1], one.weight_hh_l0[...])


@both_ways
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_scan_around_a_layer_or_a_cell_carries_the_state(kind, closed_over):
    module = getattr(jaxrnn, kind)(I, H, rngs=nnx.Rngs(0), **F64)
    cell = getattr(jaxrnn, f"{kind}Cell")(I, H, rngs=nnx.Rngs(1), **F64)
    named = jaxrnn.state_dict(module).items()
    jaxrnn.load_state_dict(cell, {name.removesuffix("_l0"): value for name, value in named})
    x, _ = inputs()
    whole, last = module(x)

    def body(carry, x_t):
        m = module if closed_over else carry[1]
        output, state = m(x_t[None], carry[0])
        return ((state, carry[1]), output[0])

    def cell_body(state, x_t):
        state = cell(x_t, state)
        return state, jax.tree.leaves(state)[0]

    zero = jax.tree.map(jnp.zeros_like, last)
    carried = None if closed_over else module
    (state, _), outputs = jax.jit(lambda: jax.lax.scan(body, (zero, carried), x))()
    assert_trees_close((outputs, state), (whole, last))
    first = jax.tree.map(lambda s: s[0], zero)
    state, outputs = jax.jit(lambda: jax.lax.scan(cell_body, first, x))()
    assert_trees_close((outputs, state), (whole, jax.tree.map(lambda s: s[0], last)))


@both_ways
@every_layer
def test_export_with_symbolic_batch_and_time(make, closed_over):
    module = build(make)
    t, b = jax.export.symbolic_shape("t, b")
    shapes = (
        jax.ShapeDtypeStruct((t, b, I), jnp.float64),
        jax.ShapeDtypeStruct((b,), jnp.int32),
    )
    if closed_over:
        exported = jax.export.export(jax.jit(lambda x, n: module(x, lengths=n)))(*shapes)
        call = exported.call
    else:
        leaves, tree = jax.tree.flatten(module)

        def run(leaves, x, n):
            return jax.tree.unflatten(tree, leaves)(x, lengths=n)

        exported = jax.export.export(jax.jit(run))(leaves, *shapes)
        call = partial(exported.call, leaves)
    rng = np.random.default_rng(0)
    for steps, batch in [(5, 3), (1, 1), (9, 2)]:
        x = jnp.asarray(rng.standard_normal((steps, batch, I)))
        lengths = jnp.asarray(rng.integers(0, steps + 1, batch), jnp.int32)
        assert_trees_close(call(x, lengths), module(x, lengths=lengths))


@every_layer
def test_flax_jit_grad_and_optimizer(make):
    module, (x, lengths) = build(make), inputs()
    optimizer = nnx.Optimizer(module, optax.sgd(0.01), wrt=nnx.Param)
    _, (in_module, _) = plain(make)
    weights = zip(jax.tree.leaves(module), jax.tree.leaves(in_module), strict=True)
    wanted = [p - 0.01 * g for p, g in weights]

    @nnx.jit
    def step(module, optimizer):
        value, grads = nnx.value_and_grad(loss)(module, x, lengths)
        optimizer.update(module, grads)
        return value

    before = loss(module, x, lengths)
    np.testing.assert_allclose(step(module, optimizer), before, rtol=1e-12)
    assert_trees_close(module, wanted)
    assert loss(module, x, lengths) < before


def test_dropout_in_training_works_under_every_jit():
    module = jaxrnn.LSTM(I, H, num_layers=2, dropout=0.5, rngs=nnx.Rngs(0, dropout=1), **F64)
    x, lengths = inputs()
    run = nnx.jit(lambda m, x: m(x, lengths=lengths)[0])
    assert np.abs(run(module, x) - run(module, x)).max() > 1e-3  # the random stream advances
    closed = jax.jit(lambda x, key: module(x, lengths=lengths, rngs=nnx.Rngs(dropout=key))[0])
    a, b = (closed(x, jax.random.key(k)) for k in (0, 1))
    assert np.abs(a - b).max() > 1e-3
    np.testing.assert_array_equal(a, closed(x, jax.random.key(0)))


@pytest.mark.parametrize("kind", ["RNNCell", "GRUCell", "LSTMCell"])
def test_cells_under_jit_vmap_grad_and_jvp(kind):
    cell = getattr(jaxrnn, kind)(I, H, rngs=nnx.Rngs(0), **F64)
    x = inputs()[0][0]

    def f(cell, x):
        return sum((s**2).sum() for s in jax.tree.leaves(cell(x)))

    in_cell, in_x = jax.jit(jax.grad(f, argnums=(0, 1)))(cell, x)
    each = jax.jit(jax.vmap(jax.grad(f), in_axes=(None, 0)))(cell, x)
    assert_trees_close(jax.tree.map(lambda g: g.sum(0), each), in_cell)
    _, pushed = jax.jvp(lambda x: f(cell, x), (x,), (x,))
    np.testing.assert_allclose(pushed, (in_x * x).sum(), rtol=1e-12)


def test_a_module_with_dropout_is_differentiated_by_nnx():
    """Its random state is an integer leaf, which `jax.grad` rejects, even in evaluation mode."""
    module = jaxrnn.LSTM(I, H, 2, dropout=0.5, rngs=nnx.Rngs(0), **F64)
    with pytest.raises(TypeError, match="grad requires real"):
        jax.grad(loss)(module, *inputs())
    assert len(jax.tree.leaves(nnx.grad(loss)(module, *inputs()))) == 8


def test_gradients_of_a_module_with_dropout_in_eval():
    """The module is closed over, or differentiated by nnx.grad, because of its random state."""
    module = build(partial(jaxrnn.LSTM, I, H, num_layers=2, dropout=0.5, **F64))
    x, lengths = inputs()
    wanted, in_x = jax.value_and_grad(lambda x: loss(module, x, lengths))(x)
    assert_trees_close(jax.jit(jax.grad(lambda x: loss(module, x, lengths)))(x), in_x)
    assert_trees_close(jax.jit(loss)(module, x, lengths), wanted)
    value, grads = nnx.jit(nnx.value_and_grad(loss))(module, x, lengths)
    assert_trees_close(value, wanted)
    assert len(jax.tree.leaves(grads)) == 8
    exported = jax.export.export(jax.jit(lambda x: module(x)[0]))(x)
    assert_trees_close(exported.call(x), module(x)[0])


def test_no_random_state_without_dropout():
    makes = [*LAYERS.values(), partial(jaxrnn.GRU, I, H, num_layers=2, dropout=0.5)]
    for make in makes:
        module = make(rngs=nnx.Rngs(0))
        states = [v for _, v in nnx.iter_graph(module) if isinstance(v, nnx.RngState)]
        assert bool(states) == (module.dropout > 0)
    alone = pytest.warns(UserWarning, match="non-zero dropout expects num_layers greater than 1")
    with alone:
        module = jaxrnn.GRU(I, H, dropout=0.5, rngs=nnx.Rngs(0))
    assert not [v for _, v in nnx.iter_graph(module) if isinstance(v, nnx.RngState)]


@every_layer
def test_a_second_call_with_the_same_shapes_compiles_nothing(make, compilations):
    module, (x, lengths) = build(make), inputs()
    step = jax.jit(jax.value_and_grad(loss))
    jax.block_until_ready(step(module, x, lengths))
    other = jnp.asarray([1, 0, 4])
    before = compilations()
    assert before > 0
    jax.block_until_ready(step(module, x + x, other))
    jax.block_until_ready(step(build(make, 5), x, lengths))
    settled = compilations()
    jax.block_until_ready(step(module, x, other))
    assert compilations() == settled
    assert step._cache_size() == 1


def test_outside_jit_a_second_call_compiles_nothing(compilations):
    # A size that no other test has compiled.
    module, (x, lengths) = jaxrnn.GRU(I, 11, 2, rngs=nnx.Rngs(0), **F64), inputs()
    calls = (lambda: loss(module, x, lengths), lambda: jax.grad(loss)(module, x, lengths))
    for call in calls:
        jax.block_until_ready(call())
        before = compilations()
        assert before > 0
        jax.block_until_ready(call())
        assert compilations() == before


@pytest.mark.parametrize("strategy", [None, strategies.Scan()])
def test_outside_jit_a_new_length_of_sequence_compiles_one_program(strategy, compilations):
    options = {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.5}
    layer = jaxrnn.LSTM(I, 13, strategy=strategy, dtype="bfloat16", **options, rngs=nnx.Rngs(0))
    cell = jaxrnn.GRUCell(I, 13 if strategy else 12, rngs=nnx.Rngs(0))  # it has no strategy
    xs = [jnp.asarray(np.zeros((4, T, I), np.float32)) for T in (5, 6, 7)]
    for count, (module, kwargs) in enumerate(
        [(layer, {}), (layer, {"lengths": [1, 2, 0, 3]}), (cell, {})]
    ):
        arrays = xs if count < 2 else [x[0] for x in xs]
        jax.block_until_ready(module(arrays[0], **kwargs))
        for x in arrays[1:]:
            before = compilations()
            jax.block_until_ready(module(x, **kwargs))
            assert compilations() == before + 1


def test_a_function_as_a_strategy_is_called_every_time():
    """It may close over a changing value: here a scale, as a training step might change it."""
    scale = nnx.Param(jnp.ones(()))

    def scaled(cell, weights, x, carry, mask=None, **options):
        return strategies.Scan()(cell, weights, scale[...] * x, carry, mask, **options)

    module, (x, _) = jaxrnn.GRU(I, H, strategy=scaled, rngs=nnx.Rngs(0), **F64), inputs()
    first, _ = module(x)
    scale[...] = jnp.asarray(2.0)
    twin = jaxrnn.GRU(I, H, rngs=nnx.Rngs(0), **F64)
    assert_trees_close(first, twin(x)[0])
    assert_trees_close(module(x)[0], twin(2 * x)[0])


def test_compilation_is_shared_by_equal_modules():
    x, _ = inputs()
    step = jax.jit(lambda m, x: loss(m, x))
    a, b = (jaxrnn.LSTM(I, H, rngs=nnx.Rngs(s), strategy=strategies.Scan(), **F64) for s in (0, 1))
    step(a, x)
    step(b, x)
    assert step._cache_size() == 1
