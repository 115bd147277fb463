"""Programs with the CPU kernel: its calls, their memory, `vmap`, export, devices and threads."""

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

import jaxrnn
from contract import STRATEGIES, needs_kernel
from jaxrnn import cells, native, strategies
from kernel_cases import (
    arguments,
    assert_close,
    calls,
    cotangents_for,
    every_layer,
    stacked,
    value_and_gradients,
)
from scripts import run_code

pytestmark = needs_kernel


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


@pytest.mark.parametrize("projected", [False, True])
def test_a_gradient_makes_two_calls_and_forward_mode_uses_scan(projected):
    args = arguments(cells.lstm, (4, 2, 3, 5), jnp.float32, projected=projected)
    run = lambda *a: strategies.Native()(cells.lstm, *a)[0].sum()  # noqa: E731
    assert calls(run, *args) == [native.FORWARD]
    assert calls(jax.grad(run), *args) == [native.FORWARD, native.ADJOINT]
    assert calls(lambda *a: jax.jvp(run, a, a)[1], *args) == []


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


def test_donated_arrays_are_reused():
    """A stream's state, and the outputs of a call, take the place of those that were donated."""
    weights, x, carry = arguments(cells.lstm, (5, 3, 4, 64), jnp.float32)
    run = lambda carry, ys, w, x: strategies.Native()(cells.lstm, w, x, carry)  # noqa: E731
    wanted = run(carry, None, weights, x)
    ys = jnp.zeros((5, 3, 64), jnp.float32)
    step = jax.jit(run, donate_argnums=(0, 1), keep_unused=True)
    places = [a.unsafe_buffer_pointer() for a in (*carry, ys)]
    got = step(carry, ys, weights, x)
    assert all(a.is_deleted() for a in (*carry, ys))
    assert sorted(a.unsafe_buffer_pointer() for a in jax.tree.leaves(got)) == sorted(places)
    assert_close(got, wanted, 1e-6)


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
    devices = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2"
    flags = {"XLA_FLAGS": devices, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    got = subprocess.run(
        [sys.executable, "-c", DEVICES.replace("EACH", EACH)],
        env={**os.environ, **flags},
        capture_output=True,
        text=True,
    )
    assert got.returncode == 0, got.stderr
    assert got.stdout == "devices 2\n"


@pytest.mark.parametrize("cell", [cells.lstm, cells.gru], ids=lambda c: c.name)
@pytest.mark.parametrize("low", [False, True])
def test_threads_that_divide_the_units_of_one_row(cell, low):
    """Each owns a part of the units in both passes, and reads the others' after every step."""
    if low and not native.narrow_builds():
        pytest.skip("needs AVX-512 BF16")
    args = arguments(cell, (300, 1, 16, 64), jnp.float32)
    run = jax.jit(partial(value_and_gradients, strategies.Native(), cell, None))
    cotangents = cotangents_for(*args[1:])
    wanted = value_and_gradients(strategies.Scan(), cell, None, args, cotangents)
    if low:
        kernel = strategies.Native(products="bfloat16")
        run = jax.jit(partial(value_and_gradients, kernel, cell, None))
    for _ in range(20):
        assert_close(run(args, cotangents), wanted, 0.03 if low else 1e-5)


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
