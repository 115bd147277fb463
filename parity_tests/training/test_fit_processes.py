"""Runs of `fit` that share a folder, run in several processes, or are ended by signals."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import optax
import pytest
from flax import nnx

from jaxrnn import data, training
from jaxrnn.training import checkpoints

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals and locks")

SMALL = [data.Batch(np.eye(3, dtype=np.float32), np.array([n, 1, 2], np.int32)) for n in range(3)]


def start(seed=0):
    model = nnx.Linear(3, 3, rngs=nnx.Rngs(seed))
    return model, nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)


def fit(folder, *, seed=0, epochs=4, **settings):
    model, optimizer = start(seed)
    history = training.fit(
        model,
        optimizer,
        lambda epoch: SMALL,
        epochs=epochs,
        folder=folder,
        resume=folder is not None,
        **settings,
    )
    return history["loss"].tolist(), np.asarray(model.kernel[...]).tolist()


def run(job, *arguments):
    """Runs a job of this file in a separate process."""
    code = f"import sys; sys.path.insert(0, sys.argv[1]); import test_fit_processes as t; t.{job}"
    return subprocess.Popen(
        [sys.executable, "-c", code, str(Path(__file__).parent), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1"},
    )


def wait_in(folder, moment):
    """Trains, and at a given moment prints a line and waits: after a step, or within a save."""

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has none

    def pause(*_):
        print("now", flush=True)
        sys.stdin.readline()

    if moment == "save":
        write = checkpoints._write_state

        def slow(path, arrays):
            if len(checkpoints.steps(Path(folder) / "checkpoints")) == 2:
                pause()
            write(path, arrays)

        checkpoints._write_state = slow
    stop = 4 if moment == "step" else None
    fit(folder, save_every=2, log=lambda record: record["step"] == stop and pause())


def test_a_second_run_in_a_folder_is_refused_and_the_first_unaffected(tmp_path):
    refused = r"Another run of `fit` is training in .* Nothing was changed\."
    with run("wait_in(sys.argv[2], 'step')", tmp_path) as first:
        assert first.stdout.readline() == "now\n"
        with pytest.raises(OSError, match=refused):
            fit(tmp_path)
        first.communicate("go\n")
    assert first.returncode == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    fit(tmp_path, epochs=5)  # the lock was freed by the end of the process


def test_a_killed_run_leaves_no_lock(tmp_path):
    with run("wait_in(sys.argv[2], 'step')", tmp_path) as first:
        assert first.stdout.readline() == "now\n"
        first.kill()
    assert fit(tmp_path) == fit(None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["step", "save"])
def test_a_signal_ends_a_run_with_a_checkpoint_and_one_sentence(number, moment, tmp_path):
    with run("wait_in(sys.argv[2], sys.argv[3])", tmp_path, moment) as process:
        assert process.stdout.readline() == "now\n"
        process.send_signal(number)
        if moment == "save" and number == signal.SIGINT:
            time.sleep(0.2)
            process.send_signal(number)  # nothing interrupts a checkpoint
        _, errors = process.communicate("go\n")
    assert process.returncode == -number
    step = checkpoints.steps(tmp_path / "checkpoints")[-1]
    assert 0 < step < 12
    last = errors.splitlines()[-1]
    assert f"Stopped after step {step}. The checkpoint is in `" in last
    assert "`fit(..., resume=True)` goes on from there." in last
    assert "zarr" not in errors
    if number == signal.SIGTERM:
        assert len(errors.splitlines()) == 1
    assert not list((tmp_path / "checkpoints").glob(".partial*"))
    assert fit(tmp_path, seed=5) == fit(None)


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_signal_before_the_first_step_of_an_epoch(epoch, tmp_path):
    def batches(number):
        if number == epoch:
            signal.raise_signal(signal.SIGINT)
        return SMALL

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt, match=f"Stopped after step {3 * epoch}"):
            training.fit(*start(), batches, epochs=4, folder=tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert fit(tmp_path, seed=5) == fit(None)


def test_the_callers_own_handlers_are_kept(tmp_path):
    def mine(*_):
        raise AssertionError

    interrupt = signal.getsignal(signal.SIGINT)  # ignored where a shell runs the tests aside
    before = signal.signal(signal.SIGTERM, mine)
    try:
        fit(tmp_path, log=lambda record: [signal.getsignal(signal.SIGTERM)] == [mine] or 1 / 0)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)
    fit(tmp_path / "b")
    assert signal.getsignal(signal.SIGTERM) is before
    assert signal.getsignal(signal.SIGINT) is interrupt


def test_processes_with_models_of_their_own_are_refused_before_the_first_step(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(ValueError, match=r"runs in 2 processes, each with a model of its own\."):
        fit(tmp_path)
    assert not any(tmp_path.iterdir())
