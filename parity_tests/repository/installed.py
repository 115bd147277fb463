"""One training step with an installed jaxrnn and its CPU kernel, without PyTorch.

    python -P parity_tests/repository/installed.py

`make wheel` and cibuildwheel run it in an environment that holds only the wheel.
"""

import importlib.util

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jaxrnn
from jaxrnn import native

STEPS = 20


@nnx.jit
def train_step(lstm: jaxrnn.LSTM, optimizer: nnx.Optimizer, x: jax.Array) -> jax.Array:
    def loss(lstm: jaxrnn.LSTM) -> jax.Array:
        output, _ = lstm(x)
        return ((output - 0.5) ** 2).mean()

    value, gradients = nnx.value_and_grad(loss)(lstm)
    optimizer.update(lstm, gradients)
    return value


def main() -> None:
    assert importlib.util.find_spec("torch") is None, "PyTorch is installed here"
    assert native.load(), "the wheel holds no CPU kernel"
    lstm = jaxrnn.LSTM(3, 5, num_layers=2, bidirectional=True, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(lstm, optax.adam(1e-2), wrt=nnx.Param)
    x = jax.random.normal(jax.random.key(0), (7, 4, 3), jnp.float32)
    losses = [float(train_step(lstm, optimizer, x)) for _ in range(STEPS)]
    assert losses[-1] < 0.9 * losses[0], losses
    print(f"{jaxrnn.__file__}: kernel {native.load()[0]}, loss {losses[0]:.3f} to {losses[-1]:.3f}")


if __name__ == "__main__":
    main()
