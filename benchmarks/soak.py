"""Trains on one million rows that are generated when they are read, and watches the memory.

    python benchmarks/soak.py [ROWS]

Prints the resident memory ten times over one epoch (Linux only), and fails if it grows by more
than 32 MiB after the first tenth.
"""

import sys
import time
from typing import Any

import numpy as np
import optax
from flax import nnx

import jaxrnn
from footprint import resident
from jaxrnn import data, training

BATCH = 256
LIMIT = 32  # MiB


class Source:
    """Row n, a noisy rising or falling line, from its number alone."""

    def __init__(self, lengths: np.ndarray) -> None:
        self.lengths = lengths

    def __getitem__(self, number: int) -> tuple[np.ndarray, int]:
        rng = np.random.default_rng(number)
        rising = number % 2
        line = (2 * rising - 1) * 0.1 * np.arange(self.lengths[number])
        noise = rng.standard_normal((len(line), 1), np.float32)
        return line[:, None].astype(np.float32) + noise, rising


class Classifier(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.gru = jaxrnn.GRU(1, 8, batch_first=True, rngs=rngs)
        self.head = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x: Any, *, lengths: Any) -> Any:
        return self.head(self.gru(x, lengths=lengths)[1][-1])


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    lengths = np.random.default_rng(0).integers(8, 33, rows).astype(np.int32)
    source = Source(lengths)
    steps = sum(-(-int(n) // BATCH) for n in np.bincount(np.searchsorted([16, 32], lengths)))
    watched: list[float] = []
    started = time.perf_counter()

    def watch(record: dict[str, Any]) -> None:
        if record["step"] % (steps // 10) == 0:
            watched.append(resident("VmRSS"))
            seconds = time.perf_counter() - started
            print(
                f"{record['step'] * BATCH:>9,} rows {watched[-1]:>7.1f} MiB {seconds:>6.0f} s "
                f"loss {record['loss']:.4f}",
                flush=True,
            )

    model = Classifier(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    training.fit(
        model,
        optimizer,
        lambda epoch: data.read_batches(source, lengths, BATCH, seed=(0, epoch), buckets=[16, 32]),
        epochs=1,
        log=watch,
    )
    growth = max(watched) - watched[0]
    print(f"grown by {growth:.1f} MiB after the first tenth")
    if growth > LIMIT:
        sys.exit(f"The memory grew by more than {LIMIT} MiB.")


if __name__ == "__main__":
    main()
