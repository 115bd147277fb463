"""CPU kernel: odd sizes, every instruction set, accuracy of its functions, and its limits."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from contract import STRATEGIES
from jaxrnn import cells, native, strategies
from jaxrnn.cells import Weights
from scripts import run_code

pytestmark = pytest.mark.skipif(
    not native.load(), reason="jaxrnn was installed without a C++ compiler: there is no CPU kernel"
)
BUILDS = native.load()
CELLS = [cells.rnn_tanh, cells.rnn_relu, cells.lstm, cells.gru]
every_cell = pytest.mark.parametrize("cell", CELLS, ids=[c.name for c in CELLS])
every_layer = pytest.mark.parametrize(
    ("cell", "projected"),
    [*((c, False) for c in CELLS), (cells.lstm, True)],
    ids=[*(c.name for c in CELLS), "projected lstm"],
)
every_build = pytest.mark.parametrize("build", BUILDS)

# T, B, I, H: one unit, partial vectors, several panels, several blocks of rows; the first and the
# last have so few rows that the kernel reads the weights in place. Then shapes that use several
# threads, which divide the rows, or the units if there are few rows and many weights.
SHAPES = [(5, 1, 3, 1), (4, 7, 1, 3), (7, 5, 3, 17), (4, 7, 2, 63), (6, 3, 33, 100), (2, 4, 9, 37)]
THREADED = [(40, 30, 33, 100), (60, 2, 16, 260), (2, 4, 400, 257)]


def arguments(cell, shape, dtype, *, bias=True, projected=False, seed=0):
    steps, batch, inputs, hidden = shape
    rng = np.random.default_rng(seed)
    rows, outputs = cell.gates * hidden, (hidden + 1) // 2 if projected else hidden

    def draw(*size, scale=0.5):
        return jnp.asarray(scale * rng.standard_normal(size), dtype)

    weights = Weights(
        draw(rows, inputs),
        draw(rows, outputs, scale=hidden**-0.5),
        draw(rows) if bias else None,
        draw(rows) if bias else None,
        draw(outputs, hidden, scale=hidden**-0.5) if projected else None,
    )
    carry = (draw(batch, outputs), *(draw(batch, hidden) for _ in range(cell.states - 1)))
    return weights, draw(steps, batch, inputs), carry


def cotangents_for(x, carry):
    """Random cotangents of the outputs and of the last carry."""
    rng = np.random.default_rng(5)
    shapes = (*x.shape[:2], carry[0].shape[1]), tuple(c.shape for c in carry)
    draw = lambda shape: rng.standard_normal(shape).astype(x.dtype)  # noqa: E731
    return draw(shapes[0]), tuple(map(draw, shapes[1]))


def value_and_gradients(strategy, cell, mask, args, cotangents):
    outputs, pull = jax.vjp(lambda *a: strategy(cell, *a, mask), *args)
    return outputs, pull(cotangents)


def assert_close(got, wanted, tolerance):
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(g, w, rtol=tolerance, atol=tolerance * (1 + np.abs(w).max()))


def expected(run, mask, args, cotangents, *, reverse):
    """The results of `run`, a program with biases, a mask and one direction, for any arguments.

    No bias is a bias of zeros, no mask is one of ones, and the reverse direction is a flip.
    """
    flip = (lambda a: a[::-1]) if reverse else lambda a: a
    weights, x, carry = jax.tree.map(np.asarray, args)
    mask = np.ones(x.shape[:2], bool) if mask is None else mask
    zeros, bias = np.zeros(weights.hh.shape[0], x.dtype), weights.b_ih is not None
    full = weights if bias else weights._replace(b_ih=zeros, b_hh=zeros)
    seeds = flip(cotangents[0]), cotangents[1]
    (ys, last), (dweights, dx, dcarry) = run(flip(mask), (full, flip(x), carry), seeds)
    dweights = dweights if bias else dweights._replace(b_ih=None, b_hh=None)
    return (flip(np.asarray(ys)), last), (dweights, flip(np.asarray(dx)), dcarry)


def compare(build, cell, shape, dtype, tolerance, *, projected):
    """Compares with `Scan` in both directions, without a mask and with lengths from 0 to T."""
    steps, batch = shape[:2]
    rng = np.random.default_rng(1)
    lengths = rng.permutation([*rng.integers(0, steps + 1, max(0, batch - 2)), 0, steps][-batch:])
    prefix = np.arange(steps)[:, None] < lengths[None]
    scan = jax.jit(partial(value_and_gradients, strategies.Scan(), cell))
    for bias, mask, reverse in [
        (True, prefix, False),
        (False, None, False),
        (True, None, True),
        (False, prefix, True),
    ]:
        args = arguments(cell, shape, dtype, bias=bias, projected=projected)
        kernel = partial(strategies.Native(build), reverse=reverse)
        run = jax.jit(partial(value_and_gradients, kernel, cell))
        call = mask, args, cotangents_for(*args[1:])
        assert_close(run(*call), expected(scan, *call, reverse=reverse), tolerance)


@pytest.mark.parametrize("shape", SHAPES + THREADED, ids=str)
@every_layer
def test_odd_sizes_match_scan_in_float64(cell, projected, shape):
    tolerance = 3e-13 if shape in THREADED else 5e-14
    compare(None, cell, shape, jnp.float64, tolerance, projected=projected)


@pytest.mark.parametrize("shape", [SHAPES[2], THREADED[1]], ids=str)
@every_layer
def test_odd_sizes_match_scan_in_float32(cell, projected, shape):
    compare(None, cell, shape, jnp.float32, 3e-5, projected=projected)


@pytest.mark.core
@pytest.mark.parametrize("build", BUILDS[1:])
@every_layer
def test_every_instruction_set(cell, projected, build):
    compare(build, cell, SHAPES[2], jnp.float64, 5e-14, projected=projected)
    compare(build, cell, (3, 9, 5, 24), jnp.float32, 3e-5, projected=projected)
    compare(build, cell, (2, 4, 9, 37), jnp.float32, 3e-5, projected=projected)


@pytest.mark.parametrize("build", BUILDS)
def test_the_instruction_set_that_is_named_is_the_one_that_runs(build):
    args = arguments(cells.gru, (4, 2, 3, 5), jnp.float32)
    program = jax.jit(partial(strategies.Native(build), cells.gru)).lower(*args).as_text()
    assert f"build = {BUILDS.index(build)} : i32" in program


def functions(build, x):
    """tanh and the logistic function of x, taken from one step of a tanh RNN and of a GRU."""
    n = x.size
    zeros, ones = jnp.zeros((1, n), x.dtype), jnp.ones((1, n), x.dtype)
    run = strategies.Native(build)

    def bias(*gates):
        return Weights(
            jnp.zeros((len(gates) * n, 1), x.dtype),
            jnp.zeros((len(gates) * n, n), x.dtype),
            jnp.concatenate(gates),
        )

    step = jnp.zeros((1, 1, 1), x.dtype)
    tanh = run(cells.rnn_tanh, bias(x), step, (zeros,))[0]
    z = run(cells.gru, bias(zeros[0], x, zeros[0]), step, (ones,))[0]  # h = (1 - z) 0 + z 1
    return np.asarray(tanh).ravel(), np.asarray(z).ravel()


@every_build
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_functions_are_accurate_to_the_last_places(build, dtype):
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [rng.uniform(-20, 20, 300), rng.uniform(-1, 1, 300), 10.0 ** rng.uniform(-30, 0, 100)]
    ).astype(dtype)
    wide = x.astype(np.longdouble)
    got = functions(build, jnp.asarray(x))
    for values, exact in zip(got, (np.tanh(wide), 1 / (1 + np.exp(-wide))), strict=True):
        assert (np.abs(values - exact) <= 4 * np.spacing(np.abs(exact.astype(dtype)))).all()


@pytest.mark.core
@every_build
def test_functions_at_extreme_arguments(build):
    x = jnp.asarray([0.0, -0.0, np.inf, -np.inf, np.nan, 1e30, -1e30, 500.0, -500.0], jnp.float32)
    tanh, logistic = functions(build, x)
    np.testing.assert_array_equal(tanh, [0, 0, 1, -1, np.nan, 1, -1, 1, -1])
    np.testing.assert_allclose(logistic, [0.5, 0.5, 1, 0, np.nan, 1, 0, 1, 0], atol=1e-37)


@every_layer
def test_nan_and_infinity_propagate_as_in_scan(cell, projected):
    weights, x, carry = arguments(cell, (6, 4, 3, 5), jnp.float32, projected=projected)
    x = x.at[2, 1, 0].set(np.nan).at[3, 2, 1].set(np.inf).at[4, 3, 2].set(-np.inf)
    (got, _), (wanted, _) = (
        strategy(cell, weights, x, carry) for strategy in (strategies.Native(), strategies.Scan())
    )
    np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.core
def test_unsupported_arguments_raise_one_sentence():
    run = strategies.Native()
    weights, x, carry = arguments(cells.lstm, (2, 2, 3, 4), jnp.float32)
    with pytest.raises(jaxrnn.InputError, match=r"not own; strategies.Scan runs every cell"):
        run(cells.lstm._replace(name="own"), weights, x, carry)
    projected = Weights(weights.ih[:4], weights.hh[:4, :2], hr=jnp.ones((2, 4), jnp.float32))
    with pytest.raises(jaxrnn.InputError, match=r"does not project rnn_tanh .*Scan does\."):
        run(cells.rnn_tanh, projected, x, (carry[0][:, :2],))
    low = weights._replace(ih=weights.ih.astype(jnp.bfloat16))
    with pytest.raises(jaxrnn.InputError, match=r"float32 or in float64, not in bfloat16, float32"):
        run(cells.lstm, low, x, carry)
    matrices = weights._replace(hh=weights.hh.astype(jnp.bfloat16), ih=low.ih)
    narrow = tuple(c.astype(jnp.bfloat16) for c in carry)
    assert run.refusal(cells.lstm, matrices, x, carry) == ""
    for state in (narrow, (carry[0], narrow[1])):
        assert "not in bfloat16, float32" in run.refusal(cells.lstm, matrices, x, state)
    with pytest.raises(jaxrnn.InputError, match="no build 'sse1' for this machine, only"):
        strategies.Native("sse1")


@pytest.mark.core
@pytest.mark.parametrize(
    ("steps", "served"), [(2**31 - 1, True), (2**31, False), (2**32 - 1, False)]
)
def test_the_number_of_steps_is_limited_to_31_bits(steps, served):
    """`jax.eval_shape` allocates nothing."""
    weights, x, carry = arguments(cells.lstm, (1, 1, 1, 1), jnp.float32)
    long = jax.ShapeDtypeStruct((steps, 1, 1), x.dtype)
    run = partial(jax.eval_shape, partial(strategies.Native(), cells.lstm), weights, long, carry)
    if served:
        assert run()[0].shape == (steps, 1, 1)
    else:
        with pytest.raises(jaxrnn.InputError, match=r"T \* B below 2\*\*31"):
            run()


@pytest.mark.parametrize("projected", [False, True])
def test_bfloat16_is_float32_on_rounded_weights_and_inputs(projected):
    weights, x, carry = arguments(cells.lstm, (6, 3, 3, 5), jnp.float32, projected=projected)
    mask = jnp.arange(6)[:, None] < jnp.array([[6, 0, 4]])
    low = jax.tree.map(lambda w: w.astype(jnp.bfloat16), weights)
    if projected:  # as a layer's `dtype` leaves them
        low = low._replace(b_ih=weights.b_ih, b_hh=weights.b_hh)
    rounded = jax.tree.map(lambda w: w.astype(jnp.float32), low)
    seen = x.astype(jnp.bfloat16).astype(jnp.float32)
    cotangents = cotangents_for(x, carry)
    run = partial(value_and_gradients, strategies.Native(), cells.lstm, mask)
    results, (dweights, *others) = run((low, x, carry), cotangents)
    wanted, (of_weights, *rest) = run((rounded, seen, carry), cotangents)
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
    low = jax.tree.map(lambda w: w.astype(jnp.bfloat16), weights)
    rounded = jax.tree.map(lambda w: w.astype(jnp.float32), low)

    def curvature(strategy, weights):
        along = jax.tree.map(jnp.ones_like, x)
        loss = lambda x: (strategy(cells.gru, weights, x, carry)[0] ** 2).sum()  # noqa: E731
        return jax.jvp(jax.grad(loss), (x,), (along,))

    seen = x.astype(jnp.bfloat16).astype(jnp.float32)
    x = seen
    got, wanted = curvature(strategies.Native(), low), curvature(strategies.Scan(), rounded)
    # The cotangents of the inputs pass bfloat16.
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-2), got, wanted)


@pytest.mark.core
def test_without_the_library_native_raises_and_scan_is_the_default(monkeypatch):
    monkeypatch.setattr(native, "load", lambda: ())
    arguments_ = cells.gru, *arguments(cells.gru, (2, 2, 3, 4), jnp.float32)
    with pytest.raises(jaxrnn.InputError, match=r"C\+\+17 compiler"):
        strategies.Native()(*arguments_)
    assert strategies.default(*arguments_) == strategies.Scan()


@pytest.mark.core
def test_native_is_the_default_where_it_runs():
    kernel, scan = strategies.Native(), strategies.Scan()
    for dtype, wanted in [("float32", kernel), ("float64", kernel), ("bfloat16", scan)]:
        args = arguments(cells.gru, (2, 2, 3, 4), jnp.dtype(dtype))
        assert strategies.default(cells.gru, *args) == wanted  # a carry in bfloat16 is Scan's
    args = arguments(cells.lstm, (2, 2, 3, 4), jnp.float32, projected=True)
    assert strategies.default(cells.lstm, *args) == strategies.Native()


def calls(run, *args):
    """Number of kernel calls in the compiled program of a function."""
    text = jax.jit(run).lower(*args).compile().as_text()
    return [name for name in (native.FORWARD, native.ADJOINT) if f'"{name}"' in text]


@pytest.mark.parametrize("projected", [False, True])
def test_a_gradient_makes_two_calls_and_forward_mode_uses_scan(projected):
    args = arguments(cells.lstm, (4, 2, 3, 5), jnp.float32, projected=projected)
    run = lambda *a: strategies.Native()(cells.lstm, *a)[0].sum()  # noqa: E731
    assert calls(run, *args) == [native.FORWARD]
    assert calls(jax.grad(run), *args) == [native.FORWARD, native.ADJOINT]
    assert calls(lambda *a: jax.jvp(run, a, a)[1], *args) == []


def stacked(count, shape, seed=0):
    several = [arguments(cells.lstm, shape, jnp.float32, seed=seed + k) for k in range(count)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)


def test_vmap_over_inputs_is_one_call_with_more_rows():
    """Of its gradient too, which needs no memory for the weights' gradients of each member."""
    count, hidden = 50, 64
    (weights, *_), (_, x, carry) = (
        arguments(cells.lstm, (4, 2, 3, hidden), jnp.float32),
        stacked(count, (4, 2, 3, hidden)),
    )

    def total(weights, x, carry):
        run = lambda x, carry: strategies.Native()(cells.lstm, weights, x, carry)[0]  # noqa: E731
        return jax.vmap(run)(x, carry).sum()

    assert calls(total, weights, x, carry) == [native.FORWARD]
    gradient = jax.jit(jax.grad(total)).lower(weights, x, carry).compile()
    assert "while(" not in gradient.as_text()
    assert calls(jax.grad(total), weights, x, carry) == [native.FORWARD, native.ADJOINT]
    weight = 4 * hidden * hidden * 4
    assert gradient.memory_analysis().temp_size_in_bytes < count / 2 * weight


def test_vmap_over_resets_and_initial_states_is_each_member_alone():
    """Each member's rows keep the states to which they are reset, in one call with all rows."""
    weights, _, _ = arguments(cells.lstm, (6, 2, 3, 5), jnp.float32)
    _, x, carry = stacked(3, (6, 2, 3, 5))
    initial = tuple(-c for c in carry)
    masks = jnp.asarray(np.random.default_rng(0).integers(0, 3, (3, 6, 2)), jnp.uint8)
    weights, x, carry, initial = jax.tree.map(jnp.float64, (weights, x, carry, initial))

    def loss(strategy, initial, x, carry, mask):
        ys, last = strategy(cells.lstm, weights._replace(initial=initial), x, carry, mask)
        return sum((a**3).sum() for a in (ys, *last))

    def total(*args):
        return jax.vmap(partial(loss, strategies.Native()))(*args).sum()

    args = initial, x, carry, masks
    gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(*args).compile()
    assert "while(" not in gradient.as_text()
    alone = jax.jit(jax.grad(partial(loss, strategies.Scan()), argnums=(0, 1, 2)))
    members = [alone(*(jax.tree.map(itemgetter(k), a) for a in args)) for k in range(3)]
    wanted = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    assert_close(gradient(*args), wanted, 1e-13)


@pytest.mark.parametrize(
    ("batch", "hidden", "served"), [(2, 80, True), (1, 64, True), (1, 80, False)]
)
def test_vmap_over_stacked_weights_is_a_call_for_each_unless_each_is_one_wide_row(
    batch, hidden, served
):
    args = stacked(3, (4, batch, 3, hidden))
    run = lambda *a: strategies.Native()(cells.lstm, *a)[0].sum()  # noqa: E731
    assert calls(jax.vmap(run), *args) == [native.FORWARD] * served
    both = [native.FORWARD, native.ADJOINT]
    assert calls(jax.vmap(jax.grad(run)), *args) == both * served


def test_stacked_weights_may_be_mapped_along_any_axis():
    weights, x, carry = stacked(3, (4, 2, 3, 5))
    x, carry = jax.tree.map(itemgetter(0), (x, carry))
    run = lambda w: strategies.Native()(cells.lstm, w, x, carry)[0]  # noqa: E731
    behind = jax.tree.map(lambda w: jnp.moveaxis(w, 0, -1), weights)
    assert_close(jax.jit(jax.vmap(run, -1))(behind), jax.jit(jax.vmap(run))(weights), 1e-6)


@pytest.mark.parametrize("projected", [False, True])
def test_a_gradient_stores_the_gates_once(projected):
    """LSTM: 4 H + H saved per step, overwritten by cotangents; outputs and their cotangents."""
    steps, batch, hidden = 50, 16, 64
    args = arguments(cells.lstm, (steps, batch, 8, hidden), jnp.float32, projected=projected)
    loss = lambda *a: (strategies.Native()(cells.lstm, *a)[0] ** 2).sum()  # noqa: E731
    memory = jax.jit(jax.grad(loss)).lower(*args).compile().memory_analysis()
    features = 5 * hidden + 2.5 * args[2][0].shape[1]
    assert memory.temp_size_in_bytes <= features * steps * batch * 4


@pytest.mark.parametrize(
    ("strategy", "inputs"),
    [(strategies.Native(), "4x2x3"), (strategies.Shooting(2, strategies.Native()), "2x4x3")],
    ids=["Native", "Shooting"],
)
def test_no_gradient_of_inputs_is_computed_if_not_needed(strategy, inputs):
    args = arguments(cells.gru, (4, 2, 3, 5), jnp.float32)
    loss = lambda *a: strategy(cells.gru, *a)[0].sum()  # noqa: E731
    for argnums, wanted in [((0,), False), ((0, 1), True)]:
        text = jax.jit(jax.grad(loss, argnums=argnums)).lower(*args).as_text()
        results = [s.split("->")[-1] for s in text.splitlines() if f"@{native.ADJOINT}(" in s]
        assert any(f"tensor<{inputs}xf32>" in r for r in results) == wanted
        assert results


@every_layer
def test_an_exported_function_does_not_call_the_kernel(cell, projected):
    args = arguments(cell, (4, 2, 3, 5), jnp.float64, projected=projected)
    run = jax.jit(lambda *a: jax.value_and_grad(lambda w, x, c: _sum(cell, w, x, c))(*a))
    exported = jax.export.export(run)(*args)
    assert f"@{native.FORWARD}" not in exported.mlir_module()
    assert_close(exported.call(*args), run(*args), 1e-13)


def _sum(cell, weights, x, carry):
    return strategies.Native()(cell, weights, x, carry)[0].sum()


# As text, for programs in processes of their own.
EACH = ", ".join(repr(case.strategy) for case in STRATEGIES.values() if case.devices)

DEVICES = """
from functools import partial
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
import jaxrnn
from jaxrnn import cells, strategies
from jaxrnn.strategies import *
mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
rng = np.random.default_rng(0)
draw = lambda *s: jnp.asarray(rng.standard_normal(s), jnp.float32)
weights = cells.Weights(draw(12, 3), 0.5 * draw(12, 4))
x, carry = draw(5, 6, 3), (draw(6, 4),)
run = jax.jit(lambda x: strategies.Native()(cells.gru, weights, x, carry)[0])
wanted = run(x)
split = jax.device_put(x, NamedSharding(mesh, PartitionSpec(None, "batch")))
rows = jax.device_put(carry[0], NamedSharding(mesh, PartitionSpec("batch")))
np.testing.assert_allclose(run(split), wanted, rtol=1e-6)
per_device = jax.shard_map(
    lambda x, h: strategies.Native()(cells.gru, weights, x, (h,))[0],
    mesh=mesh,
    in_specs=(PartitionSpec(None, "batch"), PartitionSpec("batch")),
    out_specs=PartitionSpec(None, "batch"),
    check_vma=False,
)
np.testing.assert_allclose(jax.jit(per_device)(split, rows), wanted, rtol=1e-6)

# With types that describe the placement: also gradients, of strategies and a module without hx.
def loss(strategy, weights, x, h):
    return (strategy(cells.gru, weights, x, (h,))[0] ** 2).sum()

def of_module(strategy, state, x, _):
    module = nnx.merge(graph, state)
    module.strategy = strategy
    return (module(x, lengths=jnp.full((x.shape[1],), 4))[0] ** 2).sum()

graph, state = nnx.split(jaxrnn.GRU(3, 4, bidirectional=True, rngs=nnx.Rngs(0)))
axes = {kind: jax.make_mesh((2,), ("b",), axis_types=(kind,)) for kind in jax.sharding.AxisType}
by_rows = (PartitionSpec(), PartitionSpec(None, "b"), PartitionSpec("b"))
args = x, carry[0]
for strategy in (strategies.Shooting(2), EACH):
    for run, first in ((loss, weights), (of_module, state)):
        gradients = jax.grad(partial(run, strategy), argnums=(0, 1))
        wanted = jax.tree.leaves(jax.jit(gradients)(first, *args))
        mesh = axes[jax.sharding.AxisType.Auto]
        per_device = jax.shard_map(gradients, mesh=mesh, in_specs=by_rows, out_specs=by_rows[:2])
        got = jax.tree.leaves(jax.jit(per_device)(first, *args))
        with jax.set_mesh(axes[jax.sharding.AxisType.Explicit]) as mesh:
            placed = [jax.device_put(a, jax.NamedSharding(jax.sharding.get_mesh(), s))
                      for a, s in zip((first, *args), by_rows)]
            got += jax.tree.leaves(jax.jit(gradients)(*placed))
        for g, w in zip(got, wanted + wanted, strict=True):
            np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-5 * abs(w).max())
print("devices", jax.device_count())
"""


def test_without_jit():
    args = arguments(cells.gru, (4, 2, 3, 5), jnp.float64)
    cotangents = jax.tree.map(jnp.asarray, cotangents_for(*args[1:]))
    call = strategies.Native(), cells.gru, None, args, cotangents
    wanted = value_and_gradients(*call)
    with jax.disable_jit():
        got = value_and_gradients(*call)
    assert_close(got, wanted, 1e-14)


# In a separate process, because this one checks the dtypes in annotations.
NUMBERS = """
import jax.numpy as jnp, numpy as np
from jaxrnn import cells, strategies
weights = cells.Weights(jnp.ones((12, 3)), jnp.ones((12, 4)))
mask = jnp.array([[1, 1], [1, 0], [1, 0], [0, 0]])
for s in (strategies.Native(), strategies.Shooting(2)):
    run = lambda mask: s(cells.gru, weights, jnp.ones((4, 2, 3)), (jnp.zeros((2, 4)),), mask)[0]
    for dtype in (jnp.int32, jnp.float32):
        np.testing.assert_array_equal(run(mask.astype(dtype)), run(mask.astype(bool)))
"""


def test_a_mask_of_numbers_is_converted_to_booleans():
    done = run_code(NUMBERS)
    assert done.returncode == 0, done.stderr


def test_on_several_devices():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    flags["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    got = subprocess.run(
        [sys.executable, "-c", DEVICES.replace("EACH", EACH)],
        env={**os.environ, **flags},
        capture_output=True,
        text=True,
    )
    assert got.returncode == 0, got.stderr
    assert got.stdout == "devices 2\n"


# Values of B whose blocks of rows depend on the number of threads.
@pytest.mark.parametrize("batch", [3, 5, 40])
@every_layer
def test_calls_from_several_threads_at_once_give_the_same_bits(cell, projected, batch):
    """The calls compete for the same workers; none may deadlock or round differently."""
    args = arguments(cell, (60, batch, 30, 64), jnp.float32, projected=projected)
    run = jax.jit(partial(value_and_gradients, strategies.Native(), cell, None))
    cotangents = cotangents_for(*args[1:])
    wanted = run(args, cotangents)
    with ThreadPoolExecutor(6) as pool:
        for got in pool.map(lambda _: jax.block_until_ready(run(args, cotangents)), range(40)):
            for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
                np.testing.assert_array_equal(g, w)
