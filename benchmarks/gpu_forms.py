"""Times of the CUDA kernels alone, in every form that `plan.cc` could choose for a problem.

    python benchmarks/gpu_forms.py [--seconds 90] [--hidden 64,128] [--forms 0,11011] [--cells gru]

Each line of gpu-forms.jsonl is one form at one point, in microseconds per step. The rules of
`jaxrnn/native/cuda/plan.cc` are derived from these times.
"""

import argparse
import ctypes
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
WORKERS = 12
STEPS = 384
# Digits: unit tiles, row tiles, warps, CTAs that split K, CTAs on an SM; 0 is plan.cc's choice.
# 811 and 812: one CTA for each row. A digit before the others: some weights in shared memory.
FORMS = "0,811,812,141811,121811,11411,21811,11811,21411,41811"
FORMS += ",12811,22811,11412,21412,11821,21821,21841"
NUMBERS = {"lstm": 2, "gru": 3, "tanh": 0}
DTYPES = ("bfloat16", "float32", "highest")
BATCHES = "16,64,256,1"


def measure(cell: str, dtype: str, hidden: int, is_adjoint: bool, form: int, batch: int, turn):
    """Microseconds per step of consecutive launches."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from gpu_jax import numbers, timed
    from jaxrnn.native import cuda

    gates, states = {"lstm": (4, 2), "gru": (3, 1), "tanh": (1, 1)}[cell]
    io = jnp.bfloat16 if dtype == "bfloat16" else jnp.float32
    total, has_c = jnp.float32, states > 1
    sizes = {
        "h": (batch, hidden),
        "y": (STEPS, batch, hidden),
        "g": (STEPS, batch, gates * hidden),
        "saved": (STEPS, batch, 4 * hidden),
    }

    def shape(name, dtype=io, when=True):
        return jax.ShapeDtypeStruct(sizes[name] if when else (0,), dtype)

    def draw(name, dtype=io, when=True):
        return np.resize(numbers() / 4, sizes[name] if when else (0,)).astype(dtype)

    weights = np.resize(numbers() * hidden**-0.5, (gates * hidden, hidden)).astype(io)
    absent = np.zeros(0, np.int32)
    state, c = draw("h", total), draw("h", total, has_c)
    if is_adjoint:
        outputs = shape("g"), shape("y", when=cell == "gru")
        outputs += shape("h", total), shape("h", total, has_c)
        call = jax.ffi.ffi_call(cuda.ADJOINT, outputs)
        saved = draw("y"), draw("saved", when=gates > 1), draw("y", total, has_c)
        arguments = weights.T.copy(), state, c, absent, absent, *saved, draw("y"), state, c
    else:
        outputs = shape("y"), shape("h", total), shape("h", total, has_c)
        outputs += shape("g", when=False), shape("h", total, when=False)
        call = jax.ffi.ffi_call(cuda.FORWARD, outputs)
        bias = np.zeros(hidden, np.float32)
        arguments = draw("g"), weights, bias, state.astype(io), state, c, absent
    named = {"cell": NUMBERS[cell], "precision": DTYPES.index(dtype), "form": form}
    attributes = {k: np.int32(v) for k, v in named.items()} | {"reverse": False}
    compiled = jax.jit(lambda *a: call(*a, **attributes)).lower(*arguments).compile()
    jax.block_until_ready(compiled(*arguments))  # loads the instance, without taking a turn
    with turn:
        arguments = jax.device_put(arguments)
        return timed(compiled, arguments) / STEPS * 1e6


def fits(cell: str, dtype: str, hidden: int, is_adjoint: bool, form: int, batch: int) -> bool:
    """True if there is a plan for a Hopper GPU."""
    from jaxrnn.native import cuda

    problem = NUMBERS[cell], DTYPES.index(dtype), hidden, batch, int(is_adjoint), 0
    plan = cuda.library().jaxrnn_cuda_plan
    return bool(plan((ctypes.c_int * 6)(*problem), 132, 227 * 1024, 1, form, (ctypes.c_int * 12)()))


def work(instances: list, batches: list, folder: Path, deadline: float) -> None:
    from gpu import Turn
    from jaxrnn.native import cuda

    assert cuda.load()
    turn = Turn(folder)
    keys = "cell", "dtype", "hidden", "is_adjoint", "form", "batch"
    for instance, batch in itertools.product(instances, batches):
        if time.time() > deadline:
            return
        if not fits(*instance, batch):
            continue
        row = dict(zip(keys, (*instance, batch), strict=True))
        try:
            row["us"] = round(measure(*instance, batch, turn), 3)
        except Exception as error:
            row["error"] = str(error)[:200]
        with (folder / "gpu-forms.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--hidden", default="512,256,1024,128,64")
    parser.add_argument("--forms", default=FORMS)
    parser.add_argument("--cells", default=",".join(NUMBERS))
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--batches", default=BATCHES)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    numbers = given.hidden, given.forms, given.batches
    sizes, forms, batches = ([int(n) for n in a.split(",")] for a in numbers)
    cells, dtypes = given.cells.split(","), given.dtypes.split(",")
    if given.worker:
        instances = list(itertools.product(cells, dtypes, sizes, (False, True), forms))
        share, deadline = int(given.worker[0]), float(given.worker[1])
        work(instances[share::WORKERS], batches, given.out, deadline)
        return
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "gpu-forms.jsonl").unlink(missing_ok=True)
    deadline = str(time.time() + given.seconds - 3)
    command = [sys.executable, __file__, "--out", str(given.out)]
    for name in ("hidden", "forms", "cells", "dtypes", "batches"):
        command += [f"--{name}", getattr(given, name)]
    command.append("--worker")
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    workers = [
        subprocess.Popen([*command, str(share), deadline], env=environment)
        for share in range(WORKERS)
    ]
    for worker in workers:
        worker.wait()


if __name__ == "__main__":
    main()
