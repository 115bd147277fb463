"""The CPU kernel in bfloat16: products of rounded values where the machine has the instructions,
and elsewhere products in float32 of weights and inputs that are rounded."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from contract import BUILDS, needs_kernel
from jaxrnn import cells, native, strategies
from jaxrnn.strategies.rounding import outputs_in_bfloat16
from kernel_cases import arguments, calls, cotangents_for, value_and_gradients

pytestmark = needs_kernel

WIDENING = [build for build in BUILDS if build not in native.narrow_builds()]
needs_instructions = pytest.mark.skipif(
    not native.narrow_builds(), reason="needs AVX-512 BF16, and a compiler that knows it"
)


def rounded(tree):
    return jax.tree.map(lambda a: a.astype(jnp.bfloat16), tree)


def worst(got, wanted):
    """The largest error, relative to the largest element of its array."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
    return max(np.abs(np.float64(g) - w).max() / (np.abs(w).max() + 1e-9) for g, w in pairs)


# Odd sizes, several blocks of steps, many rows, units divided by two threads.
SHAPES = [(2, 3, 3, 5), (6, 3, 4, 33), (150, 2, 5, 6), (9, 30, 16, 72), (12, 1, 7, 300)]
MASKED = ["dense", "lengths", "resets"]


@needs_instructions
@pytest.mark.parametrize(
    ("cell", "shape", "masked"),
    [
        pytest.param(cell, shape, MASKED[(k + n) % 3], id=f"{cell.name}-{n}-{MASKED[(k + n) % 3]}")
        for k, cell in enumerate([cells.rnn_tanh, cells.lstm, cells.gru])
        for n, shape in enumerate(SHAPES)
    ],
)
def test_products_of_rounded_values(cell, shape, masked):
    """The error against float64 is that of `Scan`, whose products are of rounded values too."""
    weights, x, carry = arguments(cell, shape, jnp.float32)
    steps, batch = shape[:2]
    mask = None
    if masked != "dense":
        lengths = np.random.default_rng(3).integers(0, steps + 1, batch)
        mask = np.arange(steps)[:, None] < np.maximum(lengths, [steps] + [0] * (batch - 1))
    if masked == "resets":
        mask = mask.astype(np.uint8) + (np.random.default_rng(4).random(mask.shape) < 0.3) * mask
        start = tuple(-0.5 * c for c in carry)
        weights = weights._replace(initial=start)
        mask = jnp.asarray(mask, jnp.uint8)
    low = rounded(weights)._replace(initial=weights.initial)
    args = low, rounded(x), carry
    cotangents = cotangents_for(jnp.asarray(x), carry)
    wide = jax.tree.map(lambda a: a.astype(jnp.float64), (args, cotangents))
    exact = value_and_gradients(strategies.Scan(), cell, mask, *wide)
    got = value_and_gradients(strategies.Native(), cell, mask, args, cotangents)
    alike = value_and_gradients(strategies.Scan(), cell, mask, args, cotangents)
    assert jax.tree.map(lambda a: a.dtype, got) == jax.tree.map(lambda a: a.dtype, alike)
    for mine, theirs, true in zip(got, alike, exact, strict=True):
        assert worst(mine, true) < 1e-3 + 2 * worst(theirs, true)
    assert worst(got, exact) > 1e-4, "products in float32?"


@needs_instructions
@pytest.mark.parametrize("cell", [cells.lstm, cells.gru], ids=lambda c: c.name)
def test_steps_one_at_a_time_equal_the_sequence(cell):
    """A call of one step rounds the states as one of many does."""
    weights, x, carry = arguments(cell, (12, 2, 3, 40), jnp.float32)
    run = partial(strategies.Native(), cell, rounded(weights))
    whole, last = run(x, carry)
    parts = []
    for step in x[:, None]:
        y, carry = run(step, carry)
        parts.append(y)
    np.testing.assert_allclose(jnp.concatenate(parts), whole, atol=2e-6)
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-6), carry, last)


@needs_instructions
def test_float32_rounded_in_the_products_alone():
    """A layer in bfloat16 converts neither weights nor inputs; its gradients are not rounded."""
    weights, x, carry = arguments(cells.lstm, (6, 3, 4, 9), jnp.float32)
    run = partial(value_and_gradients, strategies.Native(products="bfloat16"), cells.lstm, None)
    cotangents = cotangents_for(x, carry)
    got = run((weights, x, carry), cotangents)
    low = value_and_gradients(
        strategies.Native(), cells.lstm, None, (rounded(weights), rounded(x), carry), cotangents
    )
    # There the biases are rounded too.
    assert worst(got[0], jax.tree.map(np.float64, low[0])) < 1e-2
    assert {a.dtype for a in jax.tree.leaves(got)} == {jnp.dtype("float32")}

    layer = jaxrnn.LSTM(4, 9, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)
    text = str(jax.make_jaxpr(lambda s, x: nnx.merge(graph, s)(x)[0])(state, x))
    assert "narrow=True" in text
    assert "new_dtype=bfloat16" not in text
    assert text.count("jaxrnn_round[") == 1  # the outputs

    # What the kernel does not run is converted for `Scan`.
    dropped = jaxrnn.LSTM(
        4, 9, recurrent_dropout=0.5, dtype=jnp.bfloat16, rngs=nnx.Rngs(0, dropout=1)
    )
    assert dropped(x)[0].dtype == jnp.bfloat16
    projected = jaxrnn.LSTM(4, 9, proj_size=2, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert projected(x)[0].dtype == jnp.bfloat16


@needs_instructions
@pytest.mark.parametrize("shape", [(3, 2, 5), (1, 1, 1), (7, 33, 3), (2, 0, 4), (40, 50, 301)])
def test_rounding_of_outputs(shape):
    """The kernel rounds as XLA does: halves to even, NaN to NaN, what is too large to infinity."""
    ys = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    special = [np.nan, np.inf, -np.inf, 3.4e38, 1 + 2**-8, 1 + 3 * 2**-8, -0.0]
    ys.flat[: len(special)] = special[: ys.size]
    got, wanted = jax.jit(outputs_in_bfloat16)(ys), jnp.asarray(ys).astype(jnp.bfloat16)
    assert got.dtype == jnp.bfloat16
    same = lambda a, b: np.testing.assert_array_equal(np.float32(a), np.float32(b))  # noqa: E731
    same(got, wanted)
    same(jnp.signbit(got), jnp.signbit(wanted))
    members = jnp.stack([jnp.asarray(ys), jnp.asarray(ys)[:, ::-1]], axis=1)
    found = jax.vmap(outputs_in_bfloat16, 1, 1)(members)
    same(found[:, 0], wanted)
    same(found[:, 1], wanted[:, ::-1])


@needs_instructions
def test_derivative_of_rounded_outputs():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 3, 5)), jnp.float32)
    seed = (x + 1).astype(jnp.bfloat16)
    pull = lambda f: jax.vjp(f, x)[1](seed)[0]  # noqa: E731
    np.testing.assert_array_equal(pull(outputs_in_bfloat16), pull(lambda x: x.astype(jnp.bfloat16)))
    _, tangent = jax.jvp(outputs_in_bfloat16, (x,), (x,))
    np.testing.assert_array_equal(tangent, x.astype(jnp.bfloat16))


@needs_instructions
def test_a_layer_rounds_its_outputs_in_every_program():
    layer = jaxrnn.GRU(4, 9, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((6, 3, 4)), jnp.float32)
    wanted = layer(x)[0]
    with jax.disable_jit():
        np.testing.assert_array_equal(layer(x)[0], wanted)
    exported = jax.export.export(jax.jit(lambda x: layer(x)[0]))(x).call(x)
    assert exported.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(exported), np.float32(wanted), atol=0.01)
    # As the gradient of each sample, which is no call with more rows.
    loss = lambda x: (layer(x)[0].astype(jnp.float32) ** 2).sum()  # noqa: E731
    each = jax.vmap(jax.grad(loss), 1, 1)(x[:, :, None])
    np.testing.assert_allclose(each[:, :, 0], jax.grad(loss)(x), atol=0.02)


@needs_instructions
def test_forward_mode_and_export_round_too():
    weights, x, carry = arguments(cells.gru, (4, 2, 3, 5), jnp.float32)
    rounds, scan = strategies.Native(products="bfloat16"), strategies.Scan()
    run = lambda strategy, w, x: jax.jvp(lambda x: strategy(cells.gru, w, x, carry)[0], (x,), (x,))  # noqa: E731
    low = weights._replace(ih=rounded(weights.ih), hh=rounded(weights.hh))
    for got, wanted in zip(run(rounds, weights, x), run(scan, low, rounded(x)), strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-2)
    exported = jax.export.export(jax.jit(partial(rounds, cells.gru)))(weights, x, carry)
    ys = exported.call(weights, x, carry)[0]
    np.testing.assert_allclose(ys, scan(cells.gru, low, rounded(x), carry)[0], atol=1e-5)


def test_what_products_in_bfloat16_refuse(monkeypatch):
    with pytest.raises(jaxrnn.InputError, match=r"products=None or 'bfloat16', not 'float16'"):
        strategies.Native(products="float16")
    if native.narrow_builds():
        rounds = strategies.Native(products="bfloat16")
        for dtype, projected in [(jnp.float64, False), (jnp.float32, True)]:
            args = arguments(cells.lstm, (2, 2, 3, 5), dtype, projected=projected)
            with pytest.raises(jaxrnn.InputError, match="takes float32 and no projection"):
                rounds(cells.lstm, *args)
    monkeypatch.setattr(native, "narrow_builds", lambda: ())
    with pytest.raises(jaxrnn.InputError, match="needs a CPU with AVX-512 BF16"):
        strategies.Native(products="bfloat16")


@needs_instructions
def test_nan_and_infinity_stay_in_their_row():
    weights, x, carry = arguments(cells.gru, (4, 3, 2, 5), jnp.float32)
    clean = strategies.Native()(cells.gru, rounded(weights), x, carry)[0]
    x = x.at[1, 1].set(jnp.nan).at[2, 2].set(jnp.inf)
    ys = strategies.Native()(cells.gru, rounded(weights), x, carry)[0]
    assert np.isnan(ys[1:, 1]).all()
    np.testing.assert_array_equal(ys[:, 0], clean[:, 0])
    np.testing.assert_array_equal(ys[:2, 2], clean[:2, 2])


@needs_instructions
def test_vmap_over_inputs_and_over_weights():
    several = [arguments(cells.lstm, (5, 2, 3, 8), jnp.float32, seed=k) for k in range(3)]
    weights, x, carry = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
    low = rounded(weights)
    run = lambda *args: strategies.Native()(cells.lstm, *args)  # noqa: E731
    one = jax.tree.map(lambda a: a[0], low)
    for axes, given in [((None, 0, 0), one), ((0, 0, 0), low)]:
        got = jax.vmap(run, axes)(given, x, carry)
        for k in range(3):
            member = one if axes[0] is None else jax.tree.map(lambda a, k=k: a[k], low)
            wanted = run(member, x[k], jax.tree.map(lambda a, k=k: a[k], carry))
            of_member = jax.tree.map(lambda a, k=k: a[k], got)
            jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), of_member, wanted)


@pytest.mark.parametrize(
    ("build", "projected"), [*((build, False) for build in WIDENING), (None, True)]
)
def test_bfloat16_is_float32_on_rounded_weights_and_inputs(build, projected):
    weights, x, carry = arguments(cells.lstm, (6, 3, 3, 5), jnp.float32, projected=projected)
    mask = jnp.arange(6)[:, None] < jnp.array([[6, 0, 4]])
    low = rounded(weights)
    if projected:  # as a layer's `dtype` leaves them
        low = low._replace(b_ih=weights.b_ih, b_hh=weights.b_hh)
    widened = jax.tree.map(lambda w: w.astype(jnp.float32), low)
    seen = x.astype(jnp.bfloat16).astype(jnp.float32)
    cotangents = cotangents_for(x, carry)
    run = partial(value_and_gradients, strategies.Native(build), cells.lstm, mask)
    results, (dweights, *others) = run((low, x, carry), cotangents)
    wanted, (of_weights, *rest) = run((widened, seen, carry), cotangents)
    assert_equal = partial(jax.tree.map, np.testing.assert_array_equal)
    assert_equal((results, others), (wanted, rest))
    assert_equal(dweights, jax.tree.map(lambda d, w: d.astype(w.dtype), of_weights, low))


@pytest.mark.core
@pytest.mark.parametrize("option", ["dtype", "param_dtype"])
def test_layers_in_bfloat16_run_the_kernel(option):
    layer = jaxrnn.LSTM(3, 5, rngs=nnx.Rngs(0), **{option: jnp.bfloat16})
    x = jnp.ones((4, 2, 3), layer.weight_ih_l0[...].dtype)
    graph, state = nnx.split(layer)
    assert calls(lambda state, x: nnx.merge(graph, state)(x)[0], state, x) == [native.FORWARD]


def test_bfloat16_in_forward_mode_and_of_the_second_order():
    weights, x, carry = arguments(cells.gru, (4, 2, 3, 5), jnp.float32)
    low = rounded(weights)
    widened = jax.tree.map(lambda w: w.astype(jnp.float32), low)

    def curvature(strategy, weights):
        along = jax.tree.map(jnp.ones_like, x)
        loss = lambda x: (strategy(cells.gru, weights, x, carry)[0] ** 2).sum()  # noqa: E731
        return jax.jvp(jax.grad(loss), (x,), (along,))

    x = x.astype(jnp.bfloat16).astype(jnp.float32)
    got, wanted = curvature(strategies.Native(), low), curvature(strategies.Scan(), widened)
    # The cotangents of the inputs pass bfloat16.
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-2), got, wanted)
