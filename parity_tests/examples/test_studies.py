"""`examples/train_classifier.py` and `compare_cells.py` run as scripts, and their parts."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import jaxrnn
from example_runs import EXAMPLES, assert_png, finished, numbers_by_line, run

pytestmark = pytest.mark.needs("torch")

NAMES = ["train_classifier", "compare_cells"]


@pytest.fixture(autouse=True)
def examples_importable(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)


def test_train_classifier(tmp_path):
    small = [
        "--epochs",
        2,
        "--as-written",
        "--cells",
        "GRU",
        "--seeds",
        1,
        "--stages",
        20,
        "--max-steps",
        3,
    ]
    small += ["--batch-size", 8, "--hidden-size", 4]
    output = finished("train_classifier", *small, "--out", tmp_path / "new")
    assert numbers_by_line(output, "training  ") == [[800, 416]]
    assert numbers_by_line(output, "validation  ") == [[200, 95]]
    assert numbers_by_line(output, "parameters") == [[60098]]
    # Training loss, training accuracy, validation loss and accuracy, of PyTorch and of JAX.
    rows = numbers_by_line(output, "1   ")
    (masked, unmasked) = (np.reshape(row, (4, 2)) for row in rows)
    assert masked[0, 0] != masked[0, 1]
    np.testing.assert_allclose(unmasked[:, 0], unmasked[:, 1], rtol=0, atol=2e-4)
    ((training, validation),) = (row[-2:] for row in numbers_by_line(output, "dropout 0.0"))
    assert max(training, validation) < 1e-5
    for name, accuracy in zip(("PyTorch ", "JAX "), masked[3], strict=True):
        ((right, share),) = (row for row in numbers_by_line(output, name) if len(row) == 2)
        assert share == right / 200 == accuracy
    assert output.count("no better than guessing") == 2
    ran, summary = numbers_by_line(output, "GRU ")
    assert ran[0] == 0
    assert ran[2:7] == [200, 0, 1, 3, 1]  # of 200, no stage of 1 ended, 3 steps, 1 compilation
    kept = tmp_path / "new" / "train_classifier_runs" / "GRU_seed0" / "up_to_20"
    assert (kept / "metrics.jsonl").read_text().count("\n") == 3
    assert summary[:4] == [200, 0, 1, 3]
    assert_png(tmp_path / "new" / "as_written.png")
    assert_png(tmp_path / "new" / "solved.png")


def test_a_curriculum_stage_ends_when_its_batches_are_right(tmp_path):
    from support import curriculum

    regime = curriculum.Regime(
        vocabulary=4,
        stages=(2, 3),
        batch_size=64,
        hidden_size=16,
        learning_rate=1e-2,
        max_steps=500,
    )
    batch = regime.fresh(0, stage=1)
    assert batch.inputs.shape == (64, 3)
    assert set(batch.lengths) == {1, 2, 3}
    np.testing.assert_array_equal((batch.inputs > 0).sum(axis=1), batch.lengths)
    np.testing.assert_array_equal(batch.inputs.sum(axis=1) % 2, batch.labels)

    told = []
    learnt = curriculum.learn("GRU", 0, regime, tmp_path, False, told.append)
    assert len(learnt.ends) == 2
    assert learnt.ends[-1] == learnt.steps == sum(told) < 500
    assert learnt.accuracies[-20:] == [1.0] * 20
    assert learnt.compilations <= 2

    # A run without its last stage is like a run killed before it: it ends with the same bits.
    shutil.rmtree(tmp_path / "up_to_3")
    resumed = curriculum.learn("GRU", 0, regime, tmp_path, True, told.append)
    assert resumed.accuracies == learnt.accuracies
    assert resumed.ends == learnt.ends
    for name, array in jaxrnn.state_dict(resumed.model.rnn).items():
        np.testing.assert_array_equal(array, jaxrnn.state_dict(learnt.model.rnn)[name])


def test_compare_cells(tmp_path):
    small = ["--seeds", 2, "--lengths", 3, "--steps", 2, "--batch-size", 4, "--hidden-size", 3]
    output = finished("compare_cells", *small, "--out", tmp_path / "new")
    for cell, count in (("RNN", 6402), ("LSTM", 25218), ("GRU", 18946)):
        sizes, losses, gradient, trained, steps = numbers_by_line(output, f"{cell}  ")
        assert sizes[:6] == [count, count, 16, 2, 16, 2]
        assert sizes[6] < 1e-6
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        assert losses[2] == pytest.approx(losses[3], rel=1e-4)
        first, last, factor = gradient
        assert factor == pytest.approx((first / last) ** (1 / 49), abs=0.01)
        median, low, high = trained
        assert low <= median <= high
        assert steps == [2]
    for cell in ("LSTM", "GRU"):
        opened, *_ = numbers_by_line(output, f"{cell}, gates open")
        assert opened[2] > 0.9  # the gradient fades far less with each step back
    assert numbers_by_line(output, "JAX and PyTorch apart, of any step's norm")[0][0] < 1e-3
    assert (
        "No verdict on the notebook's rules of thumb: it takes --seeds 4 and --steps 400" in output
    )
    assert "confirmed" not in output
    assert_png(tmp_path / "new" / "compare_cells.png")

    # After a kill before the last training, that one runs again and the results of the others stay.
    kept = tmp_path / "new" / "compare_cells_runs" / "results.json"
    trained = json.loads(kept.read_text())
    first, *others, last = trained
    before = {name: trained[name] for name in others}
    kept.write_text(json.dumps({first: [[0.25, 0.75], 1], **before}))
    output = finished("compare_cells", *small, "--resume", "--out", tmp_path / "new")
    assert "4 of 5 trained before" in output
    assert numbers_by_line(output, "RNN  ")[3:] == [[50, 25, 75], [1]]
    assert json.loads(kept.read_text())[last] == trained[last]


def results(**accuracies):
    """Results of each variant at T = 10 and T = 100; names as `LSTM` or `LSTM_open`."""
    from support.memory import Result, Variant

    made = {}
    for name, values in accuracies.items():
        cell, _, opened = name.partition("_")
        variant = Variant(cell, bool(opened))
        made[variant] = [
            Result(variant, length, np.array([value - 0.01, value, value + 0.01]), 5)
            for length, value in zip((10, 100), values, strict=True)
        ]
    return made


def test_rules_of_thumb_follow_the_results():
    from support import memory

    poor, good = (0.5, 0.5), (0.98, 0.98)

    def told(**accuracies):
        lines = [line.strip() for line in memory.rules(results(**accuracies))]
        assert sum(line.startswith('"') for line in lines) == 3
        return lines

    lines = told(RNN=(0.98, 0.5), LSTM=poor, GRU=good, LSTM_open=good, GRU_open=poor)
    assert lines[1:3] == ["confirmed", "RNN at T = 10: 98.0%, T = 100: 50.0%"]
    assert lines[4] == "as PyTorch initialises them, T = 100: confirmed: GRU"
    assert lines[5] == "RNN 50.0% (49 to 51), LSTM 50.0% (49 to 51), GRU 98.0% (97 to 99)"
    assert lines[6] == "with gates open at first, T = 100: confirmed: LSTM"
    assert lines[9] == "as PyTorch initialises them: confirmed"
    assert lines[10] == "lengths learnt (mean accuracy): GRU 2 of 2 (98%), RNN 1 of 2 (74%), " + (
        "LSTM 0 of 2 (50%)"
    )
    assert lines[11] == "with gates open at first: corrected: LSTM first"

    lines = told(RNN=poor, LSTM=poor, GRU=poor, LSTM_open=poor, GRU_open=good)
    assert lines[1] == "not confirmed"
    assert lines[4].endswith("T = 100: not confirmed: none learns it in the steps it has")
    assert lines[6].endswith("T = 100: confirmed: GRU")
    lines = told(RNN=good, LSTM=good, GRU=poor, LSTM_open=good, GRU_open=good)
    assert "T = 100: not confirmed: not all gated runs are better" in lines[4]
    assert (
        lines[-2] == "with gates open at first: not decided: RNN and LSTM are equal within chance"
    )
    lines = told(RNN=poor, LSTM=poor, GRU=(0.51, 0.51), LSTM_open=poor, GRU_open=poor)
    assert lines[-2].endswith("not decided: none has learnt a length in the steps it has")

    between = {
        variant: [dataclasses.replace(r, length=n) for r, n in zip(found, (20, 50), strict=True)]
        for variant, found in results(
            RNN=good, LSTM=good, GRU=good, LSTM_open=good, GRU_open=good
        ).items()
    }
    lines = "\n".join(memory.rules(between))
    assert "not tested: no length below 20" in lines
    assert lines.count("not tested: no length above 50") == 2


@pytest.mark.parametrize("resume", [False, True])
def test_an_example_deletes_only_its_own_files(resume, tmp_path):
    from support import runs

    @dataclasses.dataclass
    class Options:
        out: Path
        resume: bool
        epochs: int = 3

    options = Options(tmp_path, resume)
    folder = runs.begin(options, "first")
    (folder / "kept").touch()
    with pytest.raises(SystemExit, match="with --epochs 3, not 4"):
        runs.begin(Options(tmp_path, True, epochs=4), "first")
    assert runs.begin(options, "second") != folder
    for note in ('{"example": "second"}', "{bad", "[]"):
        (folder / "options.json").write_text(note)
        with pytest.raises(SystemExit, match="is no folder of runs of first: move it away"):
            runs.begin(options, "first")
        assert (folder / "kept").exists()


@pytest.mark.parametrize("name", NAMES)
def test_help_and_wrong_options_print_one_sentence(name, tmp_path):
    shown = finished(name, "--help")
    assert "--batch-size" in shown
    assert "--out" in shown
    (tmp_path / "file").touch()
    wrong = {
        "train_classifier": (["--stages", "5", "10"], "--stages must be rising from 1 or more to "),
        "compare_cells": (["--lengths", "20", "10"], "--lengths must be rising, from 2 or more, "),
    }[name]
    for arguments, sentence in [
        wrong,
        (["--out", tmp_path / "file"], f"--out {tmp_path / 'file'} cannot be made: File exists."),
    ]:
        result = run(name, *arguments)
        assert result.returncode == 1
        assert result.stderr.strip().startswith(sentence)
        assert len(result.stderr.splitlines()) == 1
        assert result.stdout == ""
