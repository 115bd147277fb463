"""`examples/long_sequence.py` and `benchmarks/shooting.py` run as scripts with small sizes."""

import json
from pathlib import Path

import pytest

from example_runs import assert_png, finished, numbers, run
from scripts import run_script

ROOT = Path(__file__).parents[2]


def test_long_sequence(tmp_path):
    small = ["--steps", 1200, "--segments", 2, "--hidden-size", 4, "--chunks", 4]
    small += ["--updates", 3, "--repeats", 1]
    output = finished("long_sequence", *small, "--out", tmp_path / "new")
    assert "One synthetic sequence of 1,200 steps, in 2 segments" in output
    assert numbers(output, "difference of losses")[0] < 1e-6
    for when in ("before", "after"):
        assert 1 <= numbers(output, f"sweeps {when} training:")[0] <= 3
    first, last = numbers(output, "loss       ")
    assert last < first
    persistence = numbers(output, "persistence  ")[0]
    assert numbers(output, "The model is worse than persistence: its error is")[0] == pytest.approx(
        last / persistence, abs=0.01
    )
    assert min(numbers(output, "a step by shooting") + numbers(output, "a step sequentially")) >= 0
    assert_png(tmp_path / "new" / "long_sequence.png")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--updates", 0], "--updates must be 1 or more, got 0."),
        (["--steps", 10, "--segments", 4], "--steps must be a multiple of 4, got 10."),
        (["--chunks", -1], "--chunks must be 0 or more, got -1."),
    ],
)
def test_wrong_options_raise_one_sentence(arguments, sentence, tmp_path):
    result = run("long_sequence", *arguments, "--out", tmp_path)
    assert (result.returncode, result.stderr.strip(), result.stdout) == (1, sentence, "")


def test_help():
    assert "--segments" in finished("long_sequence", "--help")


def test_the_benchmark(tmp_path):
    small = ["--batches", "1", "--lengths", "600", "--hidden-sizes", "4", "--repeats", "1"]
    small += ["--inner", "Scan()", "--no-sweeps", "--out", str(tmp_path)]
    done = run_script(ROOT / "benchmarks" / "shooting.py", *small)
    assert done.returncode == 0, done.stderr
    files = {path.suffix: path for path in tmp_path.iterdir()}
    assert {*files} == {".json", ".md", ".png"}
    assert all(path.name.startswith("shooting-scan-20") for path in files.values())
    results = json.loads(files[".json"].read_text())
    assert [row["kind"] for row in results["rows"]] == ["forward", "training"]
    assert all(row["chunks"] == 2 and row["apart"] < 1e-4 for row in results["rows"])
    assert "| forward | 1 | 600 | 4 |" in done.stdout
    assert_png(files[".png"])
