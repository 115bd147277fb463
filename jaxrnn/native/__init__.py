"""Kernels of `jaxrnn.strategies.Native`: C++ for a CPU; `jaxrnn.native.cuda` for NVIDIA GPUs.

The library exports XLA foreign functions, for whole sequences and for the products of a loop, and
the names of the instruction sets that this machine supports. The package also works without it.
"""

import ctypes
import functools
from pathlib import Path
from typing import Any

import jax

FORWARD = "jaxrnn_forward"
ADJOINT = "jaxrnn_adjoint"
ROUND = "jaxrnn_round"
PACK = "jaxrnn_pack"
MULTIPLY = "jaxrnn_matmul"
OUTER = "jaxrnn_outer"
EMPTY = "jaxrnn_empty"


def path() -> Path | None:
    """Path of the library, or None if jaxrnn was installed without a C++ compiler."""
    ends = (".so", ".dylib", ".dll")
    found = [folder / f"jaxrnn_native{end}" for folder in _folders() for end in ends]
    return next((p for p in found if p.exists()), None)


def _folders() -> list[Path]:
    return [Path(folder) for folder in __path__]


@functools.cache
def load() -> tuple[str, ...]:
    """Register the foreign functions once, and return the names of the builds, fastest first.

    The tuple is empty if there is no library.
    """
    where = path()
    if where is None:
        return ()
    library = ctypes.CDLL(str(where))
    for name in (FORWARD, ADJOINT, ROUND, PACK, MULTIPLY, OUTER, EMPTY):
        capsule = jax.ffi.pycapsule(getattr(library, name))
        jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    return _names(library.jaxrnn_builds)


@functools.cache
def narrow_builds() -> tuple[str, ...]:
    """Return the names of the builds that multiply in bfloat16 on this machine."""
    where = path()
    return () if where is None else _names(ctypes.CDLL(str(where)).jaxrnn_narrow_builds)


def multiplies_bfloat16(build: str | None = None) -> bool:
    """True if the build, or the one that None takes, multiplies in bfloat16 on this machine."""
    names = (build,) if build else load()[:1]
    return not {*names}.isdisjoint(narrow_builds())


def _names(function: Any) -> tuple[str, ...]:
    function.restype = ctypes.c_char_p
    return tuple(filter(None, function().decode().split(",")))
