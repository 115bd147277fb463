"""Benchmark of bfloat16 on a CPU: jaxrnn's default and PyTorch, each beside float32.

    python benchmarks/bfloat16.py

One layer. Training means the loss and all gradients, those of the inputs too. Outputs are compared
before they are timed; ratios are of medians over interleaved rounds.
"""

import argparse
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import jaxrnn
from measure import interleaved

SIZES = [(100, 1, 64, 128), (100, 8, 64, 128), (100, 32, 64, 128), (50, 64, 128, 256)]  # T, B, I, H
CELLS = {"RNN": jaxrnn.RNN, "LSTM": jaxrnn.LSTM, "GRU": jaxrnn.GRU}

Call = Callable[[], Any]


def ours(module: Any, x: np.ndarray, *, training: bool) -> Call:
    graph, state = nnx.split(module)
    inputs = jnp.asarray(x)

    def output(state: Any, x: jax.Array) -> jax.Array:
        return nnx.merge(graph, state)(x)[0]

    def loss(state: Any, x: jax.Array) -> jax.Array:
        return (output(state, x).astype(jnp.float32) ** 2).sum()

    run = jax.jit(jax.grad(loss, argnums=(0, 1)) if training else output)
    return lambda: jax.block_until_ready(run(state, inputs))


def theirs(module: Any, x: np.ndarray, dtype: torch.dtype, *, training: bool) -> Call:
    inputs, module = torch.from_numpy(x).to(dtype), module.to(dtype)

    def step() -> Any:
        if not training:
            with torch.inference_mode():
                return module(inputs)[0]
        x = inputs.requires_grad_()
        loss = (module(x)[0].float() ** 2).sum()
        return torch.autograd.grad(loss, [*module.parameters(), x])

    return step


def measure(name: str, size: tuple[int, ...], training: bool, budget: float) -> dict[str, float]:
    """Median seconds of each peer."""
    steps, batch, inputs, hidden = size
    x = np.random.default_rng(0).standard_normal((steps, batch, inputs), np.float32)
    calls: dict[str, Call] = {}
    outputs = []
    for label, dtype in (("float32", None), ("bfloat16", jnp.bfloat16)):
        module = CELLS[name](inputs, hidden, dtype=dtype, rngs=nnx.Rngs(0))
        peer = getattr(torch.nn, name)(inputs, hidden)
        weights = jaxrnn.state_dict(module)
        peer.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()})
        low = torch.bfloat16 if dtype else torch.float32
        calls[f"jaxrnn {label}"] = ours(module, x, training=training)
        calls[f"torch {label}"] = theirs(peer, x, low, training=training)
        got = np.asarray(ours(module, x, training=False)(), np.float32)
        wanted = theirs(peer, x, low, training=False)().float().numpy()
        np.testing.assert_allclose(got, wanted, atol=5e-2 if dtype else 1e-5)
        outputs.append(got)
    np.testing.assert_allclose(outputs[1], outputs[0], atol=2e-2)
    for call in calls.values():
        call()
    return {name: float(np.median(t)) for name, t in interleaved(calls, budget).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=float, default=1.0, help="seconds for each measurement")
    options = parser.parse_args()
    print("| | T | B | I | H | | ms | torch / jaxrnn | float32 / bfloat16, jaxrnn |")
    print("|---|---|---|---|---|---|---|---|---|")
    for training in (False, True):
        over_torch, over_wide = [], []
        mode = "training" if training else "inference"
        for name in CELLS:
            for size in SIZES:
                times = measure(name, size, training, options.budget)
                low = times["jaxrnn bfloat16"]
                over_torch.append(times["torch bfloat16"] / low)
                over_wide.append(times["jaxrnn float32"] / low)
                shown = f"{1e3 * low:.2f} | {over_torch[-1]:.2f} | {over_wide[-1]:.2f}"
                print(f"| {name} | {' | '.join(map(str, size))} | {mode} | {shown} |", flush=True)
        means = (math.exp(np.log(r).mean()) for r in (over_torch, over_wide))
        print(f"{mode}, geometric means: {', '.join(f'{m:.2f}' for m in means)}")


if __name__ == "__main__":
    main()
