"""`benchmarks/run.py` run as a script on two tiny points: what it measures, writes and prints."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.needs("torch")

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
JAX_PEERS = {"default", "native", "flax", "keras"}
POINT = {"cell": "lstm", "lengths": "ragged", "batch": 4, "steps": 5, "inputs": 3, "hidden": 4}


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, BENCHMARKS / script, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},  # no time is looked at
    )


def finished(script, *arguments):
    done = run(script, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The output folder, and the printed text."""
    folder = tmp_path_factory.mktemp("bench") / "new"
    small = ["--shapes", 4, 5, 3, 4, "--cells", "lstm", "--lengths", "ragged", "--seconds", 0.01]
    peers = ["--peers", *sorted(JAX_PEERS)]
    shown = finished("run.py", *small, *peers, "--no-studies", "--name", "tiny", "--out", folder)
    return folder, shown


def test_written_files(written):
    folder, shown = written
    names = {path.suffix: path for path in folder.iterdir()}
    assert set(names) == {".json", ".md", ".png"}
    assert names[".png"].read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    results = json.loads(names[".json"].read_text())
    assert results["calibration"]["peak"] > 1e8
    assert 0 < results["calibration"]["tau"] < 1e-6
    assert results["environment"]["versions"]["torch"]

    for peer, why in results["absent"].items():
        print(f"{peer} was left out: {why}")
        assert f"Left out: {peer}. {why}" in shown
    assert results["absent"].keys() <= {"native", "keras"}
    there = JAX_PEERS - results["absent"].keys()
    assert [row["point"]["mode"] for row in results["points"]] in (
        ["inference", "training"],
        ["training", "inference"],
    )
    report = names[".md"].read_text()
    for row in results["points"]:
        assert row["point"].items() >= POINT.items()
        assert set(row["seconds"]) == {"torch", *there}
        assert len({len(times) for times in row["seconds"].values()}) == 1
        assert min(min(times) for times in row["seconds"].values()) > 0
        assert row["disagree"] == {}
        assert max(row["error"].values()) <= 1
        assert {row["compilations"][peer] for peer in there} == {1}
        assert row["compilations_later"] == 0
        assert row["floor"] > 0

        theirs, ours = (np.array(row["seconds"][peer]) for peer in ("torch", "default"))
        low, middle, high = np.percentile(theirs / ours, [25, 50, 75])
        line = f"| lstm {row['point']['mode']} ragged B=4 T=5 I=3 H=4 | {len(ours)} |"
        (found,) = [text for text in report.splitlines() if text.startswith(line)]
        assert f"| {middle:.2f} [{low:.2f}, {high:.2f}] |" in found
    assert "| LSTM, dense |" not in shown
    assert "| ragged | 2 |" in shown


def test_resuming_keeps_measured_points(written):
    folder, _ = written
    (path,) = folder.glob("*.json")
    before = json.loads(path.read_text())
    same = ["--shapes", 4, 5, 3, 4, "--cells", "lstm", "--lengths", "ragged"]
    finished("run.py", *same, "--no-studies", "--seconds", 0.01, "--resume", path)
    after = json.loads(path.read_text())
    for old, new in zip(before["points"], after["points"], strict=True):
        assert new | {"floor": 0} == old | {"floor": 0}
    assert after["calibration"]["peak"] >= before["calibration"]["peak"]
    assert after["calibration"]["tau"] <= before["calibration"]["tau"]

    path.write_text(json.dumps(before | {"environment": {"cpu": "another"}}))
    done = run("run.py", *same, "--no-studies", "--resume", path)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("is of another machine or other versions.")


def test_an_unknown_peer_raises_one_sentence():
    done = run("run.py", "--peers", "default", "nobody")
    assert done.returncode == 1
    assert done.stderr.strip().endswith(
        "scan, native, reference, checkpoint, flax, keras, got nobody."
    )
    assert done.stdout == ""


@pytest.mark.skipif(sys.platform != "linux", reason="the footprint is read from /proc")
def test_the_footprint_of_a_training_step():
    point = POINT | {"mode": "training", "steps": 200, "batch": 64, "hidden": 32}
    for peer in ("torch", "default"):
        report = json.loads(finished("footprint.py", peer, json.dumps(point)))
        assert 2 < report["mib"] < 500  # the inputs' gradient and the saved steps
        assert ("xla_mib" in report) == (peer == "default")


def test_a_swapped_gate_disagrees(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import cases
    import points

    case = cases.make(points.Point(**POINT, mode="training"))
    right = {"weight_hh_l0": case.weights["weight_hh_l0"]}
    assert cases.worst_error(case, right, right) == 0
    swapped = {"weight_hh_l0": np.roll(right["weight_hh_l0"], 4, axis=0)}
    assert cases.worst_error(case, right, swapped) > 100
    nothing = {"weight_hh_l0": np.full_like(right["weight_hh_l0"], np.nan)}
    assert cases.worst_error(case, right, nothing) == np.inf


def test_the_least_time_of_a_point(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import measure
    import points

    point = points.Point("lstm", "training", "dense", 2, 5, 3, 4, layers=2, directions=2)
    products = 3 * (2 * (3 + 4) * 16 + 2 * (2 * 4 + 4) * 16)
    functions = 2.5 * 2 * 4 * 5
    least = 2 * (2 * 5) * (products / 1e3 + functions * 1e-2 / 4)
    assert measure.floor(point, measure.Calibration(1e3, 1e-2, 4)) == pytest.approx(least)


def test_ragged_rows_have_from_one_step_to_all(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import points

    point = points.Point("gru", "inference", "ragged", 100, 3, 4, 4)
    assert set(point.row_lengths()) == {1, 2, 3}
    np.testing.assert_array_equal(point.row_lengths(), point.row_lengths())


def test_the_figures_means(monkeypatch):
    """Over a GPU's dense points of 128 units or more, and over the CPU's committed ones."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_report
    import report
    import speedup
    import summary

    times = {128: ("native", 1.0, "cudnn", 4.0), 512: ("native", 2.0, "cudnn", 2.0)}
    times[64] = ("native", 1.0, "cudnn", 100.0)
    rows = []
    for hidden, (ours, us, theirs, other) in times.items():
        point = dict(zip(gpu_report.KEYS, ("lstm", "float32", 16, hidden), strict=False))
        point |= {
            "lengths": "dense",
            "mode": "training",
            "layers": 1,
            "directions": 1,
            "steps": 512,
        }
        rows += [{**point, "peer": ours, "us": us}, {**point, "peer": theirs, "us": other}]
    gpu = speedup.gpu_means({"rows": rows})
    assert gpu == {"cuDNN": [None, pytest.approx(2.0)]}

    results, _ = summary.newest("cpu")
    cpu = speedup.cpu_means(results, "training")
    table = report.summary_table(results)
    row = next(line.split(" | ") for line in table.splitlines() if line.startswith("| LSTM, dense"))
    assert row[3] == f"{cpu['PyTorch'][2]:.2f}"
    assert speedup.title(cpu, gpu).endswith("on a GPU 2.0 times as fast as cuDNN")


def test_a_gpu_run_after_another_leaves_its_points_out(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu

    monkeypatch.setenv("JAXRNN_GPU_ONLY", "lstm,native")
    every = gpu.selected()
    assert {(task.cell, task.peer) for task in every} == {("lstm", "native")}
    measured, failed = (json.dumps(dataclasses.asdict(task)) for task in every[:2])
    lines = measured[:-1] + ', "us": 1.5}\n' + failed[:-1] + ', "error": "out of memory"}\n'
    (tmp_path / "gpu.jsonl").write_text(lines)
    monkeypatch.setenv("JAXRNN_GPU_AFTER", str(tmp_path / "gpu.jsonl"))
    assert gpu.selected() == every[1:]


def test_the_bytes_of_collectives_are_read_from_the_program(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import devices

    program = """
      %r = (f32[4,8]{1,0}, f32[8]{0}) all-reduce(%a, %b), replica_groups={{0,1}}
      %s = f32[] all-reduce-start(%c), channel_id=2
      %t = f32[] all-reduce-done(%s)
      ROOT %g = bf16[2,3]{1,0} all-gather(%d), dimensions={0}
    """
    assert devices.count_bytes(program) == {"all-reduce": 4 * (32 + 8 + 1), "all-gather": 12}
    sent, ms, efficiency = devices.project(8_000_000, 17.0, 8, bandwidth=1e9, hop_ms=0.5)
    assert (sent, ms, efficiency) == (14_000_000, 17.0, 0.5)
