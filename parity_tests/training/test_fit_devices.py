"""`fit` on several devices, in one process and in two that are killed or signalled."""

import json
import os
import signal
import socket

import numpy as np
import pytest
from safetensors.numpy import load_file

from forks import KILLED, Server
from jaxrnn.training import checkpoints

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")

EPOCHS = 2  # of 4 steps
STEPS = 4 * EPOCHS


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """A server for each process, and a cache for the programs of each."""
    servers = [Server("distributed.py", tmp_path_factory.mktemp("cache")) for _ in range(2)]
    yield servers
    for server in servers:
        server.close()


def train(servers, folder, *ranks, processes=2, **job):
    """Exit codes of the processes; `ranks` are what the jobs of single processes add."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = servers[:processes]
    for rank, server in enumerate(started):
        own = ranks[rank] if rank < len(ranks) else {}
        names = {"processes": processes, "rank": rank, "port": port, "epochs": EPOCHS}
        server.start(folder, **{**names, **job, **own})
    return [server.finish() for server in started]


def results(folder, rank=0):
    with np.load(folder / f"result{rank}.npz") as file:
        return dict(file)


def assert_same(folder, wanted):
    for rank in range(2):
        found, right = results(folder, rank), results(wanted)
        assert found.keys() == right.keys()
        assert all(np.array_equal(found[name], right[name]) for name in right)


def assert_close(folder, wanted):
    for name, right in results(wanted).items():
        np.testing.assert_allclose(results(folder)[name], right, rtol=0, atol=1e-12, err_msg=name)


def error(folder, rank):
    return (folder / f"error{rank}").read_text()


@pytest.fixture(scope="module")
def one(servers, tmp_path_factory):
    """Folder of a run on one device."""
    folder = tmp_path_factory.mktemp("one")
    assert train(servers, folder, processes=1) == [0]
    return folder


@pytest.fixture(scope="module")
def two(servers, tmp_path_factory):
    """Folder of an uninterrupted run in two processes."""
    folder = tmp_path_factory.mktemp("two")
    assert train(servers, folder) == [0, 0]
    return folder


def test_two_devices_of_one_process_train_as_one(servers, one, tmp_path):
    assert train(servers, tmp_path, processes=1, devices=2, epochs=1) == [0]
    assert train(servers, tmp_path, processes=1) == [0]  # resumed on another number of devices
    assert_close(tmp_path, one)


def test_two_processes_train_as_one(one, two):
    assert_close(two, one)
    assert_same(two, two)
    lines = [json.loads(line) for line in (two / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))
    loaded = load_file(two / "model.safetensors")
    assert all(np.array_equal(loaded[name], results(two)[name]) for name in loaded)


def test_two_processes_resume_bit_for_bit_with_rows_of_their_own(servers, two, tmp_path):
    assert train(servers, tmp_path, epochs=1, join=True) == [0, 0]
    assert train(servers, tmp_path, join=True) == [0, 0]
    assert_same(tmp_path, two)


def test_divided_parameters_are_saved_by_both_and_resumed_by_one(servers, one, tmp_path):
    assert train(servers, tmp_path, epochs=1, sharded=True) == [0, 0]
    written = (tmp_path / "checkpoints/4/state").glob("ocdbt.process_*")
    assert len(list(written)) == 2
    again = [{"epochs": 2, "signal": (3, signal.SIGTERM)}, {"epochs": 2}]
    assert train(servers, tmp_path, *again, sharded=True) == [-signal.SIGTERM] * 2
    assert train(servers, tmp_path, processes=1) == [0]
    assert_close(tmp_path, one)
    loaded = load_file(tmp_path / "model.safetensors")
    assert all(np.array_equal(loaded[name], results(tmp_path)[name]) for name in loaded)


def test_a_signal_to_one_process_ends_both_at_the_same_step(servers, two, tmp_path):
    signalled = {"signal": (4, signal.SIGTERM)}
    assert train(servers, tmp_path, {}, signalled) == [-signal.SIGTERM] * 2
    assert checkpoints.steps(tmp_path / "checkpoints")[-1] in (3, 4)
    assert train(servers, tmp_path) == [0, 0]
    assert_same(tmp_path, two)


def kills():
    """Kills of a process: before a batch, before a call of `os` in a save, within a save."""
    some = [(1, {"signal": (4, -KILLED)}), (0, {"die_in_save": 2})]
    calls = [("fsync", 3), ("rename", 2), ("mkdir", 2), ("rmdir", 1)]
    more = [(rank, {"signal": (n, -KILLED)}) for rank in (0, 1) for n in (1, 2, 3, 5, 6)]
    more += [(1, {"die_in_save": n}) for n in (1, 2, 3)] + [(0, {"die_in_save": 1})]
    more += [(0, {"die_at": call}) for call in calls]
    return some + more if "JAXRNN_ALL_KILLS" in os.environ else some


def test_a_killed_process_ends_the_other_and_the_run_resumes(servers, two, tmp_path):
    for n, (rank, kill) in enumerate(kills()):
        folder = tmp_path / str(n)
        folder.mkdir()
        ranks = [{}, {}]
        ranks[rank] = kill
        codes = train(servers, folder, *ranks)
        assert codes[rank] == KILLED, (rank, kill)
        assert codes[1 - rank] not in (0, KILLED), (rank, kill)
        for step in checkpoints.steps(folder / "checkpoints"):  # a named checkpoint is complete
            checkpoints.load(folder / "checkpoints", step, lambda *_: None)
        assert train(servers, folder) == [0, 0], (rank, kill)
        assert_same(folder, two)


def test_different_models_are_refused_in_each_process(servers, tmp_path):
    assert train(servers, tmp_path, {}, {"seed": 2}) == [1, 1]
    assert error(tmp_path, 0) == error(tmp_path, 1)
    assert "needs the same model in every process" in error(tmp_path, 1)


def test_an_error_of_the_first_process_reaches_the_other(servers, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("")
    assert train(servers, folder) == [1, 1]
    assert "no checkpoint to resume from" in error(folder, 0)
    assert error(folder, 1) == "Opening the run failed in another process, whose error says why."
