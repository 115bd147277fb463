"""`examples/variable_lengths.py` and `port_from_torch.py` run as scripts."""

import re
import textwrap

import numpy as np
import pytest
import safetensors.numpy

from example_runs import EXAMPLES, assert_png, finished, numbers, run
from scripts import run_code

pytestmark = pytest.mark.needs("torch")

NAMES = ["variable_lengths", "port_from_torch"]


def test_quickstart(tmp_path):
    output = finished("quickstart", "--epochs", 6, "--out", tmp_path)
    assert numbers(output, "")[0] >= 90  # percent right
    title, _, *written = output.splitlines()
    assert title.endswith("held-out sequences are right after 6 epochs")
    names = ["quickstart.png", "quickstart.safetensors"]
    assert written == ["Written", *(f"  {tmp_path / name}" for name in names)]
    assert_png(tmp_path / names[0])
    assert len((EXAMPLES / "quickstart.py").read_text().splitlines()) <= 60


def test_variable_lengths(tmp_path):
    small = ["--sequences", 40, "--batch-size", 40, "--hidden-size", 4, "--median", 6]
    small += ["--passes", 2, "--buckets", 2, "--longest", 12]
    output = finished("variable_lengths", *small, "--out", tmp_path / "new")
    assert "5 steps   40 41 42 43 44" in output
    assert "padded to (5, 8): 40 positions, of which 25 are true" in output
    assert "37.5% less to compute" in output
    for dtype in ("float64", "float32"):
        assert f"EfficientLSTM, {dtype}, T = 8: JAX against PyTorch" in output
    assert output.count("agree: all 9 rows within tolerance") == 2
    assert numbers(output, "with lengths")[0] < 1e-6
    assert numbers(output, "without lengths")[0] > 1e-3

    ways = ["padded, one shape", "{}, one shape", "padded, bucketed", "{}, bucketed"]
    for framework, respected in (("PyTorch", "packed"), ("JAX    ", "lengths")):
        rows = [numbers(output, f"{framework} {way.format(respected)}") for way in ways]
        shapes, positions, true, *_ = np.array(rows).T
        assert positions.tolist()[:2] == [480, 480]  # 40 sequences of 12 steps
        assert positions[2] == positions[3] < 480
        assert shapes.tolist() == [1, 1, 2, 2]
        np.testing.assert_allclose(true * positions, (true * positions)[0], rtol=0.03)
        time = [row[-1] for row in rows]
        assert time[0] == 1
        told = numbers(output, f"{framework}  respecting lengths")
        np.testing.assert_allclose(told, 1 / np.array(time[1:]), rtol=0.1, atol=0.02)
    assert_png(tmp_path / "new" / "variable_lengths.png")


def test_port_from_torch(tmp_path):
    small = ["--recordings", 48, "--batch-size", 16, "--hidden-size", 4]
    small += ["--epochs", 2, "--more-epochs", 2]
    output = finished("port_from_torch", *small, "--out", tmp_path / "new")
    assert all(apart < 1e-5 for apart, _ in np.reshape(numbers(output, "logits apart"), (2, 2)))
    assert numbers(output, "other decisions") == [0, 48, 0, 48]
    first = numbers(output, "epoch   2")
    mine, its, mine_more, its_more = numbers(output, "accuracy")
    assert mine == its == first[1]
    assert mine_more == its_more == first[3]
    assert re.search(r"recording 0 .*\n  recording 1 .*\n  recording 2 ", output)

    folder = tmp_path / "new"
    files = {"from_torch.safetensors", "from_jax.safetensors", "port_from_torch.png"}
    assert {path.name for path in folder.iterdir()} == files
    before, after = (safetensors.numpy.load_file(folder / name) for name in sorted(files)[:2][::-1])
    assert before.keys() == after.keys()
    assert before["lstm.weight_ih_l1_reverse"].shape == (16, 8)
    for name, array in before.items():
        assert np.abs(array - after[name]).max() > 1e-5, name
    assert_png(folder / "port_from_torch.png")


@pytest.mark.parametrize("name", NAMES)
def test_help_and_wrong_options_print_one_sentence(name, tmp_path):
    shown = finished(name, "--help")
    assert "--batch-size" in shown
    assert "--out" in shown
    (tmp_path / "file").touch()
    for arguments, sentence in [
        (["--batch-size", "0"], "--batch-size must be 1 or more, got 0."),
        (["--out", tmp_path / "file"], f"--out {tmp_path / 'file'} cannot be made: File exists."),
    ]:
        result = run(name, *arguments)
        assert result.returncode == 1
        assert result.stderr.strip() == sentence
        assert result.stdout == ""


@pytest.mark.parametrize(
    ("name", "missing", "sentence"),
    [
        ("variable_lengths", "tyro", "The examples need tyro, which is not installed: {extra}."),
        ("appliances", "tqdm", "The examples need tqdm, which is not installed: {extra}."),
        (
            "long_sequence",
            "matplotlib",
            "The figure needs matplotlib, which is not installed: {extra}.",
        ),
        ("appliances", "sktime", "The data needs sktime, which is not installed: {extra}."),
        (
            "port_from_torch",
            "torch",
            "The model to port needs torch, which is not installed: `pip install 'jaxrnn[torch]'`.",
        ),
    ],
)
def test_a_missing_package_raises_one_sentence(name, missing, sentence, tmp_path):
    # tyro inspects `sys.modules['torch']`, so `find_spec` hides PyTorch instead.
    absent = f"sys.modules[{missing!r}] = None"
    if missing == "torch":
        absent = "importlib.util.find_spec = lambda name: None if name == 'torch' else name"
    script = f"""
        import importlib.util, runpy, sys
        {absent}
        runpy.run_path({str(EXAMPLES / f"{name}.py")!r}, run_name="__main__")
    """
    result = run_code(textwrap.dedent(script), "--out", tmp_path / "out", folder=EXAMPLES)
    assert result.returncode == 1
    assert result.stderr.strip() == sentence.format(extra="`pip install 'jaxrnn[examples]'`")
    assert not (tmp_path / "out").exists()
