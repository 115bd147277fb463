"""Runs of `fit` resumed: the same bits as a run that was never stopped.

Kills are in `test_kills.py`.
"""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxrnn import data, training
from small_run import CLASSES, TX, arrays, contents, epoch, start, timeless


@pytest.mark.parametrize(
    ("first", "dtype", "save"),
    [
        (0, jnp.float32, {"save_every": 3}),
        (1, jnp.float32, {"save_every": 3}),
        (3, jnp.float32, {"save_every": 3}),
        (3, jnp.float32, {"save_epochs": 2}),
        (1, jnp.bfloat16, {}),
    ],
)
def test_resumed_to_the_same_bits(tmp_path, held_back, first, dtype, save):
    whole, resumed = start(dtype=dtype), start(dtype=dtype)
    settings = {"validation": held_back, **save}
    expected = training.fit(*whole, epoch, epochs=4, folder=tmp_path / "a", **settings)
    training.fit(*resumed, epoch, epochs=first, folder=tmp_path / "b", **settings)
    # Different parameters and dropout state, all of which must be replaced.
    resumed = start(dtype=dtype, seed=5)
    history = training.fit(
        *resumed, epoch, epochs=4, folder=tmp_path / "b", resume=True, **settings
    )
    assert timeless(history) == timeless(expected)
    assert history.best == expected.best
    assert arrays(*resumed) == arrays(*whole)
    lines = (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history.records
    seconds = history["seconds"]
    assert (np.diff(seconds) >= 0).all()
    assert 0 <= seconds[0] < seconds[-1]


def test_stopped_within_an_epoch(tmp_path, held_back):
    """An exception in the caller's progress bar, before, at and after a checkpoint."""
    whole, folder = start(), tmp_path / "run"
    expected = training.fit(*whole, epoch, epochs=2, validation=held_back)
    for stop in (1, 2, 3, 6, 9):

        def log(record, left=[stop]):  # noqa: B006  the list is the count
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt

        shutil.rmtree(folder, ignore_errors=True)
        options = {"epochs": 2, "validation": held_back, "folder": folder, "save_every": 2}
        with pytest.raises(KeyboardInterrupt):
            training.fit(*start(), epoch, log=log, **options)
        resumed = start(seed=5)
        history = training.fit(*resumed, epoch, resume=True, **options)
        assert timeless(history) == timeless(expected)
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == history.records
        assert arrays(*resumed) == arrays(*whole)


def test_a_finished_run_is_left_alone(run, held_back):
    before = contents(run)
    model = start(seed=5)
    history = training.fit(*model, epoch, epochs=2, validation=held_back, folder=run, resume=True)
    assert contents(run) == before
    assert history.compilations == 0
    assert len(history["loss"]) == 2 * len(epoch(0))


def test_a_resumed_run_stays_on_its_mesh(run, held_back):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    placed = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    nodes = start(seed=5)
    for node in nodes:
        nnx.update(node, jax.device_put(nnx.state(node), placed))
    # The run is finished, so that no compiled step changes the placement.
    training.fit(*nodes, epoch, epochs=2, validation=held_back, folder=run, resume=True)
    leaves = jax.tree.leaves([nnx.state(node) for node in nodes])
    assert {leaf.sharding for leaf in leaves} == {placed}


class Keyed(nnx.Module):
    """A model with random keys of a non-default implementation."""

    def __init__(self, seed):
        self.fc = nnx.Linear(2, CLASSES, rngs=nnx.Rngs(seed))
        self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(jax.random.key(seed, impl="rbg")))

    def __call__(self, x, *, lengths):
        return self.fc(self.dropout(x.sum(1)))


def test_keys_keep_their_implementation(tmp_path):
    def begin(seed):
        model = Keyed(seed)
        return model, nnx.Optimizer(model, TX, wrt=nnx.Param)

    whole, resumed = begin(0), begin(5)
    training.fit(*whole, epoch, epochs=2)
    training.fit(*begin(0), epoch, epochs=1, folder=tmp_path)
    training.fit(*resumed, epoch, epochs=2, folder=tmp_path, resume=True)
    assert arrays(*resumed) == arrays(*whole)
    (key,) = jax.tree.leaves(nnx.state(resumed[0], nnx.RngKey))
    assert jax.random.key_impl(key) == jax.random.key_impl(jax.random.key(0, impl="rbg"))


class Disk:
    """Rows that are noted when they are read."""

    def __init__(self):
        self.read = []

    def __getitem__(self, number):
        self.read.append(number)
        return np.full((2, 3), number, np.float32), number % 3


def first_step(model, batch):
    return model(batch.inputs[:, 0])


def test_a_run_resumes_at_its_batch_without_reading_those_before(tmp_path):
    disk = Disk()
    order = [int(n) for items, _ in data.plan([2] * 12, 2, seed=(0, 0)) for n in items]

    def train(log=None):
        model = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
        training.fit(
            model,
            nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param),
            lambda epoch: data.read_batches(disk, [2] * 12, 2, seed=(0, epoch)),
            epochs=1,
            forward=first_step,
            folder=tmp_path,
            resume=True,
            save_every=2,
            log=log,
        )

    def stop(record):
        if record["step"] == 5:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(stop)
    assert disk.read == order[:10]
    disk.read = []
    train()
    assert disk.read == order[6:]  # after the checkpoint of step 4, whose last batch is compared
