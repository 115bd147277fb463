"""Times of `Native` under `vmap`: a batch, its gradient, per-sample gradients and ensembles.

    python benchmarks/vmapped.py

Over `Scan` under the same `vmap`, interleaved, medians of five rounds, float32; the values are
compared before. One table on standard output.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrnn import cells, strategies

SIZES = [  # members, rows of each, steps, inputs and units
    (32, 1, 30, 32),
    (256, 1, 60, 64),
    (32, 1, 100, 128),
    (8, 8, 50, 64),
    (8, 32, 100, 128),
    (4, 16, 100, 256),
]
ROUNDS = 5


def draw_weights(rng: np.random.Generator, cell: cells.Cell, hidden: int) -> cells.Weights:
    gates = cell.gates * hidden
    shapes = (gates, hidden), (gates, hidden), (gates,), (gates,)
    bound = hidden**-0.5
    return cells.Weights(*(jnp.asarray(rng.uniform(-bound, bound, s), "float32") for s in shapes))


def cases(
    cell: cells.Cell, members: int, batch: int, steps: int, hidden: int
) -> dict[str, Callable[[Any], tuple[Callable[..., Any], tuple[Any, ...]]]]:
    """By name, a function of the strategy that returns what to time, and its arguments."""
    rng = np.random.default_rng(0)
    each = [draw_weights(rng, cell, hidden) for _ in range(members)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
    x = jnp.asarray(rng.standard_normal((members, steps, batch, hidden)), "float32")
    carry = tuple(jnp.zeros((batch, hidden), "float32") for _ in range(cell.states))

    def loss(strategy: Any, weights: Any, x: Any) -> Any:
        return (strategy(cell, weights, x, carry)[0] ** 2).mean()

    def total(strategy: Any) -> Any:
        return lambda w, x: jax.vmap(lambda x: loss(strategy, w, x))(x).mean()

    def sample(strategy: Any) -> Any:
        return lambda w, x: loss(strategy, w, x)

    return {
        "batch": lambda s: (
            lambda w, x: jax.vmap(lambda x: s(cell, w, x, carry)[0])(x),
            (each[0], x),
        ),
        "gradient of a batch": lambda s: (jax.grad(total(s)), (each[0], x)),
        "gradient of each sample": lambda s: (
            jax.vmap(jax.grad(sample(s)), in_axes=(None, 0)),
            (each[0], x),
        ),
        "ensemble": lambda s: (
            jax.vmap(lambda w, x: s(cell, w, x, carry)[0], in_axes=(0, None)),
            (stacked, x[0]),
        ),
        "gradient of an ensemble": lambda s: (
            jax.vmap(jax.grad(sample(s)), in_axes=(0, None)),
            (stacked, x[0]),
        ),
    }


def main() -> None:
    print("| cell | members | B | T | H | under `vmap` | `Native`, ms | `Scan`, ms | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    for cell in cells.lstm, cells.gru:
        for size in SIZES:
            members, batch, steps, hidden = size
            for name, make in cases(cell, members, batch, steps, hidden).items():
                runs = []
                for strategy in strategies.Native(), strategies.Scan():
                    run, arguments = make(strategy)
                    runs.append((jax.jit(run), arguments))
                for found, wanted in zip(
                    *(jax.tree.leaves(run(*arguments)) for run, arguments in runs), strict=True
                ):
                    scale = float(jnp.abs(wanted).max())
                    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * scale)
                times: tuple[list[float], list[float]] = ([], [])
                for _ in range(ROUNDS):
                    for (run, arguments), spent in zip(runs, times, strict=True):
                        start = time.perf_counter()
                        jax.block_until_ready(run(*arguments))
                        spent.append(1e3 * (time.perf_counter() - start))
                native, scan = map(statistics.median, times)
                row = f"| {cell.name} | {members} | {batch} | {steps} | {hidden} | {name} "
                print(f"{row}| {native:.2f} | {scan:.2f} | {scan / native:.2f} |", flush=True)


if __name__ == "__main__":
    main()
