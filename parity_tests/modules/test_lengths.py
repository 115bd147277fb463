"""Properties of lengths, by hypothesis: what a padded batch must never notice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxrnn
from contract import runs
from jaxrnn import cells, native, strategies

pytestmark = pytest.mark.gpu

T, B, I, H = 6, 4, 3, 5
LAYERS = {
    "RNN": (jaxrnn.RNN, {"nonlinearity": "relu"}),
    "GRU": (jaxrnn.GRU, {"num_layers": 2, "bidirectional": True}),
    "LSTM": (jaxrnn.LSTM, {"bidirectional": True}),
    "projected LSTM": (jaxrnn.LSTM, {"num_layers": 2, "bidirectional": True, "proj_size": 2}),
}
# Layers clear the padding before any strategy sees it. `Reference` equals `Scan` under every mask:
# test_strategies.py.
STRATEGIES = [strategies.Scan(), *([strategies.Native()] if native.load() else [])]
GARBAGE = [np.nan, np.inf, -np.inf, 3e38, 1e300, 0.0]

every_layer = pytest.mark.parametrize("kind", LAYERS)
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)
lengths_of = st.lists(st.integers(0, T), min_size=B, max_size=B).map(np.array)
# A row alone is as long as its length, and each length compiles a program.
few_lengths = st.lists(st.sampled_from([0, 2, 5]), min_size=B, max_size=B).map(np.array)
few = settings(max_examples=25, deadline=None)

_built: dict = {}


@jax.jit
def forward(module, x, hx):
    return module(x, hx)


def setup(kind, strategy):
    """The module, its jitted value and gradients, and inputs: built once for all examples."""
    if (kind, strategy) not in _built:
        cls, options = LAYERS[kind]
        if options.get("proj_size") and not runs(strategy, cells.lstm, projected=True):
            pytest.skip("the strategy has no projections")
        module = cls(I, H, **options, strategy=strategy, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
        rng = np.random.default_rng(0)
        x = rng.standard_normal((T, B, I))
        _, state = jax.eval_shape(module, x)
        hx = jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape)), state)
        weight = rng.standard_normal((T, 1, module._outputs * module._directions))

        def loss(module, x, hx, lengths):
            output, state = module(x, hx, lengths=lengths)
            value = (output * weight[: len(x)]).sum() + sum(
                (s**2).sum() for s in jax.tree.leaves(state)
            )
            return value, (output, state)

        run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
        _built[kind, strategy] = module, run, jnp.asarray(x), hx
    return _built[kind, strategy]


def padding(lengths):
    return np.arange(T)[:, None] >= lengths[None]


def same_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
        assert np.isfinite(np.asarray(x)).all()


def close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-13)


@every_strategy
@every_layer
@few
@given(lengths=lengths_of, data=st.data())
def test_padding_may_hold_anything(kind, strategy, lengths, data):
    module, run, x, hx = setup(kind, strategy)
    pad = padding(lengths)[:, :, None]
    n = int(pad.sum()) * I
    garbage = np.array(data.draw(st.lists(st.sampled_from(GARBAGE), min_size=n, max_size=n)))
    dirty = np.array(x)
    dirty[np.broadcast_to(pad, x.shape)] = garbage
    clean = run(module, jnp.where(pad, 0.0, x), hx, lengths)
    same_bits(run(module, jnp.asarray(dirty), hx, lengths), clean)
    (_, (output, _)), (_, in_x, _) = clean
    assert (np.where(pad, output, 0.0) == 0).all()
    assert (np.where(pad, in_x, 0.0) == 0).all()


@every_strategy
@every_layer
@few
@given(lengths=few_lengths)
def test_a_row_is_itself_in_any_batch(kind, strategy, lengths):
    """A padded row equals the row alone, cut to its length; so do its gradients, tried at one."""
    module, run, x, hx = setup(kind, strategy)
    (_, (output, state)), (_, in_x, in_hx) = run(module, x, hx, lengths)
    for b, n in enumerate(lengths):
        here = jax.tree.map(lambda s, b=b: s[:, b : b + 1], hx)
        alone, last = forward(module, x[:n, b : b + 1], here)
        close(output[:n, b], alone[:, 0])
        close(jax.tree.map(lambda s, b=b: s[:, b], state), jax.tree.map(lambda s: s[:, 0], last))
        if n == 2:
            _, (_, in_x_alone, in_hx_alone) = run(module, x[:n, b : b + 1], here, None)
            close(in_x[:n, b], in_x_alone[:, 0])
            close(jax.tree.map(lambda s, b=b: s[:, b : b + 1], in_hx), in_hx_alone)
        if n == 0:
            close(
                jax.tree.map(lambda s, b=b: s[:, b], (state, in_hx)),
                jax.tree.map(lambda s, b=b: s[:, b], (hx, jax.tree.map(lambda h: 2 * h, hx))),
            )
            assert (in_x[:, b] == 0).all()


@every_strategy
@every_layer
@few
@given(lengths=lengths_of, order=st.permutations(range(B)))
def test_permuting_the_batch_permutes_the_result(kind, strategy, lengths, order):
    module, run, x, hx = setup(kind, strategy)
    order = np.array(order)
    (_, (output, state)), (in_module, in_x, in_hx) = run(module, x, hx, lengths)
    permute = lambda tree: jax.tree.map(lambda a: a[:, order], tree)  # noqa: E731
    permuted = run(module, permute(x), permute(hx), lengths[order])
    (_, outputs), gradients = permuted
    close(outputs, permute((output, state)))
    close(gradients, (in_module, *permute((in_x, in_hx))))


@every_strategy
@every_layer
def test_full_lengths_are_no_lengths(kind, strategy):
    """Bit for bit where they are known; traced ones compile to another program."""
    module, run, x, hx = setup(kind, strategy)
    full = np.full(B, T)
    close(run(module, x, hx, full), run(module, x, hx, None))

    with_known = jax.jit(lambda *args: run.__wrapped__(*args, full))
    without = jax.jit(lambda *args: run.__wrapped__(*args, None))
    same_bits(with_known(module, x, hx), without(module, x, hx))


@every_strategy
@few
@given(cut=st.sampled_from([0, 2, T]))
@pytest.mark.parametrize("kind", ["RNN", "GRU one way", "LSTM one way"])
def test_chunks_with_the_state_carried_over_equal_the_whole(kind, strategy, cut):
    cls = getattr(jaxrnn, kind.split()[0])
    module = cls(I, H, num_layers=2, strategy=strategy, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((T, B, I)))
    output, state = jax.jit(module)(x)
    zero = jax.tree.map(jnp.zeros_like, state)
    first, between = forward(module, x[:cut], zero)
    second, last = forward(module, x[cut:], between)
    close((jnp.concatenate([first, second]), last), (output, state))


@every_layer
def test_traced_lengths_are_clipped(kind):
    """Before a strategy sees any. To rounding: each dtype compiles to a program of its own."""
    module, run, x, hx = setup(kind, strategies.Scan())
    for dtype in (np.int8, np.int32, np.int64):
        wild = run(module, x, hx, np.array([-7, 100, 3, 0], dtype))
        close(wild, run(module, x, hx, np.array([0, T, 3, 0])))
    huge = np.array([2**40, 2**32 + 1, 2**63 - 1, 3 - 2**33])
    close(run(module, x, hx, huge), run(module, x, hx, np.array([T, T, T, 0])))
    for dtype in (np.uint8, np.uint32, np.uint64):
        top = np.iinfo(dtype).max
        wild = run(module, x, hx, np.array([top, top - 1, 3, 0], dtype))
        close(wild, run(module, x, hx, np.array([T, T, 3, 0])))
