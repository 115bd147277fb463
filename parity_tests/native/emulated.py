"""CUDA kernels emulated on a CPU, in place of `jax.ffi.ffi_call`, for eager calls."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jaxrnn import native
from jaxrnn.native import cuda
from jaxrnn.strategies.native import CELLS

SOURCES = Path(native.__file__).parent / "cuda"
ALLOWED_SMEM = 227 * 1024

INPUTS = {
    cuda.FORWARD: ("gx", "weights", "b_hn", "h0", "h0_exact", "c0", "previous"),
    cuda.ADJOINT: (
        *("weights", "h0_exact", "c0", "previous", "following", "ys", "gates", "cs"),
        *("d_ys", "d_h_last", "d_c_last"),
    ),
}
OUTPUTS = {
    cuda.FORWARD: ("ys", "h_last", "c_last", "gates", "cs"),
    cuda.ADJOINT: ("dg", "d_gx_n", "d_h0", "d_c0"),
}
POINTERS = (
    *("gx", "weights", "b_hn", "h0", "h0_exact", "c0", "previous", "following", "ys", "h_last"),
    *("c_last", "gates", "cs", "d_ys", "d_h_last", "d_c_last", "dg", "d_gx_n", "d_h0", "d_c0"),
    "failed",
)
NUMBERS = (
    *("steps", "batch", "initial_rows", "row_begin", "row_end", "group_rows", "sub_tiles"),
    *("reverse", "patience", "mute"),
)


class Arguments(ctypes.Structure):
    """The struct of arguments.cuh."""

    _fields_ = [(n, ctypes.c_void_p) for n in POINTERS] + [(n, ctypes.c_int) for n in NUMBERS]


PLAN = (
    *("unit_tiles", "row_tiles", "warps", "k_split", "ctas_per_sm", "chunk", "held"),
    *("ctas", "smem", "group_rows", "sub_tiles", "launch_rows"),
)


def plan_of(problem, *, sms=132, smem=ALLOWED_SMEM, clusters=True, form=0):
    """Plan for `problem` (cell, precision, padded hidden, rows, is adjoint, is ragged), or None."""
    numbers = (ctypes.c_int * len(PLAN))()
    given = (ctypes.c_int * 6)(*map(int, problem))
    found = cuda.library().jaxrnn_cuda_plan(given, sms, smem, int(clusters), form, numbers)
    return dict(zip(PLAN, numbers, strict=True)) if found else None


def instance_of(problem, plan):
    cell, precision, hidden, _, is_adjoint, is_ragged = problem
    flags = ",".join(str(bool(flag)).lower() for flag in (is_adjoint, is_ragged))
    if not plan["unit_tiles"]:
        name = f"{'adjoint' if is_adjoint else 'forward'}_alone"
        return f"{name}<AloneForm<{cell},{precision},{hidden},{flags}>>"
    shape = [plan[n] for n in ("unit_tiles", "row_tiles", "warps", "chunk", "k_split")]
    numbers = ",".join(map(str, (cell, precision, hidden, *shape)))
    gates = 1 if is_adjoint else CELLS[cell].gates
    held = plan["held"] or gates * plan["unit_tiles"] * plan["k_split"]
    return f"{'adjoint' if is_adjoint else 'forward'}<Form<{numbers},{held},{flags}>>"


def build(instances, folder):
    """Compiles the emulator with these instances by g++."""
    rows = [f'{{"{i}", [](const Arguments& p) {{ {i}(p); }}}},' for i in sorted(instances)]
    (folder / "instances.inc").write_text("\n".join(rows))
    library = folder / "emulator.so"
    command = [shutil.which("g++"), "-std=c++17", "-O1", "-w", "-shared", "-fPIC", f"-I{SOURCES}"]
    command += [f'-DINSTANCES="{folder}/instances.inc"', "-o", library, SOURCES / "emulator.cc"]
    subprocess.run(list(map(str, command)), check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.jaxrnn_emulate.restype = ctypes.c_char_p
    return loaded


def numpy_of(a):
    dtype = ml_dtypes.bfloat16 if a.dtype == jnp.bfloat16 else a.dtype
    return np.ascontiguousarray(np.asarray(a), dtype)


FFI_CALL = jax.ffi.ffi_call  # `Device.ffi_call` replaces it for a test


class Device:
    """An emulated GPU.

    Args:
        library: result of `build`.
        mute: index of a CTA that never writes.
        patience: number of polls after which a reader gives up.
        options: options of `plan_of`: the GPU's size, or one form for every plan.
    """

    def __init__(self, library, *, mute=-1, patience=2000, **options):
        self.library, self.mute, self.patience, self.options = library, mute, patience, options
        self.failed = np.zeros(1, np.uint32)

    def ffi_call(self, target, shapes):
        if target not in INPUTS:  # the CPU kernel's products, in a reference
            return FFI_CALL(target, shapes)

        def run(*operands, cell, precision, reverse, form):
            arrays = dict(zip(INPUTS[target], map(numpy_of, operands), strict=True))
            for name, shape in zip(OUTPUTS[target], shapes, strict=True):
                dtype = ml_dtypes.bfloat16 if shape.dtype == jnp.bfloat16 else shape.dtype
                filled = np.full(
                    int(np.prod(shape.shape)) * np.dtype(dtype).itemsize, 255, np.uint8
                )
                arrays[name] = filled.view(dtype).reshape(shape.shape)
            self._launch(target, arrays, int(cell), int(precision), bool(reverse))
            return [jnp.asarray(arrays[name]) for name in OUTPUTS[target]]

        return run

    def _launch(self, target, arrays, cell, precision, reverse):
        steps, batch, hidden = arrays["ys"].shape
        is_ragged = arrays["previous"].size > 0
        problem = cell, precision, hidden, batch, target == cuda.ADJOINT, is_ragged
        plan = plan_of(problem, **self.options)
        arguments = Arguments(
            steps=steps,
            batch=batch,
            initial_rows=arrays["h0_exact"].shape[0],
            group_rows=plan["group_rows"],
            sub_tiles=plan["sub_tiles"],
            reverse=reverse,
            patience=self.patience,
            mute=self.mute,
            failed=self.failed.ctypes.data,
        )
        if target == cuda.ADJOINT and not arrays["gates"].size:
            arrays["gates"] = arrays["ys"]
        for name, array in arrays.items():
            setattr(arguments, name, array.ctypes.data if array.size else None)
        for row in range(0, batch, plan["launch_rows"]):
            arguments.row_begin, arguments.row_end = row, min(batch, row + plan["launch_rows"])
            fault = self.library.jaxrnn_emulate(
                instance_of(problem, plan).encode(),
                *(plan["ctas"], plan["warps"] * 32, plan["k_split"], plan["smem"]),
                ctypes.byref(arguments),
            )
            assert fault is None, fault.decode()


def instances_of(case, is_ragged):
    """The instances of both passes that a case needs: `problem`, and the `options` of `plan_of`."""
    for is_adjoint in (False, True):
        problem = (*case.problem, is_adjoint, is_ragged)
        yield instance_of(problem, plan_of(problem, **case.options))
