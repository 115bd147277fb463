"""The CUDA kernels on a GPU, against `Scan`; skipped without one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import cells, strategies
from jaxrnn.cells import Weights
from jaxrnn.checks import InputError
from jaxrnn.native import cuda as device_code
from jaxrnn.native.cuda import calls, layout

pytestmark = pytest.mark.gpu

needs_gpu = pytest.mark.skipif(
    jax.default_backend() != "gpu" or not device_code.load(), reason="needs an NVIDIA GPU"
)

BARS = {"bfloat16": 3e-2, "default": 5e-3, "highest": 1e-5}
CELLS = {c.name: c for c in (cells.lstm, cells.gru, cells.rnn_tanh)}


def layer_of(cell, hidden, batch, steps=12, dtype=jnp.float32):
    rng = np.random.default_rng(hidden + batch)

    def draw(*shape, scale=1.0):
        return jnp.asarray(rng.standard_normal(shape) * scale, jnp.float32)

    rows = cell.gates * hidden
    weights = Weights(
        draw(rows, 4, scale=0.5),
        draw(rows, hidden, scale=hidden**-0.5),
        draw(rows),
        draw(rows, scale=0.3),
    )
    weights = jax.tree.map(lambda a: a.astype(dtype), weights)
    carry, initial = (
        tuple(draw(batch, hidden, scale=0.5) for _ in range(cell.states)) for _ in range(2)
    )
    weights = weights._replace(initial=initial)  # to which rows are reset
    return weights, draw(steps, batch, 4).astype(dtype), carry


def mask_of(kind, steps, batch):
    if kind == "dense":
        return None
    rng = np.random.default_rng(1)
    if kind == "any":
        return jnp.asarray(rng.random((steps, batch)) < 0.6)
    if kind == "resets":
        return jnp.asarray(rng.integers(0, 3, (steps, batch)), jnp.uint8)
    lengths = jnp.asarray(rng.integers(0, steps + 1, batch))
    return jnp.arange(steps)[:, None] < lengths[None, :]


def value_and_gradients(strategy, cell, weights, x, carry, mask, precision):
    def loss(weights, x, carry):
        ys, last = strategy(cell, weights, x, carry, mask, precision=precision)
        return sum((a**2).sum() for a in (ys, *last)), (ys, last)

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(weights, x, carry)


def wide(tree):
    return jax.tree.map(lambda a: a.astype(jnp.float64), tree)


def assert_close(found, wanted, bar):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        error = jnp.linalg.norm((a.astype(jnp.float64) - b).ravel())
        assert error <= bar * jnp.linalg.norm(b.ravel())


@needs_gpu
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("kind", ["dense", "lengths", "any", "resets"])
@pytest.mark.parametrize("precision", BARS)
@pytest.mark.parametrize(("hidden", "batch"), [(60, 300), (100, 5), (256, 40)])
def test_against_float64(name, kind, precision, hidden, batch):
    cell, low = CELLS[name], precision == "bfloat16"
    dtype = jnp.bfloat16 if low else jnp.float32
    weights, x, carry = layer_of(cell, hidden, batch, dtype=dtype)
    mask = mask_of(kind, x.shape[0], batch)
    wanted = value_and_gradients(
        strategies.Scan(unroll=1), cell, *wide((weights, x, carry)), mask, None
    )
    named = None if low else precision
    found = value_and_gradients(strategies.Native(), cell, weights, x, carry, mask, named)
    assert_close(found, wanted, BARS[precision])


@pytest.mark.skipif(not device_code.load(), reason="this build of jaxrnn has no CUDA kernels")
@pytest.mark.parametrize("kind", ["dense", "lengths", "resets"])
def test_the_kernels_are_what_runs(kind):
    """Programs for a GPU, lowered on any machine. A single step runs as `Scan`."""
    weights, x, carry = layer_of(cells.lstm, 64, 3)
    mask = mask_of(kind, *x.shape[:2])

    def text(x, mask):
        def loss(weights):
            ys, _ = strategies.Native()(cells.lstm, weights, x, carry, mask)
            return ys.sum()

        traced = jax.jit(jax.grad(loss)).trace(weights)
        return traced.lower(lowering_platforms=("cuda",)).as_text()

    whole, single = text(x, mask), text(x[:1], None if mask is None else mask[:1])
    for name in (device_code.FORWARD, device_code.ADJOINT):
        assert name in whole
        assert name not in single


@pytest.mark.skipif(not device_code.load(), reason="this build of jaxrnn has no CUDA kernels")
def test_vmap_over_inputs_and_resets_is_one_launch_of_all_rows():
    batch, members, hidden = 3, 5, 64
    weights, x, carry = layer_of(cells.lstm, hidden, batch)
    mask = mask_of("resets", *x.shape[:2])
    several = jnp.stack([x] * members), jnp.stack([mask] * members)

    def total(weights):
        run = lambda x, mask: strategies.Native()(cells.lstm, weights, x, carry, mask)[0]  # noqa: E731
        return jax.vmap(run)(*several).sum()

    traced = jax.jit(jax.grad(total)).trace(weights)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    states = f"tensor<{2 * members * batch}x{hidden}xf32>"  # of the carry and of the resets
    for name in (device_code.FORWARD, device_code.ADJOINT):
        (call,) = (line for line in text.splitlines() if f"@{name}(" in line)
        assert states in call


@needs_gpu
def test_a_cta_that_never_writes_is_one_error_and_the_next_call_works():
    weights, x, carry = layer_of(cells.lstm, 256, 16, steps=64)

    def compiled():  # anew: a captured graph would repeat the launch in which the CTA was mute
        return jax.jit(lambda x: strategies.Native()(cells.lstm, weights, x, carry)[0])

    good = compiled()(x).block_until_ready()
    device_code.library().jaxrnn_cuda_mute(3)
    assert jnp.isnan(compiled()(x)).any()
    run = compiled()
    with pytest.raises(Exception, match="waited too long"):
        run(x).block_until_ready()
    assert jnp.array_equal(run(x), good)


@needs_gpu
def test_a_batch_without_rows():
    weights, x, carry = layer_of(cells.gru, 64, 0)
    ys, (h,) = jax.jit(lambda x: strategies.Native()(cells.gru, weights, x, carry))(x)
    assert (ys.shape, h.shape) == ((12, 0, 64), (0, 64))


A_GPU = device_code.Gpu((9, 0), 132)


@pytest.fixture
def on(monkeypatch):
    """A function that makes this machine look as if it had that GPU."""

    def pretend(gpu):
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        monkeypatch.setattr(device_code, "gpu", lambda: gpu)

    return pretend


@pytest.mark.skipif(not device_code.load(), reason="this build of jaxrnn has no CUDA kernels")
@pytest.mark.parametrize(
    ("gpu", "hidden", "told"),
    [
        (A_GPU, 1024, ""),
        (A_GPU, 1025, "take at most 1024 hidden units, not 1025"),
        (device_code.Gpu((7, 5), 40), 64, "need compute capability 8.0, and this GPU has 7.5"),
        (device_code.Gpu((8, 0), 108), 1024, "too few multiprocessors for 1024 hidden units"),
        (device_code.Gpu((8, 0), 108), 512, ""),
    ],
)
def test_what_a_gpu_does_not_run_native_refuses_and_the_default_gives_to_scan(
    on, gpu, hidden, told
):
    weights, x, carry = layer_of(cells.lstm, hidden, 3, steps=32)
    on(gpu)
    native = strategies.Native()
    refusal = native.refusal(cells.lstm, weights, x, carry)
    assert told in refusal
    assert bool(refusal) == bool(told)
    chosen = strategies.default(cells.lstm, weights, x, carry)
    assert chosen == (strategies.Scan() if told else native)
    if told:
        with pytest.raises(InputError, match=told):
            native.recurrence(cells.lstm, weights, x, carry)


@pytest.mark.skipif(not device_code.load(), reason="this build of jaxrnn has no CUDA kernels")
def test_the_default_on_a_gpu_for_few_steps_and_for_float64(on):
    weights, x, carry = layer_of(cells.gru, 64, 3, steps=32)
    on(A_GPU)
    assert strategies.default(cells.gru, weights, x, carry) == strategies.Native()
    assert strategies.default(cells.gru, weights, x[:31], carry) == strategies.Scan()
    assert strategies.default(cells.gru, *wide((weights, x, carry))) == strategies.Scan()


def test_steps_that_continue_each_other():
    mask = jnp.array([[1, 0], [0, 0], [1, 1], [1, 0]], bool)
    previous, following = layout.order_steps(mask, reverse=False)
    assert previous.T.tolist() == [[-1, -3, 0, 2], [-3, -3, -1, -3]]
    assert following.T.tolist() == [[2, -1, 3, -1], [-1, -1, -1, -1]]
    previous, following = layout.order_steps(mask, reverse=True)
    assert previous.T.tolist() == [[2, -3, 3, -1], [-3, -3, -1, -3]]
    assert following.T.tolist() == [[-1, -1, 0, 2], [-1, -1, -1, -1]]


@pytest.mark.parametrize(
    ("shape", "blocks"),
    [
        ((512, 16, 384, 128), 32),  # 3 tiles of the result
        ((512, 16, 4096, 1024), 1),  # 256 tiles
        ((96, 64, 64, 3), 16),  # 256 rows in a block
        ((511, 64, 64, 64), 1),  # no power of two divides the steps
    ],
)
def test_sums_of_products_in_blocks_of_steps(shape, blocks):
    assert layout.blocks_of_steps(*shape) == blocks


def test_a_sum_of_products_in_blocks():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((64, 16, 3)), rng.standard_normal((64, 16, 2))
    assert layout.blocks_of_steps(64, 16, 3, 2) > 1
    found = layout.sum_of_products(jnp.float32(a), jnp.float32(b), None)
    np.testing.assert_allclose(found, np.einsum("tbi,tbj->ij", a, b), rtol=1e-5, atol=1e-4)


def test_a_reset_continues_no_step():
    mask = jnp.array([[2, 0, 1, 2, 1]], jnp.uint8).T  # RESET, HOLD, RUN, RESET, RUN
    previous, following = layout.order_steps(mask, reverse=False)
    assert previous[:, 0].tolist() == [-2, -3, 0, -2, 3]
    assert following[:, 0].tolist() == [2, -1, -1, 4, -1]
    previous, following = layout.order_steps(mask, reverse=True)
    assert previous[:, 0].tolist() == [-2, -3, 3, -2, -1]
    assert following[:, 0].tolist() == [-1, -1, -1, 2, -1]


@pytest.mark.parametrize(
    ("dtype", "precision", "config", "products"),
    [
        (jnp.bfloat16, "highest", None, calls.BF16),
        (jnp.float32, None, None, calls.TF32),
        (jnp.float32, "highest", None, calls.FLOAT32),
        (jnp.float32, jax.lax.Precision.HIGHEST, None, calls.FLOAT32),
        (jnp.float32, ("default", "highest"), None, calls.FLOAT32),
        (jnp.float32, None, "float32", calls.FLOAT32),
        (jnp.float32, "default", "highest", calls.TF32),
    ],
)
def test_the_products_follow_jax(dtype, precision, config, products):
    with jax.default_matmul_precision(config):
        assert calls.products(dtype, precision) == products
