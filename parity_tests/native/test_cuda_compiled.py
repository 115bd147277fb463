"""The CUDA kernels' code, compiled by NVRTC without a GPU: it compiles, and in registers alone.

A few instances by default; with JAXRNN_EVERY_INSTANCE=1 all that `plan.cc` chooses for the sizes
below, which takes many minutes (`make check-cuda`).
"""

import ctypes
import itertools
import os

import pytest

import emulated
from jaxrnn.native import cuda

if cuda.library() is None:
    pytest.skip("this build of jaxrnn has no CUDA kernels", allow_module_level=True)

TANH, RELU, LSTM, GRU = range(4)
BF16, TF32, FLOAT32 = range(3)
ARCHITECTURES = "sm_80", "sm_90a"
# Those with the most registers, and one of each way through the code.
FEW = [
    (LSTM, BF16, 512, 64, False, False),
    (LSTM, TF32, 1024, 256, True, False),
    (LSTM, FLOAT32, 1024, 16, False, True),
    (GRU, BF16, 512, 256, False, True),
    (GRU, FLOAT32, 192, 1000, True, True),
    (RELU, FLOAT32, 64, 1, True, False),
]
HIDDEN = (*range(64, 513, 64), 640, 768, 896, 1024)
BOTH = (False, True)
EVERY = itertools.product((LSTM, GRU, TANH), range(3), HIDDEN, (1, 64, 256, 1000), BOTH, BOTH)
PROBLEMS = list(EVERY) if os.environ.get("JAXRNN_EVERY_INSTANCE") else FEW


@pytest.fixture(autouse=True)
def cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def compile_instance(problem, plan, architecture):
    """(bytes of local memory a thread, the compiler's error)."""
    numbers = (ctypes.c_int * len(emulated.PLAN))(*plan.values())
    given = (ctypes.c_int * 6)(*map(int, problem))
    error = ctypes.create_string_buffer(20_000)
    compile_for = cuda.library().jaxrnn_cuda_compile
    stack = compile_for(given, numbers, architecture.encode(), error, len(error))
    if b"no NVRTC" in error.value:
        pytest.skip("NVRTC is not installed (`pip install nvidia-cuda-nvrtc`)")
    return stack, error.value.decode()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: "-".join(map(str, map(int, p))))
def test_compiles_without_local_memory(problem, architecture):
    clusters = architecture != "sm_80"
    sms, smem = (132, 227 * 1024) if clusters else (108, 163 * 1024)
    plan = emulated.plan_of(problem, sms=sms, smem=smem, clusters=clusters)
    if plan is None:
        assert not clusters
        assert problem[2] > 768, "an A100 has too few SMs only for the largest"
        pytest.skip("does not fit this GPU")
    assert compile_instance(problem, plan, architecture) == (0, "")


def test_an_unknown_architecture_is_one_sentence():
    plan = emulated.plan_of(FEW[0])
    stack, error = compile_instance(FEW[0], plan, "sm_1")
    assert stack == -1
    assert "cannot compile for sm_1" in error


def test_the_second_compilation_comes_from_the_cache(tmp_path):
    plan = emulated.plan_of(FEW[-1])
    compile_instance(FEW[-1], plan, "sm_90a")
    (kept,) = (tmp_path / "jaxrnn").iterdir()
    assert kept.suffix == ".cubin"
    before = kept.stat().st_mtime_ns
    compile_instance(FEW[-1], plan, "sm_90a")
    assert kept.stat().st_mtime_ns == before
    kept.write_bytes(kept.read_bytes()[:-1])  # as a full disk leaves it
    assert compile_instance(FEW[-1], plan, "sm_90a") == (0, "")
    assert kept.stat().st_mtime_ns > before
