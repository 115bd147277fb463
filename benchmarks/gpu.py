"""Benchmark of the CUDA kernels against cuDNN, Flax and `jax.experimental.rnn` on one GPU.

    python benchmarks/gpu.py [--seconds 240] [--out benchmarks/results] [--only lstm,bfloat16]
    python benchmarks/gpu.py --after benchmarks/results/gpu.jsonl

Every peer at every point is one task. Workers compile in parallel, take turns on the GPU, and write
each result as a line of JSON at once. Tasks that exceed the time limit are missing from the table;
a second run `--after` the first measures those alone, and the table has both. `gpu_shooting.py`
measures long sequences.
"""

import argparse
import dataclasses
import fcntl
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

HERE = Path(__file__).parent
JAX_WORKERS, TORCH_WORKERS, HEAVY_WORKERS = 11, 4, 2
HEAVY_SHARE, LIGHT_SHARE = 0.17, 0.04  # of the GPU's memory; the rest is for PyTorch
STEPS = 512
# Autotuning would run products on the GPU and disturb the timings of other workers. Without it the
# products around the kernels take a few per cent longer, those in three TF32 parts a quarter.
UNTUNED = "--xla_gpu_autotune_level=0", "--xla_gpu_enable_triton_gemm=false"


@dataclasses.dataclass(frozen=True)
class Task:
    """One peer at one point. `dtype`: "float32" (TF32 products), "highest" or "bfloat16"."""

    peer: str
    cell: str
    dtype: str
    batch: int
    hidden: int
    lengths: str = "dense"
    mode: str = "inference"
    layers: int = 1
    directions: int = 1
    steps: int = STEPS

    def point(self) -> tuple:
        return dataclasses.astuple(self)[1:]

    def is_heavy(self) -> bool:
        return self.steps * self.batch * self.hidden * self.layers * self.directions >= 2**25

    def framework(self) -> str:
        return "torch" if self.peer.startswith("cudnn") else "jax"


KEYS = tuple(field.name for field in dataclasses.fields(Task))
SIZES = list(itertools.product((16, 64, 256, 1), (512, 256, 1024, 128, 768, 64)))
CELLS, DTYPES = ("lstm", "gru", "rnn"), ("bfloat16", "float32", "highest")
SMALL = [(batch, hidden) for batch, hidden in SIZES if hidden <= 128]
LARGE = [(256, 1024), (256, 512)]
FEW = [(16, 512), (64, 256)]
RAGGED = [(16, 512), (64, 512), (64, 256), (256, 512)]
SHORT = (1, 4, 16, 64)
OF_RNN = [(16, 512), (64, 256), (256, 512), (256, 1024), (64, 128), (1, 512)]
LONGEST = 65_535  # steps that cuDNN takes
DEEP = [(16, 512), (64, 256), (64, 512), (1, 256)]


def tasks() -> Iterator[Task]:
    """Tasks in order of importance, because the time may not suffice for all of them."""
    modes = "inference", "training"

    def dense(cells: Iterable[str], sizes: list, peers: Iterable[str]) -> Iterator[Task]:
        for cell, (batch, hidden), dtype in itertools.product(cells, sizes, DTYPES):
            for mode, peer in itertools.product(modes, peers):
                yield Task(peer, cell, dtype, batch, hidden, mode=mode)

    def ragged(sizes: list, dtypes: Iterable[str]) -> Iterator[Task]:
        for (batch, hidden), cell, dtype in itertools.product(sizes, CELLS[:2], dtypes):
            for mode, peer in itertools.product(modes, ("native", "cudnn")):
                yield Task(peer, cell, dtype, batch, hidden, "ragged", mode)

    yield from dense(CELLS[:2], SMALL, ("native", "cudnn graph"))
    yield from dense(CELLS[:2], LARGE, ("native", "cudnn graph"))
    for (batch, hidden), dtype, mode in itertools.product(FEW, DTYPES[:2], modes):
        for peer in ("scan", "flax", "jax.experimental.rnn")[: 2 + (dtype == "float32")]:
            yield Task(peer, "lstm", dtype, batch, hidden, mode=mode)
    for (batch, hidden), dtype, mode in itertools.product(DEEP, DTYPES[:2], modes):
        for peer in ("native", "cudnn graph", "cudnn"):
            yield Task(peer, "lstm", dtype, batch, hidden, mode=mode, layers=2, directions=2)
    for hidden, mode in itertools.product((64, 256, 512), modes):
        yield Task("cudnn", "lstm", "highest", 1, hidden, mode=mode, steps=LONGEST)
    yield from ragged(RAGGED, DTYPES[:2])
    for (batch, hidden), steps, mode in itertools.product(FEW, SHORT, modes):
        for peer in ("native", "scan"):
            yield Task(peer, "lstm", "float32", batch, hidden, mode=mode, steps=steps)
    yield from dense(CELLS[:2], SIZES, ("native", "cudnn graph", "cudnn"))
    yield from dense(CELLS[2:], OF_RNN, ("native", "cudnn graph", "cudnn"))
    yield from dense(CELLS[2:], SIZES, ("native", "cudnn graph", "cudnn"))
    yield from ragged(SIZES, DTYPES)


class Turn:
    """Exclusive access to the GPU for one process at a time."""

    def __init__(self, folder: Path):
        self.file = (folder / "gpu.lock").open("w")

    def __enter__(self) -> None:
        fcntl.flock(self.file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self.file, fcntl.LOCK_UN)


def work(framework: str, share: int, shares: int, folder: Path, deadline: float) -> None:
    """Run this worker's share of the tasks and append the results."""
    chosen = [t for t in selected() if t.framework() == framework]
    if (
        framework == "jax"
    ):  # its allocator keeps what it once had: few processes take the large ones
        is_heavy = share < HEAVY_WORKERS
        chosen = [t for t in chosen if t.is_heavy() == is_heavy]
        first, apart = (0, HEAVY_WORKERS) if is_heavy else (HEAVY_WORKERS, shares - HEAVY_WORKERS)
        chosen = chosen[share - first :: apart]
    else:
        chosen = chosen[share::shares]
    module = __import__(f"gpu_{framework}")
    turn = Turn(folder)

    about = {"run": os.environ["JAXRNN_GPU_RUN"]}

    def append(task: Task, result: dict) -> None:
        line = json.dumps(dataclasses.asdict(task) | result | about) + "\n"
        with (folder / "gpu.jsonl").open("a") as file:
            file.write(line)  # one short write, which O_APPEND makes atomic

    def late() -> bool:
        return time.time() > deadline

    module.measure_all(chosen, turn, append, late)


def selected() -> list[Task]:
    words = os.environ.get("JAXRNN_GPU_ONLY", "")
    every = list(dict.fromkeys(tasks()))
    wanted = set(filter(None, words.split(",")))
    every = [t for t in every if wanted <= {t.peer, t.cell, t.dtype, t.lengths, t.mode}]
    done = {tuple(row[k] for k in KEYS) for row in rows_of(os.environ.get("JAXRNN_GPU_AFTER"))}
    return [t for t in every if dataclasses.astuple(t) not in done]


def rows_of(path: str | Path | None) -> list[dict]:
    """The points that an earlier run has measured."""
    lines = Path(path).read_text().splitlines() if path else []
    return [row for row in map(json.loads, lines) if "us" in row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--only", default="", help="comma-separated words that a task must have")
    parser.add_argument("--after", type=Path, help="gpu.jsonl of an earlier run")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        framework, share, shares, deadline = given.worker
        work(framework, int(share), int(shares), given.out, float(deadline))
        return
    given.out.mkdir(parents=True, exist_ok=True)
    earlier = rows_of(given.after)
    results = given.out / "gpu.jsonl"
    results.write_text("".join(json.dumps(row) + "\n" for row in earlier))
    environment = os.environ | {
        "JAXRNN_GPU_ONLY": given.only,
        "JAXRNN_GPU_AFTER": str(given.after or ""),
        "JAXRNN_GPU_RUN": time.strftime("%Y-%m-%d %H:%M"),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "XLA_FLAGS": " ".join((*UNTUNED, os.environ.get("XLA_FLAGS", ""))),
    }
    start = time.time()
    deadline = start + given.seconds - 15  # time for the report
    command = [sys.executable, __file__, "--out", str(given.out), "--worker"]

    def start(framework: str, share: int, shares: int) -> subprocess.Popen:
        memory = HEAVY_SHARE if share < HEAVY_WORKERS else LIGHT_SHARE
        return subprocess.Popen(
            [*command, framework, str(share), str(shares), str(deadline)],
            env=environment | {"XLA_PYTHON_CLIENT_MEM_FRACTION": str(memory)},
            stderr=(given.out / f"gpu-{framework}-{share}.log").open("w"),
        )

    kinds = ("jax", JAX_WORKERS), ("torch", TORCH_WORKERS)
    workers = [start(name, share, shares) for name, shares in kinds for share in range(shares)]
    for worker in workers:
        try:
            worker.wait(max(1.0, deadline + 8 - time.time()))
        except subprocess.TimeoutExpired:
            worker.kill()
    import gpu_report

    gpu_report.write(given.out)
    print(f"{time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
