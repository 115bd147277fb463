"""Runs of `fit` killed repeatedly by SIGKILL end like an uninterrupted run, bit for bit."""

import contextlib
import json
import os
import random
import signal
import time

import numpy as np
import pytest

from forks import KILLED, Server
from jaxrnn.training import checkpoints

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")

KILLS = 24


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server("killable.py", tmp_path_factory.mktemp("cache"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def unkilled(server, tmp_path_factory):
    """Folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("unkilled")
    server.start(folder)
    assert server.finish() == 0
    return folder


def result(folder):
    with np.load(folder / "result.npz") as file:
        return {name: file[name].tobytes() for name in file.files}


def records(folder):
    """Lines of metrics without the seconds, which differ from run to run."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def assert_same(folder, unkilled):
    assert result(folder) == result(unkilled)
    assert records(folder) == records(unkilled)
    left = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert left == sorted(path.name for path in (unkilled / "checkpoints").iterdir())


def test_killed_at_random_moments(server, unkilled, tmp_path):
    """Kills and resumes a run until it ends; if it ends too soon, another run follows."""
    rng = random.Random(0)
    kills, lines, runs = 0, set(), [tmp_path / "0"]
    while kills < KILLS:
        folder = runs[-1]
        # A quarter of the kills come before training: while the run starts, reads the checkpoint or
        # truncates the metrics.
        early = rng.random() < 0.25
        child = server.start(folder, tell=None if early else rng.randint(1, 6))
        if not early and server.line() != "now":
            runs.append(tmp_path / str(len(runs)))
            continue
        time.sleep(rng.uniform(0, 0.8 if early else 0.06))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        code = server.finish()
        assert code in (0, KILLED)
        if code == KILLED:
            kills += 1
            metrics = folder / "metrics.jsonl"
            lines.add(metrics.read_bytes().count(b"\n") if metrics.exists() else 0)
        else:
            runs.append(tmp_path / str(len(runs)))
    for folder in runs:
        if not (folder / "result.npz").exists():
            server.start(folder)
            assert server.finish() == 0
        assert_same(folder, unkilled)
    assert len(lines) > KILLS // 4, "the kills were all at the same places"


def test_killed_at_each_step_of_saving_and_resuming(server, unkilled, tmp_path):
    """Kills before the n-th call that changes the folder, where random kills rarely happen."""
    deaths = [("mkdir", 1), ("mkdir", 2), ("fsync", 1), ("rename", 1), ("truncate", 1)]
    deaths += [("rename", n) for n in (2, 3, 4, 5, 6)] + [("fsync", n) for n in (2, 17, 40)]
    deaths += [("rmdir", 1), ("unlink", 1), ("unlink", 4), ("truncate", 1)]
    deaths += [("write", 2), ("write", 4)]
    for name, call in deaths:
        server.start(tmp_path, die_at=(name, call))
        assert server.finish() == KILLED, (name, call)
        folder = tmp_path / "checkpoints"
        for step in checkpoints.steps(folder):  # a named checkpoint is complete
            checkpoints.load(folder, step, lambda *_: None)
    server.start(tmp_path)
    assert server.finish() == 0
    assert_same(tmp_path, unkilled)
