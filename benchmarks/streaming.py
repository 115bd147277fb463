"""Benchmark of one step of a stream: which call costs what.

    python benchmarks/streaming.py                 # half a minute on an idle machine

Two LSTM layers, I = 32, H = 64, one row, float32. Medians over interleaved rounds, after the
outputs of all peers have been compared.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import jaxrnn
from measure import interleaved

INPUTS, HIDDEN, LAYERS = 32, 64, 2


def peers() -> dict[str, Callable[[], Any]]:
    """A call without arguments for each way to take one step from a zero state."""
    lstm = jaxrnn.LSTM(INPUTS, HIDDEN, num_layers=LAYERS, rngs=nnx.Rngs(0))
    lstm.eval()
    theirs = torch.nn.LSTM(INPUTS, HIDDEN, num_layers=LAYERS).eval()
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in jaxrnn.state_dict(lstm).items()})
    torch.set_num_threads(1)
    x = jax.random.normal(jax.random.key(0), (1, INPUTS))
    state = lstm.initial_state(1)
    graph, weights = nnx.split(lstm)
    closed = jax.jit(lambda x, state: lstm.step(x, state))
    split = jax.jit(lambda weights, x, state: nnx.merge(graph, weights).step(x, state))
    by_nnx = nnx.jit(lambda lstm, x, state: lstm.step(x, state))
    cached = nnx.cached_partial(by_nnx, lstm)
    x_torch = torch.from_numpy(np.array(x))[None]
    state_torch = tuple(torch.from_numpy(np.array(s)) for s in state)

    def in_torch() -> Any:
        with torch.inference_mode():
            return theirs(x_torch, state_torch)

    return {
        "`jax.jit` of a function that closes over the layer": lambda: closed(x, state),
        "`nnx.split` and `jax.jit`, the weights as arguments": lambda: split(weights, x, state),
        "PyTorch, `inference_mode`, one thread": in_torch,
        "the layer itself, without `jit`": lambda: lstm.step(x, state),
        "`nnx.cached_partial` of an `nnx.jit` function": lambda: cached(x, state),
        "`nnx.jit`": lambda: by_nnx(lstm, x, state),
    }


def output(result: Any) -> np.ndarray:
    return np.asarray(result[0]).reshape(-1)


def finished(call: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: jax.block_until_ready(call())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, default=10.0, help="seconds for all calls together")
    budget = parser.parse_args().budget
    calls = peers()
    results = [output(call()) for call in calls.values()]
    for name, result in zip(calls, results, strict=True):
        assert jnp.allclose(result, results[0], atol=1e-6), name
    times = interleaved({name: finished(call) for name, call in calls.items()}, budget)
    print("| call | microseconds |\n|---|---|")
    for name, taken in times.items():
        print(f"| {name} | {1e6 * float(np.median(taken)):.0f} |")


if __name__ == "__main__":
    main()
