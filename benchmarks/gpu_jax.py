"""The peers on JAX of benchmarks/gpu.py: jaxrnn's strategies, Flax and `jax.experimental.rnn`."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxrnn
from jaxrnn import strategies

STRATEGIES: dict[str, Any] = {
    "native": lambda: strategies.Native(),
    "scan": lambda: strategies.Scan(unroll=8),
    "shooting": lambda: strategies.Shooting(),
}


def measure(task: Any, turn: Any) -> dict[str, Any]:
    """The median time of a call, in microseconds a step."""
    precision = "highest" if task.dtype == "highest" else "default"
    with jax.default_matmul_precision(precision):
        call, arguments = prepare(task)
        began = time.perf_counter()
        compiled = jax.jit(call).lower(*arguments).compile()
        result = {"compile_s": round(time.perf_counter() - began, 2)}
        with turn:
            return result | {"us": timed(compiled, arguments) / task.steps * 1e6}


def timed(call: Any, arguments: Any) -> float:
    """Seconds of one call: the median of several runs of several calls."""
    for _ in range(2):
        jax.block_until_ready(call(*arguments))
    began = time.perf_counter()
    jax.block_until_ready(call(*arguments))
    once = time.perf_counter() - began
    inner = max(1, min(10, int(0.01 / once)))
    times = []
    for _ in range(5 if once < 0.1 else 2):
        began = time.perf_counter()
        for _ in range(inner):
            result = call(*arguments)
        jax.block_until_ready(result)
        times.append((time.perf_counter() - began) / inner)
    return sorted(times)[len(times) // 2]


def prepare(task: Any) -> tuple[Any, tuple[Any, ...]]:
    """(call, arguments): one inference, or the gradients of all weights and of x."""
    dtype = jnp.bfloat16 if task.dtype == "bfloat16" else jnp.float32
    rng = np.random.default_rng(0)
    shape = task.steps, task.batch, task.hidden
    x = jnp.asarray(rng.standard_normal(shape, np.float32), dtype)
    lengths = None
    if task.lengths == "ragged":
        lengths = jnp.asarray(rng.integers(1, task.steps + 1, task.batch), jnp.int32)
    weights, run = {"flax": flax, "jax.experimental.rnn": experimental}.get(task.peer, ours)(
        task, dtype, lengths
    )
    if task.mode == "inference":
        return run, (weights, x)
    cotangent = jnp.asarray(rng.standard_normal(shape[:2], np.float32))[:, :, None]

    def loss(weights: Any, x: jax.Array) -> jax.Array:
        return (run(weights, x).astype(jnp.float32) * cotangent).sum()

    return jax.grad(loss, argnums=(0, 1)), (weights, x)


def ours(task: Any, dtype: Any, lengths: Any) -> tuple[Any, Any]:
    options = {"nonlinearity": "tanh"} if task.cell == "rnn" else {}
    module = getattr(jaxrnn, task.cell.upper())(
        task.hidden,
        task.hidden,
        num_layers=task.layers,
        bidirectional=task.directions == 2,
        dtype=dtype,
        strategy=STRATEGIES[task.peer](),
        rngs=nnx.Rngs(0),
        **options,
    )
    graph, state = nnx.split(module)

    def run(state: Any, x: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(x, lengths=lengths)[0]

    return state, run


def flax(task: Any, dtype: Any, lengths: Any) -> tuple[Any, Any]:
    cell = nnx.OptimizedLSTMCell(task.hidden, task.hidden, dtype=dtype, rngs=nnx.Rngs(0))
    graph, state = nnx.split(nnx.RNN(cell, time_major=True))
    return state, lambda state, x: nnx.merge(graph, state)(x)


def experimental(task: Any, dtype: Any, lengths: Any) -> tuple[Any, Any]:
    from jax.experimental import rnn

    size = rnn.get_num_params_in_lstm(task.hidden, task.hidden, 1, False)
    weights = jax.random.normal(jax.random.key(0), (size,), dtype) * task.hidden**-0.5
    zeros = jnp.zeros((1, task.batch, task.hidden), dtype)
    full = jnp.full((task.batch,), task.steps, jnp.int32)

    def run(weights: jax.Array, x: jax.Array) -> jax.Array:
        turned = x.transpose(1, 0, 2)  # cuDNN's binding takes (B, T, I)
        precision = jax.lax.Precision.DEFAULT
        y, *_ = rnn.lstm(
            turned, zeros, zeros, weights, full, task.hidden, task.hidden, 1, 0.0, False, precision
        )
        return y.transpose(1, 0, 2)

    return weights, run
