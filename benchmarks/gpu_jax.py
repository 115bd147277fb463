"""JAX peers of benchmarks/gpu.py: jaxrnn's strategies, Flax and `jax.experimental.rnn`."""

import functools
import time
from collections.abc import Callable
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
}


def measure_all(
    tasks: list[Any], turn: Any, append: Callable[[Any, dict[str, Any]], None], late: Callable
) -> None:
    for task in tasks:
        if late():
            return
        try:
            append(task, measure(task, turn))
        except Exception as error:
            append(task, {"error": f"{type(error).__name__}: {error}"[:300]})


def measure(task: Any, turn: Any) -> dict[str, Any]:
    """Median time of a call, in microseconds per step.

    Only the worker whose turn it is uses the GPU, and what it runs was compiled before.
    """
    precision = "highest" if task.dtype == "highest" else None
    with jax.default_matmul_precision(precision):
        with jax.default_device(jax.devices("cpu")[0]):
            call, arguments = prepare(task)
        shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), arguments)
        fillers = jax.tree.map(filler, arguments)
        began = time.perf_counter()
        compiled = jax.jit(call).lower(*shapes).compile()
        result = {"compile_s": round(time.perf_counter() - began, 2)}
        with turn:
            arguments = jax.tree.map(lambda fill: fill(), fillers)
            return result | {"us": timed(compiled, arguments) / task.steps * 1e6}


def filler(a: Any) -> Callable[[], jax.Array]:
    """A function that puts an array on the GPU; one that is known by its shape, filled there."""
    if not isinstance(a, jax.ShapeDtypeStruct):
        return lambda: jax.device_put(a, jax.devices()[0])
    return functools.partial(compiled_filler(a.shape, a.dtype), on_gpu())


@functools.cache
def on_gpu() -> jax.Array:
    return jax.device_put(numbers(), jax.devices()[0])


@functools.cache
def compiled_filler(shape: tuple[int, ...], dtype: Any) -> Any:
    """Numbers of the size of an input, or of weights where `shape` is theirs."""
    scale = 1.0 if len(shape) > 2 else shape[-1] ** -0.5
    fill = jax.jit(lambda base: (jnp.resize(base, shape) * scale).astype(dtype))
    return fill.lower(jax.ShapeDtypeStruct(numbers().shape, jnp.float32)).compile()


def timed(call: Any, arguments: Any) -> float:
    """Seconds per call: the median over several runs of several calls."""
    jax.block_until_ready(call(*arguments))
    began = time.perf_counter()
    jax.block_until_ready(call(*arguments))
    once = time.perf_counter() - began
    inner = max(1, min(10, int(0.01 / once)))
    times = []
    for _ in range(5 if once < 0.03 else 3):
        began = time.perf_counter()
        for _ in range(inner):
            result = call(*arguments)
        jax.block_until_ready(result)
        times.append((time.perf_counter() - began) / inner)
    return sorted(times)[len(times) // 2]


@functools.cache
def numbers() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(1 << 22, np.float32)


def prepare(task: Any) -> tuple[Any, tuple[Any, ...]]:
    """(call, arguments) of one inference, or of the gradients of all weights and of x."""
    dtype = jnp.bfloat16 if task.dtype == "bfloat16" else jnp.float32
    shape = task.steps, task.batch, task.hidden
    x = jax.ShapeDtypeStruct(shape, dtype)
    lengths = None
    if task.lengths == "ragged":
        drawn = np.random.default_rng(0).integers(1, task.steps + 1, task.batch)
        lengths = drawn.astype(np.int32)
    weights, run = {"flax": flax, "jax.experimental.rnn": experimental}.get(task.peer, ours)(
        task, dtype
    )
    if task.mode == "inference":
        return run, (weights, x, lengths)
    cotangent = jax.ShapeDtypeStruct((*shape[:2], 1), jnp.float32)

    def loss(weights: Any, x: jax.Array, lengths: Any, cotangent: jax.Array) -> jax.Array:
        return (run(weights, x, lengths).astype(jnp.float32) * cotangent).sum()

    return jax.grad(loss, argnums=(0, 1)), (weights, x, lengths, cotangent)


def ours(task: Any, dtype: Any) -> tuple[Any, Any]:
    options = {"nonlinearity": "tanh"} if task.cell == "rnn" else {}

    def make() -> Any:
        return getattr(jaxrnn, task.cell.upper())(
            task.hidden,
            task.hidden,
            num_layers=task.layers,
            bidirectional=task.directions == 2,
            dtype=dtype,
            strategy=STRATEGIES[task.peer](),
            rngs=nnx.Rngs(0),
            **options,
        )

    graph, state = nnx.split(nnx.eval_shape(make))

    def run(state: Any, x: jax.Array, lengths: Any) -> jax.Array:
        return nnx.merge(graph, state)(x, lengths=lengths)[0]

    return state, run


def flax(task: Any, dtype: Any) -> tuple[Any, Any]:
    cell = nnx.OptimizedLSTMCell(task.hidden, task.hidden, dtype=dtype, rngs=nnx.Rngs(0))
    graph, state, rest = nnx.split(nnx.RNN(cell, time_major=True), nnx.Param, ...)
    zeros = jnp.zeros((task.batch, task.hidden), dtype)

    def run(state: Any, x: jax.Array, lengths: Any) -> jax.Array:
        return nnx.merge(graph, state, rest)(x, initial_carry=(zeros, zeros))

    return state, run


def experimental(task: Any, dtype: Any) -> tuple[Any, Any]:
    from jax.experimental import rnn

    size = rnn.get_num_params_in_lstm(task.hidden, task.hidden, 1, False)
    weights = jax.random.normal(jax.random.key(0), (size,), dtype) * task.hidden**-0.5
    zeros = jnp.zeros((1, task.batch, task.hidden), dtype)
    full = jnp.full((task.batch,), task.steps, jnp.int32)

    def run(weights: jax.Array, x: jax.Array, lengths: Any) -> jax.Array:
        turned = x.transpose(1, 0, 2)  # cuDNN's binding takes (B, T, I)
        y, *_ = rnn.lstm(
            turned, zeros, zeros, weights, full, task.hidden, task.hidden, 1, 0.0, False
        )
        return y.transpose(1, 0, 2)

    return weights, run
