"""A small training run to be killed; `test_kills.py` starts this file as a process server.

Importing JAX takes most of such a short run, so the server imports it once and forks for each run.
The server starts no backend, because JAX's threads would not survive the fork.
"""

import os

import numpy as np
import optax
from flax import nnx
from jax import config

from forks import die_at, serve
from jaxrnn import GRU, data, training

EPOCHS = 10


class Classifier(nnx.Module):
    """A classifier with dropout in two places, whose counters are part of the state."""

    def __init__(self, rngs):
        self.gru = GRU(2, 6, num_layers=2, dropout=0.3, batch_first=True, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.fc = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x, *, lengths):
        output, _ = self.gru(x, lengths=lengths)
        return self.fc(self.dropout(output.sum(1)))


def make():
    """A model, its optimizer and its data, all from fixed seeds."""
    rng = np.random.default_rng(0)
    sequences = [
        rng.standard_normal((n, 2)).astype(np.float32) for n in rng.integers(1, 9, size=36)
    ]
    labels = np.array([len(sequence) % 3 for sequence in sequences])
    model = Classifier(nnx.Rngs(1))
    tx = optax.adamw(optax.cosine_decay_schedule(1e-2, 100))
    held_back = data.batches(sequences[:6], labels[:6], 6)

    def epoch(number):
        return data.batches(sequences[6:], labels[6:], 6, seed=(7, number), buckets=[8])

    return model, nnx.Optimizer(model, tx, wrt=nnx.Param), epoch, held_back


def train(folder, log=None, **options):
    """Runs all epochs, or the remaining ones of a folder. Returns the model and the history."""
    model, optimizer, epoch, held_back = make()
    settings = {"epochs": EPOCHS, "patience": EPOCHS, "save_every": 2, **options}
    history = training.fit(
        model, optimizer, epoch, validation=held_back, folder=folder, log=log, **settings
    )
    return model, history


def work(job):
    config.update("jax_compilation_cache_dir", job["cache"])
    config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if job.get("die_at"):
        die_at(*job["die_at"])
    records = []

    def log(record):
        records.append(record)
        if len(records) == job.get("tell"):
            os.write(1, b"now\n")

    model, history = train(job["folder"], log, resume=True)
    leaves = nnx.to_flat_state(nnx.state(model, nnx.Param))
    arrays = {str(path): np.asarray(leaf.get_value()) for path, leaf in leaves}
    # Rename, so that the test never reads a partial file.
    np.savez(job["folder"] + "/partial.npz", loss=history["loss"], **arrays)
    os.rename(job["folder"] + "/partial.npz", job["folder"] + "/result.npz")


if __name__ == "__main__":
    serve(work)
