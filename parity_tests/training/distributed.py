"""A small training run in several processes; `test_fit_devices.py` starts this file as a server.

Importing JAX takes most of such a run, so a server for each process imports it once and forks for
each run; see `forks.py`.
"""

import os
import time
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxrnn
from forks import KILLED, die_at, serve
from jaxrnn import data, training
from jaxrnn.sharding import put
from jaxrnn.training import checkpoints

KEYS = ("loss", "validation_loss", "validation_accuracy")


class Classifier(nnx.Module):
    """A classifier with dropout, whose random keys and counters are part of the state."""

    def __init__(self, rngs):
        self.gru = jaxrnn.GRU(2, 6, batch_first=True, param_dtype=np.float64, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.fc = nnx.Linear(6, 4, param_dtype=np.float64, rngs=rngs)

    def __call__(self, x, *, lengths):
        output, _ = self.gru(x, lengths=lengths)
        return self.fc(self.dropout(output.sum(1)))


def make(sharding, seed, sharded):
    """A model, its optimizer and its data; the last batch of an epoch has an odd row."""
    rng = np.random.default_rng(0)
    sequences = [rng.standard_normal((n, 2)) for n in rng.integers(1, 6, size=27)]
    labels = np.array([len(sequence) % 4 for sequence in sequences])
    model = Classifier(nnx.Rngs(seed))
    if sharded:  # divide each parameter's first axis, as FSDP does
        params = nnx.state(model, nnx.Param)
        divided = jax.tree.map(lambda a: put(np.asarray(a), sharding), params)
        nnx.update(model, divided)
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    held_back = data.batches(sequences[:6], labels[:6], 6)

    def epoch(number):
        return data.batches(sequences[6:], labels[6:], 6, seed=(7, number), buckets=[6])

    return model, optimizer, epoch, held_back


def join(batches, sharding):
    """The same global batches, made from the rows of each process where these are equally many."""
    for batch in batches:
        share, rest = divmod(len(batch.labels), jax.process_count())
        start = jax.process_index() * share
        local = jax.tree.map(lambda a, s=slice(start, start + share): a[s], batch)
        yield batch if rest else training.join_rows(local, sharding)


def start(job):
    """Configures JAX, and joins the processes of the run."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", job.get("devices", 1))
    jax.config.update("jax_compilation_cache_dir", job["cache"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if job.get("processes", 1) > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            f"127.0.0.1:{job['port']}",
            job["processes"],
            job["rank"],
            heartbeat_timeout_seconds=10,
            shutdown_timeout_seconds=10,
        )


def end_at(job):
    """Lets the process be ended before a batch, before a call of `os` or within a save."""
    if "die_at" in job:
        die_at(*job["die_at"])
    if "die_in_save" in job:
        write, left = checkpoints._write_state, [job["die_in_save"]]

        def deadly(*arguments):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), -KILLED)
            write(*arguments)

        checkpoints._write_state = deadly
    return job.get("signal", (None, None))


def work(job):
    start(job)
    at, sent = end_at(job)
    rank, taken = job.get("rank", 0), []
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    model, optimizer, epoch, held_back = make(sharding, job.get("seed", 1), job.get("sharded"))

    def batches(number):
        found = epoch(number)
        for batch in join(found, sharding) if job.get("join") else found:
            taken.append(number)
            if len(taken) == at:
                os.kill(os.getpid(), sent)
            yield batch

    try:
        history = training.fit(
            model,
            optimizer,
            batches,
            epochs=job["epochs"],
            metrics={"accuracy": training.accuracy},
            validation=held_back,
            patience=9,
            folder=job["folder"],
            resume=True,
            save_every=2,
            sharding=sharding,
            log=lambda record: 1 / (rank == 0),  # the first process alone
        )
    except (OSError, RuntimeError, ValueError) as error:
        Path(job["folder"], f"error{rank}").write_text(str(error))
        if rank == 0:
            time.sleep(1)  # the end of the first process would end the other
        raise
    training.load(job["folder"], model, "last")
    arrays = {**jaxrnn.state_dict(model), **{key: history[key] for key in KEYS}}
    arrays["predicted"] = training.predict(model, held_back, sharding=sharding)
    scores = training.evaluate(model, list(join(held_back, sharding)))
    arrays["evaluated"] = np.array(scores["loss"])
    jaxrnn.save_safetensors(model, job["folder"] + "/model.safetensors")
    np.savez(job["folder"] + f"/result{rank}.npz", **arrays)
    if jax.process_count() > 1:
        jax.distributed.shutdown()  # waits for the other


if __name__ == "__main__":
    serve(work)
