"""`fit`: its results and files, its errors, and that interrupted writes leave nothing partial.

Kills are in `test_kills.py`.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxrnn import data, training
from jaxrnn.training import checkpoints, state

pytestmark = pytest.mark.unoptimised

CLASSES = 3


class Tiny(nnx.Module):
    """All kinds of state: parameters, dropout, statistics, an empty array, bfloat16."""

    def __init__(self, seed=0, hidden=4, dtype=jnp.float32):
        rngs = nnx.Rngs(seed)
        self.inner = nnx.Linear(2, hidden, rngs=rngs)
        self.norm = nnx.BatchNorm(hidden, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.fc = nnx.Linear(hidden, CLASSES, param_dtype=dtype, dtype=jnp.float32, rngs=rngs)
        self.empty = nnx.Param(jnp.zeros((0, 3)))

    def __call__(self, x, *, lengths):
        with jax.numpy_dtype_promotion("standard"):
            mean = x.sum(1) / lengths[:, None]
            return self.fc(self.dropout(self.norm(jnp.tanh(self.inner(mean)))))


def sequences():
    rng = np.random.default_rng(0)
    made = [rng.standard_normal((n, 2)).astype(np.float32) for n in rng.integers(1, 9, 30)]
    return made, np.array([int(np.abs(s.sum())) % CLASSES for s in made])


def epoch(number, seed=0):
    return data.batches(*sequences(), 8, seed=(seed, number), buckets=[4, 8])


@pytest.fixture(scope="module")
def held_back():
    return data.batches(*sequences(), 30)


TX = optax.adam(3e-2)


def start(tx=TX, **options):
    model = Tiny(**options)
    return model, nnx.Optimizer(model, tx, wrt=nnx.Param)


def arrays(*nodes):
    """All arrays of modules and optimizers, as bytes."""
    leaves = jax.tree.leaves([nnx.state(node) for node in nodes])
    keys = [jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    return [
        np.asarray(jax.random.key_data(leaf) if key else leaf).tobytes()
        for leaf, key in zip(leaves, keys, strict=True)
    ]


def timeless(history):
    """Records without the seconds, which differ from run to run."""
    return [{k: v for k, v in record.items() if k != "seconds"} for record in history.records]


def contents(folder):
    return {p: p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def half(tmp_path_factory, held_back):
    """Folder of a run of two epochs, to be copied."""
    folder = tmp_path_factory.mktemp("half")
    training.fit(*start(), epoch, epochs=2, validation=held_back, folder=folder)
    return folder


@pytest.fixture
def run(half, tmp_path):
    return Path(shutil.copytree(half, tmp_path / "run"))


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


def test_checkpoints_every_few_epochs_and_at_the_end(tmp_path, monkeypatch):
    written, save = [], checkpoints.save

    def counted(folder, step, *rest):
        written.append(step)
        save(folder, step, *rest)

    monkeypatch.setattr(checkpoints, "save", counted)
    training.fit(*start(), epoch, epochs=5, folder=tmp_path, save_epochs=2)
    assert written == [0, 10, 20, 25]
    training.fit(*start(), epoch, epochs=5, folder=tmp_path, save_epochs=2, resume=True)
    assert written == [0, 10, 20, 25]


def test_until_ends_a_run(tmp_path):
    for resume in (False, True):
        history = training.fit(
            *start(),
            epoch,
            epochs=9,
            until=lambda records: len(records) >= 15,
            folder=tmp_path,
            save_epochs=2,
            resume=resume,
        )
        assert len(history["loss"]) == 15
        assert checkpoints.steps(tmp_path / "checkpoints")[-1] == 15


def test_each_record_is_in_the_file_before_the_next_step(tmp_path, held_back):
    told = []

    def log(record):
        told.append(record)
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == told

    training.fit(*start(), epoch, epochs=2, validation=held_back, folder=tmp_path, log=log)
    assert len(told) == 2 * (len(epoch(0)) + 1)


def test_a_finished_run_is_left_alone(run, held_back):
    before = contents(run)
    model = start(seed=5)
    history = training.fit(*model, epoch, epochs=2, validation=held_back, folder=run, resume=True)
    assert contents(run) == before
    assert history.compilations == 0
    assert len(history["loss"]) == 2 * len(epoch(0))


def test_each_shape_compiles_once_and_compilations_are_counted(tmp_path):
    def loss(logits, batch):  # a new function, so that nothing is compiled yet
        return training.cross_entropy(logits, batch)

    shapes = {batch.inputs.shape for n in range(3) for batch in epoch(n)}
    assert 1 < len(shapes) <= 4  # full batches and the remainder, for each of two buckets
    history = training.fit(*start(), epoch, epochs=3, loss=loss, folder=tmp_path)
    assert history.compilations == len(shapes)
    assert training.fit(*start(), epoch, epochs=3, loss=loss).compilations == 0
    with pytest.raises(ValueError, match=r"`fit\(most_compilations=1\)` met one more shape"):
        training.fit(*start(), epoch, epochs=3, most_compilations=1)


def test_a_custom_loss():
    model, optimizer = start()
    history = training.fit(
        model, optimizer, epoch, epochs=1, loss=lambda logits, batch: 7 + 0 * logits.sum()
    )
    np.testing.assert_array_equal(history["loss"], 7.0)


def wrong(logits, batch):
    """A custom metric."""
    return 1 - training.accuracy(logits, batch)


@pytest.mark.parametrize("watch", ["loss", "accuracy", "wrong"])
def test_early_stopping_restores_the_best_weights(tmp_path, held_back, watch):
    tx = optax.sgd(3.0)
    model, optimizer = start(tx)
    metrics = {"accuracy": training.accuracy, "wrong": wrong}
    settings = {"validation": held_back, "metrics": metrics, "patience": 2, "epochs": 40}
    settings |= {"watch": f"validation_{watch}", "better": "lower" if watch == "wrong" else None}
    history = training.fit(model, optimizer, epoch, folder=tmp_path, **settings)
    values = history[f"validation_{watch}"] * (-1 if watch == "accuracy" else 1)
    assert history.best == values.argmin()
    assert len(values) == history.best + 3 < 40
    scores = training.evaluate(model, held_back, metrics=metrics)
    assert scores[watch] == history[f"validation_{watch}"][history.best]
    resumed, optimizer = start(tx, seed=5)
    again = training.fit(resumed, optimizer, epoch, folder=tmp_path, resume=True, **settings)
    assert again.records == history.records
    scores = training.evaluate(resumed, held_back, metrics=metrics)
    assert scores[watch] == history[f"validation_{watch}"][history.best]


def refused(run, match, error=ValueError, data=epoch, **options):
    """Checks that `fit` raises one sentence and changes neither the model nor the folder."""
    tx, settings = options.pop("tx", TX), options.pop("settings", {})
    model, optimizer = start(tx, **options)
    model.train()
    before, files = arrays(model, optimizer), contents(run)
    with pytest.raises(error, match=match) as caught:
        training.fit(model, optimizer, data, epochs=3, folder=run, resume=True, **settings)
    assert arrays(model, optimizer) == before
    assert contents(run) == files
    return str(caught.value)


def newest(run):
    return run / "checkpoints" / str(max(checkpoints.steps(run / "checkpoints")))


def test_a_flipped_bit_is_found_in_every_file(run):
    files = [path for path in newest(run).rglob("*") if path.is_file()]
    assert len(files) > 5
    rng = np.random.default_rng(0)
    for path in files:
        whole = path.read_bytes()
        for _ in range(3):
            broken = bytearray(whole)
            broken[rng.integers(max(len(whole) - 1, 1))] ^= 1 << rng.integers(8)
            path.write_bytes(broken)
            text = refused(run, "cannot be resumed from: it is damaged")
            assert "Remove it to resume from step 5." in text
        path.write_bytes(whole[: len(whole) // 2])
        refused(run, "it is damaged")
        path.unlink()
        refused(run, "is missing|no `manifest.json`")
        path.write_bytes(whole)
    training.fit(*start(), epoch, epochs=2, folder=run, resume=True)


def test_folders_that_are_not_checkpoints(run):
    path = newest(run)
    (path / "state" / "stray").touch()
    refused(run, "`state/stray` does not belong to it")
    shutil.rmtree(path)
    path.mkdir()
    refused(run, "no `manifest.json`, so it was not written by `fit`")
    path.rmdir()
    path.touch()
    refused(run, "it is not a folder")
    path.unlink()
    # Remove it, as the message advises, to resume from the one before.
    training.fit(*start(), epoch, epochs=2, folder=run, resume=True)


def test_another_model_or_optimizer(run):
    text = refused(run, "is of another model or optimizer. Nothing was loaded", hidden=5)
    assert "`model.inner.kernel` is float32 of (2, 4) in the checkpoint, float32 of (2, 5)" in text
    assert "`model.inner.bias` is float32 of (4,)" in text
    text = refused(run, "of another model or optimizer", dtype=jnp.float16)
    assert "`model.fc.bias` is float32 of (3,) in the checkpoint, float16 of (3,) here." in text
    text = refused(run, "of another model or optimizer", tx=optax.sgd(0.1))
    assert "`optimizer.opt_state.0.mu.fc.bias` is float32 of (3,) in the checkpoint, absent" in text


def test_other_data(run):
    refused(run, "was trained on other data", data=lambda number: epoch(number, seed=1))
    refused(run, "was trained on other data", data=lambda number: epoch(number)[:1])


def test_another_watched_score(run):
    settings = {"watch": "validation_accuracy", "metrics": {"accuracy": training.accuracy}}
    text = refused(
        run, r'is of `fit\(watch="validation_loss", better="lower"\)`', settings=settings
    )
    assert 'got `watch="validation_accuracy", better="higher"`' in text
    refused(run, 'got `watch="validation_loss", better="higher"`', settings={"better": "higher"})


@pytest.mark.parametrize("change", [lambda text: text[:-9], lambda text: b"[" + text[1:]])
def test_metrics_that_were_changed(run, change):
    path = run / "metrics.jsonl"
    path.write_bytes(change(path.read_bytes()))
    refused(run, "is not as it was when the checkpoint was written")


def test_metrics_that_are_gone(run):
    (run / "metrics.jsonl").unlink()
    refused(run, "is not as it was when the checkpoint was written")


def test_a_folder_with_another_run(run, tmp_path):
    before = contents(run)
    with pytest.raises(ValueError, match=r"holds a run of 10 steps. Pass `resume=True`"):
        training.fit(*start(), epoch, epochs=3, folder=run)
    assert contents(run) == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "metrics.jsonl").write_text("mine\n")
    refused(other, "no checkpoint to resume from")


def test_a_file_in_place_of_the_folder(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(OSError, match="cannot be made: Not a directory"):
        training.fit(*start(), epoch, epochs=1, folder=path)
    assert path.read_text() == "mine"


# Root may write anywhere, so the child runs as another user, who may not be able to read the
# checkout. It therefore first runs on a copy, to import all modules that are imported late. The
# file size limit fails a write in the middle of a file, as a full disk does.
CHILD = """
import os, resource, shutil, sys, tempfile
sys.path.insert(0, sys.argv[1])
import test_fit, orbax.checkpoint
from jaxrnn import training

def go_on(folder):
    training.fit(*test_fit.start(), test_fit.epoch, epochs=9, folder=folder, resume=True)

if sys.argv[3] == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]),) * 2)
elif os.geteuid() == 0:
    with tempfile.TemporaryDirectory() as other:
        go_on(shutil.copytree(sys.argv[2], other, dirs_exist_ok=True))
    os.setuid(65534)
try:
    go_on(sys.argv[2])
except OSError as error:
    print(error)
"""


def child(folder, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(folder), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "ERROR" not in done.stderr  # logged by Orbax's threads
    return done.stdout


def survives(run, before):
    for path in before:
        if "metrics" not in path.name:
            assert path.read_bytes() == before[path]
    whole, resumed = start(), start(seed=5)
    expected = training.fit(*whole, epoch, epochs=3)
    history = training.fit(*resumed, epoch, epochs=3, folder=run, resume=True)
    assert history["loss"].tolist() == expected["loss"].tolist()
    assert arrays(*resumed) == arrays(*whole)


@pytest.mark.parametrize("limit", [100, 1500])
def test_a_full_disk(run, limit):
    before = contents(run)
    limit += (run / "metrics.jsonl").stat().st_size * (limit == 100)
    text = child(run, "full", str(limit))
    assert "could not be written" in text or "were not written" in text
    assert "What was there before is untouched." in text
    assert text.count("\n") == 1
    assert len(text) < 300  # TensorStore's own message is five times as long
    assert set(contents(run)) == set(before)
    survives(run, before)


def test_no_space_for_the_checkpoint(run, monkeypatch):
    before = contents(run)
    full = shutil.disk_usage(run)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(OSError, match=r"could not be written to .*: No space left on device"):
        training.fit(*start(), epoch, epochs=9, folder=run, resume=True)
    monkeypatch.undo()
    assert set(contents(run)) == set(before)
    survives(run, before)


def test_a_read_only_folder(run):
    before = contents(run)
    paths = [run, *run.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    for parent in run.parents:
        if Path(tempfile.gettempdir()) in parent.parents:  # pytest makes them private
            parent.chmod(parent.stat().st_mode | 0o055)
    text = child(run, "read-only")
    for path in paths:
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert "cannot be opened: Permission denied. What was there before is untouched." in text
    assert contents(run) == before
    survives(run, before)


@pytest.mark.parametrize("call", ["mkdir", "fsync", "rename", "write"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_failing_system_calls(run, monkeypatch, call, number):
    """A disk without space at each of the first calls that change the folder."""
    before, left, original = contents(run), [number], getattr(os, call)

    def refuse(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(28, "No space left on device")
        return original(*args, **kwargs)

    # An existing folder is not made again, and an old checkpoint that cannot be removed stays.
    harmless = (call, number) in [("mkdir", 1), ("rename", 3)]
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        if harmless:
            training.fit(*start(), epoch, epochs=3, folder=run, resume=True)
        else:
            what = "No space left on device. What was there before is untouched."
            with pytest.raises(OSError, match=what) as caught:
                training.fit(*start(), epoch, epochs=3, folder=run, resume=True)
            assert caught.value.errno == 28
    checkpoints.load(run / "checkpoints", int(newest(run).name), lambda *_: None)
    survives(run, {p: b for p, b in before.items() if p.exists()})


def test_a_non_finite_loss(tmp_path):
    def poisoned(number):
        batches = epoch(number)
        if number == 1:
            batches[2].inputs[0, 0, 0] = np.nan
        return batches

    with pytest.raises(
        FloatingPointError,
        match=r"the loss was nan at step 8, in epoch 1. .* The checkpoint of step 7 is in",
    ):
        training.fit(*start(), poisoned, epochs=3, folder=tmp_path, save_every=1)
    resumed, whole = start(), start()
    # The checkpoint is good: with valid data the run continues.
    expected = training.fit(*whole, epoch, epochs=3)
    history = training.fit(*resumed, epoch, epochs=3, folder=tmp_path, resume=True)
    assert timeless(history) == timeless(expected)
    assert arrays(*resumed) == arrays(*whole)


def test_non_finite_parameters_are_not_saved(tmp_path):
    tx = optax.scale_by_schedule(lambda step: jnp.where(step == 5, jnp.inf, 0.1))
    with pytest.raises(FloatingPointError, match=r"was not finite after step 6"):
        training.fit(*start(tx), epoch, epochs=3, folder=tmp_path, save_every=2)
    assert checkpoints.steps(tmp_path / "checkpoints")[-1] == 5


def test_old_checkpoints_are_removed(tmp_path):
    for name in (".partial-ab", ".partial-cd/state"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    training.fit(*start(), epoch, epochs=4, folder=tmp_path, keep=2)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["15", "20"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"epochs": -1}, r"`fit\(epochs\)` must be 0 or more, got -1."),
        ({"keep": 0}, r"`fit\(keep\)` must be 1 or more"),
        ({"save_epochs": 0}, r"`fit\(save_epochs\)` must be 1 or more"),
        ({"patience": 3}, r"`fit\(patience\)` needs a `validation`"),
        ({"resume": True}, "needs the `folder`"),
        ({"watch": "F1"}, r"`fit\(watch\)` must be one of validation_loss, got `F1`"),
        (
            {"watch": "validation_mae", "metrics": {"mae": wrong}},
            r'`fit\(watch="validation_mae"\)` needs `better="lower"` or `better="higher"`',
        ),
        ({"metrics": {"loss": wrong}}, "No metric may have the name `loss`"),
        ({"loss": lambda logits, batch: logits}, r"`loss` must be a scalar, got shape \(\d, 3\)"),
        ({"data": lambda epoch: []}, "gave no batches for epoch 0"),
        ({"data": iter(())}, "A generator gives each batch once"),
    ],
)
def test_bad_arguments(options, match):
    settings = {"data": epoch, "epochs": 1, **options}
    with pytest.raises((ValueError, TypeError), match=match):
        training.fit(*start(), **settings)


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


def test_restoring_the_best_weights_keeps_the_dropout_counters(held_back):
    model, optimizer = start(optax.sgd(3.0))
    history = training.fit(model, optimizer, epoch, epochs=40, validation=held_back, patience=2)
    assert history.best < len(history["validation_loss"]) - 1
    (count,) = jax.tree.leaves(nnx.state(model, nnx.RngCount))
    assert int(count) == len(history["loss"])


@pytest.mark.skipif(os.name == "nt", reason="directories are not synced there")
def test_a_new_checkpoint_is_durable_before_old_ones_are_removed(tmp_path, monkeypatch):
    for step in (1, 2):
        checkpoints.save(tmp_path, step, {"a": np.ones(2)}, {}, keep=3)
    events, original = [], {name: getattr(os, name) for name in ("rename", "fsync")}

    def rename(old, new):
        events.append(("rename", str(new)))
        original["rename"](old, new)

    def fsync(descriptor):
        events.append(("sync", os.fstat(descriptor).st_ino))
        original["fsync"](descriptor)

    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(os, "fsync", fsync)
    checkpoints.save(tmp_path, 3, {"a": np.ones(2)}, {}, keep=1)
    named = events.index(("rename", str(tmp_path / "3")))
    removed = [n for n, event in enumerate(events) if event[0] == "rename" and n > named]
    assert len(removed) == 2
    assert ("sync", tmp_path.stat().st_ino) in events[named + 1 : removed[0]]
    for path in (tmp_path / "3").rglob("*"):  # Orbax's folders and files too
        assert ("sync", path.stat().st_ino) in events[:named], path


@pytest.mark.parametrize("number", [1, 3, 6])
def test_a_checkpoint_loses_its_name_before_its_files(run, monkeypatch, number):
    """The removal of an old checkpoint is stopped before its n-th file."""
    left, unlink = [number], os.unlink

    def stop(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        unlink(*args, **kwargs)

    folder = run / "checkpoints"
    monkeypatch.setattr(os, "unlink", stop)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(folder, 99, {"a": np.ones(2)}, {}, keep=1)
    monkeypatch.undo()
    assert 99 in checkpoints.steps(folder)
    for step in checkpoints.steps(folder):
        checkpoints.load(folder, step, lambda *_: None)


def test_the_digest_depends_on_shape_dtype_and_name():
    array = np.arange(6, dtype=np.int32)
    batches = [array, array.reshape(2, 3), array.reshape(3, 2), array.view(np.uint32)]
    batches += [{"a": array}, {"b": array}, (array[:3], array[3:])]
    assert len({state.digest(batch) for batch in batches}) == len(batches)


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
