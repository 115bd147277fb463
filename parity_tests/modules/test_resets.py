"""Resets and initial states of the layers, and single steps of a stream."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import cells, strategies

T, B, I, H = 6, 3, 4, 5
RESETS = np.zeros((T, B), bool)
RESETS[[2, 4], 0] = RESETS[0, 1] = RESETS[5, 2] = True
X = jnp.asarray(np.random.default_rng(0).standard_normal((T, B, I)))


def layer(cls=jaxrnn.GRU, *args, **options):
    options = {"param_dtype": jnp.float64, "rngs": nnx.Rngs(0)} | options
    module = cls(*args, I, H, **options)
    for name in ("h_0_l0", "h_0_l1", "c_0_l0", "c_0_l1"):
        if hasattr(module, name):  # make a learned state nonzero
            getattr(module, name)[...] = jnp.linspace(-1.0, 1.0, H)
    return module


def close(got, wanted, tolerance=1e-12):
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(g, w, rtol=tolerance, atol=tolerance)


def random_state(module, seed=1):
    rng = np.random.default_rng(seed)
    like = module.initial_state(B)
    return jax.tree.map(lambda s: jnp.asarray(rng.standard_normal(s.shape), s.dtype), like)


@pytest.mark.parametrize("initial", ["zeros", "learned"])
@pytest.mark.parametrize("cls", [jaxrnn.GRU, jaxrnn.LSTM])
def test_a_rollout_in_one_call_matches_a_loop_over_steps(cls, initial):
    """A given state continues until the first reset, which restores the initial state."""
    module = layer(cls, num_layers=2, initial_state=initial)

    def by_call(module, x, hx):
        return module(x, hx, resets=RESETS)

    def by_hand(module, x, hx):
        outputs, state = [], hx
        for x_t, reset in zip(x, RESETS, strict=True):
            pick = partial(jnp.where, reset[None, :, None])
            y, state = module(x_t[None], jax.tree.map(pick, module.initial_state(B), state))
            outputs.append(y[0])
        return jnp.stack(outputs), state

    def loss(run):
        def value(module, x, hx):
            output, state = run(module, x, hx)
            return (output**2).sum() + sum(jnp.sin(s).sum() for s in jax.tree.leaves(state))

        return value

    graph, params = nnx.split(module)
    hx = random_state(module)

    def of_arrays(run):
        return lambda params, x, hx: loss(run)(nnx.merge(graph, params), x, hx)

    both = [
        jax.jit(jax.value_and_grad(of_arrays(run), argnums=(0, 1, 2)))(params, X, hx)
        for run in (by_call, by_hand)
    ]
    close(*both)
    if initial == "learned":
        assert abs(both[0][1][0]["h_0_l0"][...]).min() > 0


def test_resets_in_both_directions_match_separate_episodes():
    module = layer(jaxrnn.LSTM, bidirectional=True)
    lengths = jnp.array([6, 3, 6])
    output, (h_n, c_n) = module(X, lengths=lengths, resets=RESETS)
    for row, parts in enumerate([[(0, 2), (2, 4), (4, 6)], [(0, 3)], [(0, 5), (5, 6)]]):
        apart = [module(X[a:b, row]) for a, b in parts]
        end = parts[-1][1]
        close(output[:end, row], jnp.concatenate([y for y, _ in apart]))
        close((h_n[0, row], c_n[0, row]), tuple(s[0] for s in apart[-1][1]))
        close((h_n[1, row], c_n[1, row]), tuple(s[1] for s in apart[0][1]))
    assert (output[3:, 1] == 0).all()


def test_resets_past_a_length_count_for_nothing():
    """Not even one right after it, where the reverse direction begins from the given state."""
    module = layer(bidirectional=True)
    state, lengths = random_state(module), np.array([6, 3, 0])
    past = np.arange(T)[:, None] >= lengths[None]
    given = {"hx": state, "lengths": jnp.asarray(lengths)}
    close(module(X, resets=past, **given), module(X, **given))


@pytest.mark.parametrize("strategy", [None, strategies.Scan()], ids=repr)
def test_no_gradient_flows_across_a_reset(strategy):
    """Of the inputs and the state alone, without any of the weights."""
    module = layer(jaxrnn.GRU, strategy=strategy)
    late = lambda x, hx: module(x, hx, resets=RESETS)[0][4:, 0].sum()  # noqa: E731
    dx, dhx = jax.grad(late, argnums=(0, 1))(X, random_state(module))
    assert (dx[:4, 0] == 0).all()
    assert (dx[4:, 0] != 0).all()
    assert (dhx[:, 0] == 0).all()


def test_resets_have_the_layout_of_the_input():
    first, batch_first = layer(), layer(batch_first=True)
    wanted, _ = first(X, resets=RESETS)
    close(batch_first(X.swapaxes(0, 1), resets=RESETS.T)[0].swapaxes(0, 1), wanted)
    close(first(X[:, 0], resets=RESETS[:, 0])[0], wanted[:, 0])
    for wrong in (RESETS.T, RESETS.astype(int)):
        with pytest.raises(jaxrnn.InputError, match=r"needs boolean resets in the input's lay"):
            first(X, resets=wrong)


@pytest.mark.parametrize("strategy", [None, strategies.Scan()], ids=repr)
def test_functional_stacks_support_resets(strategy):
    module = layer(jaxrnn.LSTM, strategy=strategy)
    weights = [[module._weights("_l0", I)]]
    zeros = (jnp.zeros((1, B, H)),) * 2
    ys, _ = jaxrnn.layers.stack(
        cells.lstm, weights, X, zeros, resets=jnp.asarray(RESETS), strategy=strategy
    )
    close(ys, module(X, resets=RESETS)[0])


@pytest.mark.parametrize("initial", ["zeros", "learned"])
def test_streaming_steps_match_the_whole_sequence(initial):
    module = layer(jaxrnn.LSTM, num_layers=2, initial_state=initial, batch_first=True)
    wanted, last = module(X.swapaxes(0, 1), resets=RESETS.T)
    step = jax.jit(lambda x, state, reset: module.step(x, state, reset=reset))
    state = module.initial_state(B)
    for t in range(T):
        output, state = step(X[t], state, RESETS[t])
        close(output, wanted[:, t])
    close(state, last)
    everywhere = np.ones(B, bool)
    close(module.step(X[0], state, reset=True)[0], step(X[0], state, everywhere)[0])
    row, state = module.step(X[0, 0])
    close(row, module.step(X[0])[0][0])
    assert state[0].shape == (2, H)
    with pytest.raises(ValueError, match="needs bidirectional=False"):
        layer(bidirectional=True).step(X[0])


def test_a_learned_state_is_named_like_pytorch_and_learns():
    module = jaxrnn.LSTM(
        I, H, proj_size=2, bidirectional=True, initial_state="learned", rngs=nnx.Rngs(0)
    )
    shapes = {k: v.shape for k, v in jaxrnn.state_dict(module).items() if "_0_" in k}
    ends = ("l0", "l0_reverse")
    assert shapes == {f"{s}_0_{end}": (n,) for s, n in (("h", 2), ("c", H)) for end in ends}
    grads = nnx.grad(lambda m: m(X.astype(jnp.float32))[0].sum())(module)
    assert all((abs(grads[name][...]) > 0).all() for name in shapes)
    with pytest.raises(ValueError, match="must be 'zeros' or 'learned'"):
        jaxrnn.LSTM(I, H, initial_state="ones", rngs=nnx.Rngs(0))
