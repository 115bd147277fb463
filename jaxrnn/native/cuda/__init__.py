"""The CUDA kernels behind `jaxrnn.strategies.Native`, in the library that `jaxrnn.native` loads.

The kernels are compiled for the GPU at hand when they are first used, by NVRTC, which
`pip install 'jax[cuda12]'` or `'jax[cuda13]'` brings, and kept in `$XDG_CACHE_HOME/jaxrnn` (or
`~/.cache/jaxrnn`) for the next process.
"""

import ctypes
import functools
import importlib.util
import itertools
import re
from pathlib import Path
from typing import NamedTuple

import jax

from jaxrnn import native

FORWARD = "jaxrnn_cuda_forward"
ADJOINT = "jaxrnn_cuda_adjoint"

MOST_UNITS = 1024
"""The most hidden units whose weights fit on a GPU at once."""

LEAST_CAPABILITY = (8, 0)


class Gpu(NamedTuple):
    """A GPU, as the plans see it."""

    capability: tuple[int, int]
    multiprocessors: int

    @property
    def has_clusters(self) -> bool:
        return self.capability >= (9, 0)

    @property
    def shared_memory(self) -> int:
        """Bytes that a block may have."""
        consumer = (self.capability[0] == 8 and self.capability[1] > 0) or self.capability[0] >= 12
        return 1024 * (99 if consumer else 227 if self.has_clusters else 163)


def gpu() -> Gpu | None:
    """The default backend's first GPU, if it is NVIDIA's."""
    device = jax.devices()[0]
    capability = getattr(device, "compute_capability", None)
    if device.platform != "gpu" or not re.fullmatch(r"\d+\.\d+", str(capability)):
        return None
    major, minor = map(int, str(capability).split("."))
    return Gpu((major, minor), device.core_count)


@functools.cache
def fits(gpu: Gpu, cell: int, precision: int, hidden: int, rows: int) -> bool:
    """Return True if the kernels of both passes fit. `cell` and `precision` are their numbers."""
    found, size = library(), padded(hidden)
    assert found is not None
    limits = gpu.multiprocessors, gpu.shared_memory, gpu.has_clusters, 0
    flags = itertools.product((0, 1), (0, 1))  # the adjoint, a mask
    problems = [(ctypes.c_int * 6)(cell, precision, size, rows, *pair) for pair in flags]
    return all(found.jaxrnn_cuda_plan(p, *limits, (ctypes.c_int * 12)()) for p in problems)


def padded(hidden: int) -> int:
    """The number of units, at least `hidden`, that the kernels are made for."""
    step = 64 if hidden <= 512 else 128
    return -(-hidden // step) * step


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library, or None if jaxrnn was installed without a compiler or for another system."""
    where = native.path()
    found = None if where is None else ctypes.CDLL(str(where))
    if found is None or not hasattr(found, FORWARD):
        return None
    found.jaxrnn_cuda_nvrtc(":".join(map(str, nvrtc_paths())).encode())
    return found


@functools.cache
def load() -> bool:
    """Register the foreign functions, once; False where the library has none."""
    found = library()
    if found is None:
        return False
    for name in (FORWARD, ADJOINT):
        stages = {"initialize": f"{name}_initialize", "execute": name}
        handlers = {k: jax.ffi.pycapsule(getattr(found, v)) for k, v in stages.items()}
        jax.ffi.register_ffi_target(name, handlers, platform="CUDA")
    return True


def nvrtc_paths() -> list[Path]:
    """Every NVRTC in NVIDIA's Python packages, the newest major version first."""
    try:
        package = importlib.util.find_spec("nvidia")
    except (ImportError, ValueError):
        return []
    folders = [] if package is None else list(package.submodule_search_locations or ())
    patterns = "cu[0-9]*/lib/libnvrtc.so.[0-9]*", "cuda_nvrtc/lib/libnvrtc.so.[0-9]*"
    found = [
        path for folder in folders for pattern in patterns for path in Path(folder).glob(pattern)
    ]
    return sorted(found, key=lambda path: int(path.name.rsplit(".", 1)[1]), reverse=True)
