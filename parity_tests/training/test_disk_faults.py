"""Writes that a full or read-only disk interrupts leave nothing partial."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from jaxrnn import training
from jaxrnn.training import checkpoints
from small_run import arrays, contents, epoch, newest, start

# Root may write anywhere, so the child runs as another user, who may not be able to read the
# checkout. It therefore first runs on a copy, to import all modules that are imported late. The
# file size limit fails a write in the middle of a file, as a full disk does.
CHILD = """
import os, resource, shutil, sys, tempfile
sys.path.insert(0, sys.argv[1])
import small_run, orbax.checkpoint
from jaxrnn import training

def go_on(folder):
    training.fit(*small_run.start(), small_run.epoch, epochs=9, folder=folder, resume=True)

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
