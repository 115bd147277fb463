"""Shooting: properties beyond the contract of strategies."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from contract import assert_close
from jaxrnn import cells, native, strategies
from jaxrnn.cells import Weights
from jaxrnn.strategies import Native, Scan, Shooting

T, B, I, H, CHUNKS = 95, 2, 3, 8, 6
each_inner = pytest.mark.parametrize(
    "inner", [Scan(), *([Native()] if native.load() else [])], ids=lambda s: type(s).__name__
)


def drawn(cell, *, scale=1.0, seed=0):
    """Weights with PyTorch's initial distribution, scaled recurrent weights, inputs and a carry."""
    rng = np.random.default_rng(seed)
    uniform = lambda *shape: jnp.asarray(rng.uniform(-1, 1, shape) / np.sqrt(H))  # noqa: E731
    rows = cell.gates * H
    weights = Weights(uniform(rows, I), scale * uniform(rows, H), uniform(rows), uniform(rows))
    x = jnp.asarray(rng.standard_normal((T, B, I)))
    return weights, x, tuple(jnp.asarray(rng.standard_normal((B, H))) for _ in range(cell.states))


def forgets():
    """A network that forgets within a chunk of 16 steps, to the last bits of float64."""
    weights, x, carry = drawn(cells.lstm, scale=0.5)
    return cells.lstm, weights._replace(b_hh=weights.b_hh.at[H : 2 * H].add(-3.0)), x, carry


def orthogonal():
    weights, x, carry = drawn(cells.rnn_tanh)
    q, _ = jnp.linalg.qr(weights.hh)
    return cells.rnn_tanh, weights._replace(hh=q, ih=1e-3 * weights.ih), 1e-3 * x, carry


def gru_held_open():
    weights, x, carry = drawn(cells.gru)
    return cells.gru, weights._replace(b_hh=weights.b_hh.at[H : 2 * H].add(9.0)), x, carry


def remembers():
    """An LSTM that keeps its first input, as after training on the memory task."""
    weights, x, carry = drawn(cells.lstm)
    bias = weights.b_hh.at[H : 2 * H].add(9.0).at[:H].add(-9.0)
    return cells.lstm, weights._replace(b_hh=bias), x, carry


def chaotic():
    return cells.rnn_tanh, *drawn(cells.rnn_tanh, scale=8.0)


def unseen():
    """An LSTM in which half of the units keep their inputs without showing them in the output."""
    weights, x, carry = forgets()[1:]
    keep, half = weights.b_hh, slice(H // 2, None)
    for gate, bias in ((0, -2.0), (1, 40.0), (3, -60.0)):
        keep = keep.at[gate * H : (gate + 1) * H].set(
            keep[gate * H : (gate + 1) * H].at[half].set(bias)
        )
    return cells.lstm, weights._replace(b_hh=keep), x, carry


def latched():
    """An LSTM whose c is constant and whose h, once high, stays high."""
    gate = lambda *values: jnp.repeat(jnp.asarray(values), H)  # noqa: E731
    hh = jnp.zeros((4 * H, H)).at[3 * H :].set(16.0 * jnp.eye(H))
    ih = gate(0.0, 0.0, 0.0, 20.0)[:, None] * jnp.ones((1, I))
    weights = Weights(ih, hh, gate(40.0, -40.0, 1.0, -5.0))
    x = jnp.zeros((T, B, I)).at[0].set(1.0)
    return cells.lstm, weights, x, (jnp.zeros((B, H)),) * 2


def doubles():
    """A network with a unit that is 0 up to rounding and doubles at every step."""
    hh = jnp.zeros((H, H)).at[0, 0].set(2.0)
    ih = jnp.ones((H, I)).at[0].set(0.0).at[0, 0].set(1.0)
    x = jnp.ones((T, B, I)).at[:, :, 0].set(0.0).at[0, :, 0].set(1e-30)
    return cells.rnn_tanh, Weights(ih, hh), x, (jnp.zeros((B, H)),)


# name: the network, and True if the default number of sweeps suffices, forward and backward.
NETWORKS = {
    "forgets": (forgets, True, True),
    "orthogonal": (orthogonal, False, False),
    "gru held open": (gru_held_open, False, False),
    "remembers": (remembers, False, False),
    "chaotic": (chaotic, False, False),
    "unseen": (unseen, False, False),
    "latched": (latched, False, True),
    "doubles": (doubles, False, False),
}


def answers(strategy, cell, mask, *args):
    """Value and gradients of a loss that depends on every output."""

    def loss(*args):
        ys, last = strategy(cell, *args, mask)
        weight = jnp.cos(jnp.arange(ys.size, dtype=ys.dtype)).reshape(ys.shape)
        return (weight * ys).sum() + sum((s**2).sum() for s in last)

    outputs = strategy(cell, *args, mask)
    return outputs, jax.grad(loss, argnums=(0, 1, 2))(*args)


def adjoint(strategy, cell, weights, x, carry):
    ct = jnp.ones((T, B, H)), tuple(jnp.ones_like(c) for c in carry)
    return jax.jit(partial(strategy.run_adjoint, cell))(weights, x, carry, None, ct)


@each_inner
@pytest.mark.parametrize("network", NETWORKS)
def test_networks_that_forget_and_networks_that_do_not(network, inner):
    make, forwards, backwards = NETWORKS[network]
    cell, *args = make()
    wanted = jax.jit(partial(answers, inner, cell, None))(*args)
    strategy = Shooting(CHUNKS, inner)
    outputs, gradients = jax.jit(partial(answers, strategy, cell, None))(*args)
    assert_close(outputs, wanted[0])
    for got, want in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted[1]), strict=True):
        assert np.abs(got - want).max() <= 1e-13 * np.abs(want).max()
    _, _, info = strategy.run(cell, *args)
    _, back = adjoint(strategy, cell, *args)
    for got, enough in ((info, forwards), (back, backwards)):
        assert bool(got.fell_back) is not enough
        assert 1 <= int(got.sweeps) <= 3
        assert bool(got.residual <= 8 * np.finfo(np.float64).eps) is enough


@pytest.mark.parametrize("make", [orthogonal, remembers])
@each_inner
def test_as_many_sweeps_as_chunks_are_exact(make, inner):
    cell, *args = make()
    strategy = Shooting(CHUNKS, inner, tolerance=0.0, burn_in=0, max_sweeps=CHUNKS)
    wanted = jax.jit(partial(answers, inner, cell, None))(*args)
    assert_close(jax.jit(partial(answers, strategy, cell, None))(*args), wanted)
    for info in (strategy.run(cell, *args)[2], adjoint(strategy, cell, *args)[1]):
        assert (int(info.sweeps), float(info.residual), bool(info.fell_back)) == (CHUNKS, 0, False)


def test_the_tolerance_bounds_the_mismatch_and_saves_sweeps():
    cell, *args = forgets()
    wanted, _ = Scan()(cell, *args)
    seen = []
    for tolerance in (1e-2, 1e-6, 1e-14):
        strategy = Shooting(CHUNKS, tolerance=tolerance, burn_in=0, max_sweeps=CHUNKS)
        ys, _, info = strategy.run(cell, *args)
        assert float(info.residual) <= tolerance
        assert not info.fell_back
        assert np.abs(ys - wanted).max() <= tolerance * 10
        seen.append(int(info.sweeps))
    assert seen == sorted(seen)
    assert seen[0] < seen[-1] < CHUNKS


def test_burn_in_saves_sweeps():
    cell, *args = forgets()
    none, some = (Shooting(3, burn_in=b, tolerance=1e-5).run(cell, *args)[2] for b in (0, 24))
    assert int(some.sweeps) == 1 < int(none.sweeps)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@each_inner
def test_nan_is_never_taken_for_agreement(bad, inner):
    """NaN appears in the same row and from the same step as in the sequential run."""
    cell, weights, x, carry = forgets()
    x = x.at[40, 1].set(bad)
    wanted = Scan()(cell, weights, x, carry)
    for strategy in (Shooting(CHUNKS, inner), Shooting(CHUNKS, inner, max_sweeps=CHUNKS)):
        assert_close(strategy(cell, weights, x, carry), wanted)


@each_inner
def test_rows_that_end_or_begin_early_need_no_more_sweeps(inner):
    """A chunk without steps passes on its incoming state in a single sweep."""
    cell, weights, x, carry = forgets()
    t = np.arange(T)[:, None]
    strategy = Shooting(CHUNKS, inner, tolerance=1e-4)
    for mask in (t < np.array([50, 0]), t >= np.array([70, T])):
        wanted = jax.jit(partial(answers, Scan(), cell, mask))(weights, x, carry)
        assert_close(
            jax.jit(partial(answers, strategy, cell, mask))(weights, x, carry), wanted, 1e-3
        )
        assert int(strategy.run(cell, weights, x, carry, jnp.asarray(mask))[2].sweeps) == 1
        ct = jnp.ones((T, B, H)), tuple(jnp.ones_like(c) for c in carry)
        rough = Shooting(CHUNKS, inner, tolerance=0.1)
        _, back = rough.run_adjoint(cell, weights, x, carry, jnp.asarray(mask), ct)
        assert int(back.sweeps) == 1, back
        exact = Shooting(CHUNKS, inner, max_sweeps=CHUNKS)
        assert_close(jax.jit(partial(answers, exact, cell, mask))(weights, x, carry), wanted)


@each_inner
def test_a_fading_adjoint_needs_no_relative_agreement(inner):
    """The loss uses the last step only, so cotangents at the first boundaries are tiny."""
    cell, weights, x, carry = forgets()
    ct = jnp.zeros((T, B, H)), tuple(jnp.ones_like(c) for c in carry)
    got, info = Shooting(3, inner, tolerance=1e-4).run_adjoint(cell, weights, x, carry, None, ct)
    assert int(info.sweeps) == 1
    wanted = jax.vjp(lambda c: Scan()(cell, weights, x, c), carry)[1](ct)[0]
    assert_close(got, wanted, 1e-4)


@each_inner
def test_vmap_counts_sweeps_separately(inner):
    (_, *one), (_, *two) = orthogonal(), (cells.rnn_tanh, *drawn(cells.rnn_tanh, scale=0.3))
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), one, two)
    run = partial(Shooting(CHUNKS, inner).run, cells.rnn_tanh)
    ys, last, info = jax.jit(jax.vmap(run))(*both)
    assert info.fell_back.tolist() == [True, False]
    for k, args in enumerate((one, two)):
        alone = jax.tree.map(lambda a, k=k: a[k], (ys, last))
        assert_close(alone, Scan()(cells.rnn_tanh, *args))


def test_reference_runs_the_chunks():
    cell, *args = forgets()
    wanted = jax.jit(partial(answers, Scan(), cell, None))(*args)
    for sweeps in (1, CHUNKS):
        strategy = Shooting(CHUNKS, inner=strategies.Reference(), max_sweeps=sweeps, burn_in=0)
        assert_close(jax.jit(partial(answers, strategy, cell, None))(*args), wanted)


def test_through_layers_with_everything():
    def build(strategy):
        return jaxrnn.LSTM(
            I, H, 2, bidirectional=True, proj_size=2, strategy=strategy, rngs=nnx.Rngs(0)
        )

    x = np.array(forgets()[2], np.float32)
    lengths = np.array([T, 37])
    x[37:, 1] = np.nan

    def loss(module):
        output, state = module(jnp.asarray(x), lengths=lengths)
        return (output**2).sum() + sum((s**3).sum() for s in state)

    run = jax.jit(jax.value_and_grad(loss))
    got, wanted = run(build(Shooting(CHUNKS))), run(build(Scan()))
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert np.abs(g - w).max() <= 3e-6 * np.abs(w).max()


def test_the_number_of_chunks_is_chosen_by_shape():
    assert jax.default_backend() == "cpu"
    steps = 0, 100, 16_383, 16_384, 65_536
    assert [Shooting().count(n, 1, 64) for n in steps] == [1, 1, 1, 32, 64]
    assert [Shooting().count(65_536, batch, 64) for batch in (0, 2, 64)] == [1, 1, 1]
    assert Shooting().count(65_536, 1, 63) == 1
    assert [Shooting(c).count(5, 3, 4) for c in (1, 3, 9)] == [1, 3, 5]


@pytest.mark.parametrize("hidden", [63, 64])
def test_a_run_chooses_by_its_units_not_its_outputs(hidden):
    """A divided run cannot agree to the last bit in one sweep from a guess; a single chunk can."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape))  # noqa: E731
    outputs = 2 if hidden == 64 else 64
    weights = Weights(
        normal(4 * hidden, 1), normal(4 * hidden, outputs), hr=normal(outputs, hidden)
    )
    carry = jnp.zeros((1, outputs)), jnp.zeros((1, hidden))
    strategy = Shooting(inner=Scan(), tolerance=0.0, burn_in=0, max_sweeps=1)
    _, _, info = strategy.run(cells.lstm, weights, normal(16_384, 1, 1), carry)
    assert bool(info.fell_back) == (hidden == 64)


def test_on_a_gpu_the_kernel_says_how_many_rows_run_side_by_side(monkeypatch):
    rows = Native().capabilities.rows_side_by_side
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    counts = [Shooting().count(2**20, 1, h, rows(h)) for h in (64, 128, 256, 512, 1024)]
    assert counts == [256, 256, 128, 64, 32]
    assert Shooting().count(65_536, 1, 64, rows(64)) == 128
    assert Shooting().count(2**20, 1, 256, Scan().capabilities.rows_side_by_side(256)) == 512


def test_one_chunk_is_the_inner_strategy():
    cell, *args = forgets()
    ys, last, info = Shooting(inner=Scan()).run(cell, *args)
    assert_close((ys, last), Scan()(cell, *args), 0.0)
    assert (int(info.sweeps), float(info.residual), bool(info.fell_back)) == (1, 0, False)
    _, back = adjoint(Shooting(), cell, *args)
    assert int(back.sweeps) == 1


def test_invalid_arguments_are_refused():
    for options, needed in [
        ({"chunks": 0}, "chunks of 1 or more"),
        ({"tolerance": -1.0}, "tolerance of 0 or more"),
        ({"tolerance": np.nan}, "tolerance of 0 or more"),
        ({"burn_in": -1}, "burn_in of 0 or more"),
        ({"max_sweeps": 0}, "max_sweeps of 1 or more"),
    ]:
        with pytest.raises(ValueError, match=needed):
            Shooting(**options)


def test_a_symbolic_number_of_steps():
    cell, weights, x, carry = forgets()
    (t,) = jax.export.symbolic_shape("t")
    shape = jax.ShapeDtypeStruct((t, B, I), x.dtype)
    export = lambda s: jax.export.export(jax.jit(lambda x: s(cell, weights, x, carry)[0]))(shape)  # noqa: E731
    assert_close(export(Shooting()).call(x), Scan()(cell, weights, x, carry)[0])
    with pytest.raises(ValueError, match=re.escape("`Shooting(chunks=4)` needs a number of steps")):
        export(Shooting(chunks=4))
