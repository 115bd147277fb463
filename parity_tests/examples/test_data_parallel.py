"""`examples/data_parallel.py` trains in two processes as in one, started by itself or by Slurm."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gloo is tried on Linux alone")

SCRIPT = Path(__file__).parents[2] / "examples" / "data_parallel.py"
SMALL = ["--epochs", "4", "--hidden-size", "4"]


def start(out, *arguments, **variables):
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *SMALL, "--out", str(out), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **variables},
    )


def assert_compared(output, out):
    assert "2 processes, 2 devices, float64" in output
    assert "20 steps of 54 utterances, 27 on each device" in output
    found = re.search(r"Largest difference of the losses: (\S+)", output)
    assert found is not None
    assert float(found[1]) < 1e-12
    assert (out / "data_parallel.png").read_bytes().startswith(b"\x89PNG")


def test_one_command_trains_in_two_processes(tmp_path):
    process = start(tmp_path)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert_compared(output, tmp_path)


def test_the_processes_of_a_cluster_find_each_other(tmp_path):
    """Slurm's variables, as `srun --ntasks=2` sets them on one node."""
    common = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
    }
    processes = [
        start(tmp_path, "--cluster", SLURM_PROCID=number, SLURM_LOCALID=number, **common)
        for number in ("0", "1")
    ]
    (output, errors), (silent, _) = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert_compared(output, tmp_path)
    assert "Largest difference" not in silent
