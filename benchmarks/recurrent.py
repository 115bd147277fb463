"""Benchmark of `jaxrnn.Recurrent`: a custom cell against `nnx.RNN`, resets, regularisation.

    python benchmarks/recurrent.py                 # a few minutes on an idle machine
    python benchmarks/recurrent.py --only resets

Training means the loss and all gradients, in float32. Each peer is a pure function under `jax.jit`.
Ratios are those of medians over interleaved rounds.
"""

import argparse
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxrnn
from jaxrnn import cells
from measure import interleaved

SIZES = [  # T, B, I, H
    (50, 1, 32, 64),
    (100, 8, 32, 64),
    (100, 32, 64, 128),
    (200, 16, 64, 128),
    (50, 64, 128, 256),
    (400, 4, 32, 128),
]


class PeepholeCell(nnx.RNNCellBase):
    """The peephole LSTM of `jaxrnn.cells`, written for `nnx.RNN`."""

    def __init__(self, inputs: int, hidden: int, *, rngs: nnx.Rngs):
        self.hidden = hidden
        self.dense_i = nnx.Linear(inputs, 4 * hidden, rngs=rngs)
        self.dense_h = nnx.Linear(hidden, 4 * hidden, use_bias=False, rngs=rngs)
        self.p = nnx.Param(0.1 * jax.random.normal(rngs.params(), (3, hidden)))

    def __call__(self, carry: Any, x: jax.Array) -> Any:
        h, c = carry
        pi, pf, po = self.p[...]
        i, f, g, o = jnp.split(self.dense_i(x) + self.dense_h(h), 4, axis=-1)
        c = nnx.sigmoid(f + pf * c) * c + nnx.sigmoid(i + pi * c) * jnp.tanh(g)
        h = nnx.sigmoid(o + po * c) * jnp.tanh(c)
        return (h, c), h

    def initialize_carry(self, shape: Any, rngs: Any = None, carry_init: Any = None) -> Any:
        return (jnp.zeros((*shape[:-1], self.hidden)),) * 2

    @property
    def num_feature_axes(self) -> int:
        return 1


class LayerNormCell(PeepholeCell):
    """The layer-normalised LSTM of `jaxrnn.cells`, written for `nnx.RNN`."""

    def __init__(self, inputs: int, hidden: int, *, rngs: nnx.Rngs):
        self.hidden = hidden
        self.dense_i = nnx.Linear(inputs, 4 * hidden, rngs=rngs)
        self.dense_h = nnx.Linear(hidden, 4 * hidden, use_bias=False, rngs=rngs)
        self.norm_gates = nnx.LayerNorm(4 * hidden, epsilon=1e-5, rngs=rngs)
        self.norm_cell = nnx.LayerNorm(hidden, epsilon=1e-5, rngs=rngs)

    def __call__(self, carry: Any, x: jax.Array) -> Any:
        h, c = carry
        gates = self.norm_gates(self.dense_i(x) + self.dense_h(h))
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c = self.norm_cell(nnx.sigmoid(f) * c + nnx.sigmoid(i) * jnp.tanh(g))
        h = nnx.sigmoid(o) * jnp.tanh(c)
        return (h, c), h


def inference(module: nnx.Module, call: Callable[..., jax.Array], *arrays: Any) -> Any:
    """A compiled call without arguments that computes the outputs."""
    graph, state = nnx.split(module)
    run = jax.jit(lambda state, *arrays: call(nnx.merge(graph, state), *arrays))

    def timed() -> None:
        jax.block_until_ready(run(state, *arrays))

    timed()
    return timed


def training(module: nnx.Module, call: Callable[..., jax.Array], *arrays: Any) -> Any:
    """A compiled call without arguments that computes a loss and its gradients."""
    graph, state, rest = nnx.split(module, nnx.Param, ...)

    def loss(state: Any, *arrays: Any) -> jax.Array:
        return (call(nnx.merge(graph, state, rest), *arrays) ** 2).sum()

    run = jax.jit(jax.grad(loss))

    def timed() -> None:
        jax.block_until_ready(run(state, *arrays))

    timed()
    return timed


def draw(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(0), shape)


def medians(calls: dict[str, Any], budget: float) -> dict[str, float]:
    return {name: float(np.median(t)) for name, t in interleaved(calls, budget).items()}


MODES = {"inference": inference, "training": training}
PEERS = {
    "peephole LSTM": (cells.peephole_lstm, PeepholeCell),
    "layer norm LSTM": (cells.layer_norm_lstm, LayerNormCell),
}


def own_cell(budget: float) -> None:
    for mode, measured in MODES.items():
        for name, (cell, peer) in PEERS.items():
            ratios = []
            for steps, batch, inputs, hidden in SIZES:
                x = draw(batch, steps, inputs)
                ours = jaxrnn.Recurrent(cell, inputs, hidden, batch_first=True, rngs=nnx.Rngs(0))
                theirs = nnx.RNN(peer(inputs, hidden, rngs=nnx.Rngs(0)))
                calls = {
                    "jaxrnn": measured(ours, lambda m, x: m(x)[0], x),
                    "nnx.RNN": measured(theirs, lambda m, x: m(x), x),
                }
                times = medians(calls, budget)
                ratios.append(times["nnx.RNN"] / times["jaxrnn"])
                shown = " | ".join(f"{t * 1e3:.2f}" for t in times.values())
                size = f"{steps} | {batch} | {inputs} | {hidden}"
                print(f"| {name} | {mode} | {size} | {shown} | {ratios[-1]:.2f} |", flush=True)
            mean = math.exp(np.log(ratios).mean())
            print(f"{name}, {mode}: nnx.RNN / jaxrnn, geometric mean {mean:.2f}")


def resets(budget: float) -> None:
    for steps, batch, inputs, hidden in [(128, 64, 32, 128), (128, 16, 32, 128), (100, 4, 64, 64)]:
        x = draw(steps, batch, inputs)
        start = jax.random.bernoulli(jax.random.key(1), 0.02, (steps, batch))
        for cls in (jaxrnn.GRU, jaxrnn.LSTM):
            module = cls(inputs, hidden, rngs=nnx.Rngs(0))
            calls = {
                "without": training(module, lambda m, x: m(x)[0], x),
                "with": training(module, lambda m, x, r: m(x, resets=r)[0], x, start),
            }
            times = medians(calls, budget)
            shown = ", ".join(f"{name} {t * 1e3:.2f} ms" for name, t in times.items())
            ratio = times["with"] / times["without"]
            print(f"resets, {cls.__name__} T={steps} B={batch} H={hidden}: {shown}, {ratio:.2f}")


REGULARISED = {
    "weight_dropout": {"weight_dropout": 0.3},
    "recurrent_dropout": {"recurrent_dropout": 0.3},
    "zoneout": {"zoneout": (0.1, 0.1)},
}


def regularised(budget: float) -> None:
    steps, batch, inputs, hidden = 100, 32, 64, 128
    x = draw(steps, batch, inputs)
    calls = {}
    for name, options in {"none": {}, **REGULARISED}.items():
        module = jaxrnn.LSTM(inputs, hidden, **options, rngs=nnx.Rngs(0))
        key = {} if name == "none" else {"rngs": jax.random.key(0)}
        calls[name] = training(module, lambda m, x, key=key: m(x, **key)[0], x)
    times = medians(calls, budget)
    for name, taken in times.items():
        print(f"LSTM, {name}: {taken * 1e3:.2f} ms, {taken / times['none']:.2f}")


STUDIES = {"cell": own_cell, "resets": resets, "regularised": regularised}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=STUDIES)
    parser.add_argument("--budget", type=float, default=3.0, help="seconds for each measurement")
    options = parser.parse_args()
    for name, study in STUDIES.items():
        if options.only in (None, name):
            study(options.budget)


if __name__ == "__main__":
    main()
