"""Scripts in processes of their own, forked from one that has imported the packages.

Importing JAX, Flax, PyTorch and Matplotlib takes seconds; each of these processes starts with them.
They have the default settings of JAX, not those of the suite, but for its folder of compiled
programs. Warnings are errors.
"""

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

# No backend of JAX exists yet, so forking is safe.
SERVER = """
import contextlib, importlib, json, os, runpy, sys, warnings

for name in ("jax", "flax.nnx", "optax", "jaxrnn.training", "torch", "tyro", "matplotlib.pyplot"):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
for line in sys.stdin:
    job = json.loads(line)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of threads
        child = os.fork()
    if not child:
        for descriptor, path in enumerate((os.devnull, job["stdout"], job["stderr"])):
            os.dup2(os.open(path, os.O_RDWR), descriptor)
        sys.argv, sys.path[0] = job["argv"], job["folder"]
        runpy.run_path(job["argv"][0], run_name="__main__")
        sys.exit()
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


@functools.cache
def _server() -> subprocess.Popen[str]:
    programs = {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    # A program that a worker is just writing is compiled instead.
    warnings = ["-W", "error", "-W", "ignore:Error reading persistent compilation cache entry"]
    server = subprocess.Popen(
        [sys.executable, *warnings, "-c", SERVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # No test of a script looks at the rounding of optimised programs.
        env={**os.environ, **programs, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
    )
    atexit.register(server.communicate)
    return server


def run_script(
    path: Path, *arguments: object, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a script with arguments to its end; it imports from its folder, or from another."""
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    argv = [str(path), *map(str, arguments)]
    with (
        tempfile.NamedTemporaryFile("r") as stdout,
        tempfile.NamedTemporaryFile("r") as stderr,
    ):
        job = {"argv": argv, "folder": str(folder or path.parent)}
        job |= {"stdout": stdout.name, "stderr": stderr.name}
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(argv, code, stdout.read(), stderr.read())


def run_code(
    code: str, *arguments: object, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a program as a script that imports from the current folder, or from another."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(code)
        file.flush()
        return run_script(Path(file.name), *arguments, folder=folder or Path.cwd())
