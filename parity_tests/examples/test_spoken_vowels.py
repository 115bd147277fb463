"""`examples/spoken_vowels.py` run as a script: its output and its files."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from example_runs import assert_png
from scripts import run_script

SCRIPT = Path(__file__).parents[2] / "examples" / "spoken_vowels.py"
SMALL = ["--epochs", "2", "--hidden-size", "4", "--batch-size", "90"]

WITHOUT_TORCH = f"""
import importlib.abc, runpy, sys

class NoTorch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, NoTorch())
sys.path.insert(0, {str(SCRIPT.parent)!r})
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""


def run(*arguments, blocked=False):
    if not blocked:
        return run_script(SCRIPT, *arguments)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_TORCH, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
    )


def numbers(output, beginning):
    """Numbers of the first line with this prefix."""
    lines = [line.strip() for line in output.splitlines()]
    (line, *_) = [line for line in lines if line.startswith(beginning)]
    return [float(n) for n in re.findall(r"\d+(?:\.\d+)?(?:e[+-]\d+)?", line[len(beginning) :])]


def test_both_frameworks(tmp_path):
    result = run(*SMALL, "--seeds", 2, "--out", tmp_path / "new" / "folder")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""  # no progress bar where there is no terminal
    output = result.stdout

    assert "training set   270 utterances of 7 to 26 steps" in output
    assert "test set       370 utterances of 7 to 29 steps" in output
    for dtype in ("float64", "float32"):
        assert f"SpeakerClassifier, {dtype}, T = 26: JAX against PyTorch" in output
    assert output.count("agree: all 13 rows within tolerance") == 2

    assert output.count("\nTraining, seed") == 2
    for epoch in ("1 ", "2 "):
        loss, its_loss, watched, its_watched, right, its_right = numbers(output, epoch)
        assert abs(loss - its_loss) <= 1e-3
        assert abs(watched - its_watched) <= 1e-3
        assert 0 < right <= 100
        assert abs(right - its_right) <= 4
    seeds = [numbers(output, f"seed {seed} ") for seed in (0, 1)]
    assert seeds[0] != seeds[1]
    np.testing.assert_allclose(numbers(output, "median"), np.mean(seeds, axis=0), atol=0.01)
    assert numbers(output, "loss of a batch, any epoch")[0] < 1e-3
    assert re.search(r"JAX +\d+\.\d s to compile once, then \d+ ms an epoch", output)
    assert re.search(r"PyTorch +\d+ ms an epoch", output)

    assert numbers(output, "2 compilations of JAX's training step,") == [2]
    files = {path.name for path in (tmp_path / "new" / "folder").iterdir()}
    written = {"weights_seed0.safetensors", "weights_seed1.safetensors", "curves.png"}
    assert files == {*written, "spoken_vowels_runs"}
    for name in written:
        assert str(tmp_path / "new" / "folder" / name) in output
    metrics = tmp_path / "new" / "folder" / "spoken_vowels_runs" / "seed1" / "metrics.jsonl"
    # Three batches and a validation in each epoch.
    assert metrics.read_text().count("\n") == 2 * 4
    assert str(metrics) in output
    weights = safetensors.numpy.load_file(tmp_path / "new" / "folder" / "weights_seed1.safetensors")
    assert weights["lstm.weight_hh_l0_reverse"].shape == (16, 4)
    assert weights["fc.weight"].shape == (9, 8)
    assert output.count("into JAX      the same test logits, bit for bit") == 2
    assert output.count("into PyTorch  the same speakers") == 2
    assert_png(tmp_path / "new" / "folder" / "curves.png")


def test_jax_alone_without_torch(tmp_path):
    result = run(*SMALL, "--no-torch", "--out", tmp_path, blocked=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "PyTorch" not in result.stdout
    assert len(numbers(result.stdout, "2 ")) == 3
    assert "into JAX      the same test logits, bit for bit" in result.stdout
    assert_png(tmp_path / "curves.png")

    resumed = run(*SMALL, "--no-torch", "--out", tmp_path, "--resume", blocked=True)
    assert resumed.returncode == 0, resumed.stderr
    assert "no epoch was left to train" in resumed.stdout
    for line in ("2 ", "seed 0 "):
        assert numbers(resumed.stdout, line) == numbers(result.stdout, line)
    refused = run(*SMALL, "--no-torch", "--layers", 2, "--out", tmp_path, "--resume", blocked=True)
    assert refused.returncode == 1
    assert refused.stderr.strip().endswith("was begun with --layers 1, not 2.")
    assert len(refused.stderr.splitlines()) == 1


def test_without_torch_the_error_says_what_to_do(tmp_path):
    result = run("--out", tmp_path, blocked=True)
    assert result.returncode == 1
    assert result.stderr.strip() == (
        "The twin needs torch, which is not installed: `pip install 'jaxrnn[torch]'`, or pass "
        "--no-torch."
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--epochs", "0"], "--epochs must be 1 or more, got 0."),
        (["--validation", "1.0"], "--validation must be between 0.02 and 0.9, got 1.0."),
        (["--learning-rate", "nan"], "--learning-rate must be more than 0, got nan."),
        (["--out", "/dev/null/runs"], "--out /dev/null/runs cannot be made: Not a directory."),
    ],
)
def test_bad_options_raise_one_sentence(arguments, sentence):
    result = run(*arguments)
    assert result.returncode == 1
    assert result.stderr.strip() == sentence
    assert result.stdout == ""


def test_help_explains_every_option_and_its_default():
    result = run("--help")
    assert result.returncode == 0
    text = " ".join(result.stdout.replace("│", " ").split())
    for option in (
        "--seeds INT",
        "--epochs INT",
        "--batch-size INT",
        "--hidden-size INT",
        "--layers INT",
        "--learning-rate FLOAT",
        "--noise FLOAT",
        "--offset FLOAT",
        "--validation FLOAT",
        "--resume, --no-resume",
        "--out PATH",
        "--torch, --no-torch",
    ):
        assert re.search(re.escape(option) + r"[^-]* [A-Z][^()]+\(default: ", text), option
