"""`examples/appliances.py` run as a script, killed and resumed, and its parts."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from example_runs import EXAMPLES, finished

# One batch for each bucket keeps compilation short.
SMALL = ["--seeds", "2", "--epochs", "2", "--hidden-size", "4", "--frame", "50"]
SMALL += ["--buckets", "2", "--batch-size", "500"]


@pytest.fixture(autouse=True)
def examples_importable(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)


def numbers(output, beginning):
    """Numbers of the first line with this prefix."""
    (line, *_) = [
        line for line in map(str.strip, output.splitlines()) if line.startswith(beginning)
    ]
    return [float(n) for n in re.findall(r"\d+(?:\.\d+)?", line.removeprefix(beginning))]


def seeds(output):
    """For each seed: epochs, best, validation and test, without compilations and seconds."""
    return [numbers(output, f"seed {seed}")[:4] for seed in (0, 1)]


def test_prints_and_writes_results_and_resumes_a_killed_run(tmp_path):
    output = finished("appliances", *SMALL, "--out", tmp_path / "new")
    assert "training set   537 traces of 100 to 1344 steps, 20% of them for validation" in output
    assert "test set       537 traces of 134 to 1000 steps" in output
    assert "mean of 2 seeds" in output
    compilations = [numbers(output, f"seed {seed}")[4] for seed in (0, 1)]
    assert 1 <= compilations[0] <= 4
    assert compilations[1] <= 4
    assert "so 4 at most" in output
    mean, _, low, high = numbers(output, "GRU   ")
    tests = [row[3] for row in seeds(output)]
    assert (low, high) == (min(tests), max(tests))
    assert mean == pytest.approx(np.mean(tests), abs=0.11)
    assert numbers(output, "one nearest neighbour, Euclidean")[0] == 73.2
    assert "0 of 2 seeds are better" in output
    assert "1-NN with DTW 83.4%" in output
    png = (tmp_path / "new" / "confusion.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(png) > 10_000
    metrics = tmp_path / "new" / "appliances_runs" / "seed1" / "metrics.jsonl"
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert sum("validation_loss" in record for record in records) == 2
    assert sum("loss" in record for record in records) == records[-1]["step"]

    killed = tmp_path / "killed"
    command = [sys.executable, EXAMPLES / "appliances.py", *SMALL, "--out", killed]
    settings = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=settings)
    lines = killed / "appliances_runs" / "seed1" / "metrics.jsonl"
    while not (lines.exists() and lines.stat().st_size) and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    resumed = finished("appliances", *SMALL, "--out", killed, "--resume")
    assert seeds(resumed) == seeds(output)
    again = [json.loads(line) for line in lines.read_text().splitlines()]
    for record in (*records, *again):
        del record["seconds"]
    assert again == records


def test_a_run_that_cannot_be_resumed_raises_one_sentence(tmp_path, monkeypatch):
    from support import runs

    def refuse(*arguments, **settings):
        raise ValueError("of another model")

    monkeypatch.setattr(runs.training, "fit", refuse)
    with pytest.raises(SystemExit, match="of another model"):
        runs.fit(tmp_path, True)
    with pytest.raises(
        ValueError, match="of another model"
    ):  # a programming error, shown with its traceback
        runs.fit(tmp_path, False)


def test_frames_start_at_the_offset_and_keep_every_whole_frame():
    from datasets import plaid

    traces = plaid.Traces([np.arange(1.0, 31), np.arange(100.0, 125)], np.array([0, 1]))
    assert traces.steps(5).tolist() == [5, 4]
    framing = plaid.Framing(traces, 5)
    first, second = framing.sequences(traces)
    later, _ = framing.sequences(traces, np.array([4, 0]))
    assert first.shape == (5, 6)
    assert second.shape == (4, 6)
    np.testing.assert_array_equal(first[:, 4], later[:, 0])
    np.testing.assert_array_equal(np.ravel(first[:, :5])[4:], np.ravel(later[:, :5])[:21])
    assert first[0, 5] == first[-1, 5] < second[0, 5]  # the level


def test_inputs_have_mean_0_and_deviation_1_over_the_training_traces():
    from datasets import plaid

    traces = plaid.Traces([np.arange(1.0, 31), 1e6 * np.arange(100.0, 130)], np.array([0, 1]))
    inputs = np.concatenate(plaid.Framing(traces, 1).sequences(traces))
    assert inputs.shape == (60, 2)
    np.testing.assert_allclose(inputs.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(inputs.std(axis=0), 1, atol=1e-5)


def test_nearest_neighbour_of_stretched_traces():
    from datasets import plaid

    ramps = plaid.Traces([np.linspace(0, 1, 9), np.linspace(1, 0, 5)], np.array([3, 7]))
    tests = plaid.Traces([np.linspace(0.9, 0, 17), np.linspace(0, 2, 3)], np.array([7, 3]))
    assert plaid.nearest_neighbour(ramps, tests, 20).tolist() == [7, 3]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"buckets": 0}, "--buckets must be 1 or more, got 0."),
        ({"frame": 51}, "--frame must be between 1 and 50, got 51."),
        ({"dropout": 1.0}, "--dropout must be 0 or more and below 1, got 1.0."),
        ({"out": Path("/dev/null/x")}, "--out /dev/null/x cannot be made: Not a directory."),
    ],
)
def test_bad_options_raise_one_sentence(options, sentence):
    import appliances

    with pytest.raises(ValueError, match=re.escape(sentence)):
        appliances.Options(**options).check()


def test_help():
    shown = finished("appliances", "--help")
    assert "--resume" in shown
    assert "--cell" in shown
