"""Weights' gradients summed in blocks of steps: exact, and as accurate as the kernel's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrnn import cells, native, strategies
from jaxrnn.cells import Weights
from jaxrnn.derivative import blocks
from jaxrnn.native import products

KERNEL = pytest.param(
    True, marks=pytest.mark.skipif(not native.load(), reason="jaxrnn was installed without one")
)


# One block, blocks of one size, and two numbers of steps with a rest.
@pytest.mark.parametrize("steps", [60, 600, 601, 1031])
@pytest.mark.parametrize("kernel", [KERNEL, False])
def test_blocks_change_no_value_and_no_gradient(steps, kernel, monkeypatch):
    monkeypatch.setattr(products, "LEAST", 1)
    if not kernel:
        monkeypatch.setattr(native, "load", lambda: ())
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(steps, 3, 5)), rng.normal(size=(steps, 3, 4))
    weight, bias = rng.normal(size=(4, 5)), rng.normal(size=4)

    @jax.jit
    def run(x, weight, bias, dy):
        y, pull = jax.vjp(lambda *a: blocks.project(*a, a[0].dtype), x, weight, bias)
        return y, pull(dy)

    lowered = run.lower(x, weight, bias, dy).as_text()
    assert (native.OUTER in lowered) == kernel
    assert ("while" in lowered) == (steps > 60 and not kernel)  # 180 rows are one block
    y, (dx, dweight, dbias) = run(x, weight, bias, dy)
    np.testing.assert_allclose(y, x @ weight.T + bias, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(dx, dy @ weight, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(dweight, np.einsum("tbo,tbi->oi", dy, x), rtol=1e-13, atol=1e-12)
    np.testing.assert_allclose(dbias, dy.sum((0, 1)), rtol=1e-13, atol=1e-12)


@pytest.mark.skipif(not native.load(), reason="there is no CPU kernel to compare with")
@pytest.mark.parametrize("steps", [1000, 10_000])
def test_the_error_of_scan_is_within_twice_the_kernels(steps):
    rng = np.random.default_rng(0)
    shapes = (64, 16), (64, 16), (64,), (64,)
    weights = Weights(*(0.25 * rng.normal(size=s) for s in shapes))
    x, dy = rng.normal(size=(steps, 1, 16)), rng.normal(size=(steps, 1, 16))

    def gradients(strategy, dtype):
        def loss(weights, x, dy):
            carry = (jnp.zeros((1, 16), dtype),) * 2
            return (strategy(cells.lstm, weights, x, carry)[0] * dy).sum()

        arguments = jax.tree.map(lambda a: jnp.asarray(a, dtype), (weights, x, dy))
        return [np.asarray(g, np.float64) for g in jax.jit(jax.grad(loss))(*arguments)[:4]]

    exact = gradients(strategies.Native(), jnp.float64)

    def error(strategy):
        pairs = zip(gradients(strategy, jnp.float32), exact, strict=True)
        return max(abs(g - e).max() / abs(e).max() for g, e in pairs)

    assert error(strategies.Scan()) <= 2 * error(strategies.Native())
