"""Benchmark of an LSTM with `proj_size`: the kernel, `Scan` and PyTorch.

    python benchmarks/projected.py                     # some minutes on an idle machine
    taskset -c 0 python benchmarks/projected.py        # one thread each
    python benchmarks/projected.py --only 100x32x64x256x64

Float32, one layer, without and with lengths. Training means the loss and all gradients, those of
the inputs too. Every peer uses one thread for each core that the process may use. Ratios are of
medians over interleaved rounds, after the outputs and all gradients have been compared.
"""

import argparse
import math
import os
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from flax import nnx

import jaxrnn
from jaxrnn import strategies
from measure import interleaved

SIZES = [  # T, B, I, H, P
    (100, 1, 32, 64, 32),
    (100, 1, 128, 512, 128),
    (1000, 1, 64, 256, 64),
    (100, 8, 64, 128, 32),
    (100, 8, 128, 512, 128),
    (100, 32, 64, 256, 64),
    (50, 64, 128, 512, 128),
    (100, 128, 32, 64, 32),
]

Call = Callable[[], Any]


def ours(module: Any, strategy: Any, x: np.ndarray, lengths: Any, *, training: bool) -> Call:
    graph, state = nnx.split(module)
    arrays = jax.numpy.asarray(x), None if lengths is None else jax.numpy.asarray(lengths)

    def output(state: Any, x: jax.Array, lengths: Any) -> jax.Array:
        run = nnx.merge(graph, state)
        run.strategy = strategy
        return run(x, lengths=lengths)[0]

    def loss(state: Any, x: jax.Array, lengths: Any) -> jax.Array:
        return (output(state, x, lengths) ** 2).sum()

    gradient = jax.grad(loss, argnums=(0, 1))
    run = jax.jit(gradient if training else output)
    return lambda: jax.block_until_ready(run(state, *arrays))


def theirs(module: Any, x: np.ndarray, lengths: Any, *, training: bool) -> Call:
    inputs, lengths = torch.from_numpy(x), None if lengths is None else torch.from_numpy(lengths)
    pack, pad = torch.nn.utils.rnn.pack_padded_sequence, torch.nn.utils.rnn.pad_packed_sequence

    def output(x: Any) -> Any:
        if lengths is None:
            return module(x)[0]
        packed = pack(x, lengths, enforce_sorted=False)
        return pad(module(packed)[0], total_length=x.shape[0])[0]

    def step() -> Any:
        if not training:
            with torch.inference_mode():
                return output(inputs)
        x = inputs.requires_grad_()
        return torch.autograd.grad((output(x) ** 2).sum(), [*module.parameters(), x])

    return step


def check(got: Any, wanted: Any, *, training: bool) -> None:
    """Compare the outputs, or the gradients of all weights and of the inputs."""
    names = [f"{name}_l0" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")]
    pairs = [(got, wanted)]
    if training:
        pairs = list(zip([*(got[0][name][...] for name in names), got[1]], wanted, strict=True))
    for g, w in pairs:
        np.testing.assert_allclose(g, w, rtol=1e-3, atol=1e-4 * float(w.abs().max()))


def measure(size: tuple[int, ...], ragged: bool, training: bool, budget: float) -> dict[str, float]:
    """Median seconds of each peer."""
    steps, batch, inputs, hidden, projected = size
    module = jaxrnn.LSTM(inputs, hidden, proj_size=projected, rngs=nnx.Rngs(0))
    peer = torch.nn.LSTM(inputs, hidden, proj_size=projected)
    peer.load_state_dict({k: torch.from_numpy(v) for k, v in jaxrnn.state_dict(module).items()})
    rng = np.random.default_rng(0)
    x = rng.standard_normal((steps, batch, inputs), np.float32)
    lengths = rng.integers(1, steps + 1, batch) if ragged else None
    calls = {
        "native": ours(module, strategies.Native(), x, lengths, training=training),
        "scan": ours(module, strategies.Scan(), x, lengths, training=training),
        "torch": theirs(peer, x, lengths, training=training),
    }
    results = {name: call() for name, call in calls.items()}
    check(results["native"], results["torch"], training=training)
    return {name: float(np.median(t)) for name, t in interleaved(calls, budget).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="one size, as TxBxIxHxP")
    parser.add_argument("--budget", type=float, default=2.0, help="seconds for each measurement")
    options = parser.parse_args()
    sizes = [tuple(map(int, options.only.split("x")))] if options.only else SIZES
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    warnings.filterwarnings("ignore", "LSTM with projections is not supported with oneDNN")
    print("| T | B | I | H | P | | | native, ms | Scan | PyTorch | PyTorch / native |")
    print("|---" * 11 + "|")
    for training in (False, True):
        ratios = []
        for size in sizes:
            for ragged in (False, True)[: 2 if size[1] > 1 else 1]:
                times = measure(size, ragged, training, options.budget)
                ratios.append(times["torch"] / times["native"])
                kind = ("training" if training else "inference", "lengths" if ragged else "dense")
                cells = [*map(str, size), *kind, *(f"{t * 1e3:.2f}" for t in times.values())]
                print(f"| {' | '.join(cells)} | {ratios[-1]:.1f} |", flush=True)
        mean = math.exp(np.log(ratios).mean())
        kind = "training" if training else "inference"
        print(f"PyTorch / native, {kind}: geometric mean {mean:.1f}, least {min(ratios):.1f}")


if __name__ == "__main__":
    main()
