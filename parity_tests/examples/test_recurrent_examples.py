"""`examples/char_lm.py`, `recurrent_memory.py` and `layer_norm_lstm.py` run as scripts."""

import numpy as np
import pytest

from example_runs import assert_png, finished, numbers

pytestmark = pytest.mark.needs("torch")


def test_char_lm(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 300)
    small = ["--epochs", 2, "--rows", 4, "--steps", 25, "--hidden-size", 24, "--sample", 40]
    output = finished("char_lm", "--text", text, *small, "--out", tmp_path)
    first = numbers(output, "epoch 1:")
    second = numbers(output, "epoch 2:")
    assert second[1] < first[1] < np.log2(28)  # bits on held-out text, below chance
    theirs, ours = numbers(output, "PyTorch from the same weights:")
    assert abs(theirs - ours) < 1e-4
    sample = output.split("-" * 72)[1].strip("\n")
    assert len(sample) == 40
    assert_png(tmp_path / "char_lm.png")


def test_recurrent_memory(tmp_path):
    small = ["--updates", 60, "--rows", 32, "--steps", 16, "--episode", 4, "--hidden-size", 24]
    output = finished("recurrent_memory", *small, "--out", tmp_path)
    (told,), (untold,) = (numbers(output, f"{k} resets:") for k in ("with", "without"))
    assert told > untold + 5  # percent
    assert_png(tmp_path / "recurrent_memory.png")


def test_layer_norm_lstm(tmp_path):
    small = ["--updates", 20, "--rows", 8, "--steps", 8, "--hidden-size", 8]
    output = finished("layer_norm_lstm", *small, "--out", tmp_path)
    assert output.startswith("agree: all 11 rows within tolerance")
    assert all(numbers(output, f"{k}: squared")[0] > 0 for k in ("layer_norm_lstm", "lstm"))
    assert_png(tmp_path / "layer_norm_lstm.png")
