"""`Shooting` over the CUDA kernels: one row of a long sequence, with nothing else on the GPU.

    python benchmarks/gpu_shooting.py [--seconds 110] [--out benchmarks/results] [--only 10,11]

Each line of gpu-shooting.jsonl is one cell at one size: milliseconds of a call, seconds of its
compilation, the sweeps and the residual of both passes, and the errors against float64 of Shooting
and of the kernel run sequentially, at the same precision.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
INPUTS = 16
CASES = list(itertools.product((65_536, 1_048_576), (256, 64, 512), ("lstm", "gru")))
# Side by side, as far as the memory allows: a million steps of 512 units need all of it.
TOGETHER = [[0, 1, 2, 3, 4, 5, 8, 9], [6], [7], [10], [11]]
UNTUNED = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"


def measure(steps: int, hidden: int, name: str, turn: Any, late: Any) -> Any:
    """Yields results, as they come."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    import jaxrnn
    from gpu_jax import timed
    from jaxrnn import cells, strategies

    cell = getattr(cells, name)
    module = getattr(jaxrnn, name.upper())(INPUTS, hidden, rngs=nnx.Rngs(0))
    names = "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"
    weights = cells.Weights(*(jnp.asarray(getattr(module, n)[...], jnp.float32) for n in names))
    x = jnp.asarray(np.random.default_rng(0).standard_normal((steps, 1, INPUTS)), jnp.float32)
    carry = tuple(jnp.zeros((1, hidden), jnp.float32) for _ in range(cell.states))
    shooting, native = strategies.Shooting(), strategies.Native()
    ones = jnp.ones((steps, 1, hidden), jnp.float32)

    def compiled(call: Any) -> tuple[Any, dict[str, float]]:
        began = time.perf_counter()
        lowered = jax.jit(call).lower(weights, x)
        between = time.perf_counter()
        run = lowered.compile()
        ended = time.perf_counter()
        return run, {"lower_s": round(between - began, 2), "compile_s": round(ended - between, 2)}

    def forward(weights: Any, x: Any) -> Any:
        return shooting.run(cell, weights, x, carry)

    def backward(weights: Any, x: Any) -> Any:
        _, info = shooting.run_adjoint(cell, weights, x, carry, None, (ones, carry))
        return info

    def training_of(strategy: Any, cotangent: Any, carry: Any) -> Any:
        def loss(weights: Any, x: Any) -> Any:
            ys, _ = strategy(cell, weights, x, carry, precision="highest")
            return (ys * cotangent).sum()

        return jax.grad(loss, argnums=(0, 1))

    def told(info: Any) -> dict[str, Any]:
        fell_back = bool(info.fell_back)
        return {
            "sweeps": int(info.sweeps),
            "residual": float(info.residual),
            "fell_back": fell_back,
        }

    run, costs = compiled(forward)
    with turn:
        ys, _, info = run(weights, x)
        yield {"mode": "inference", "ms": timed(run, (weights, x)) * 1e3} | costs | told(info)
        run = None
    train, costs = compiled(training_of(shooting, ones, carry))
    with turn:
        gradients = train(weights, x)
        yield {"mode": "training", "ms": timed(train, (weights, x)) * 1e3} | costs
        train = None
    run, _ = compiled(backward)
    with turn:
        yield {"mode": "adjoint"} | told(run(weights, x))
        run = None
    if steps > 2**17 or late():
        return
    wide = jax.tree.map(lambda a: a.astype(jnp.float64), (weights, x, carry, ones))
    exactly = jax.jit(training_of(strategies.Scan(unroll=1), wide[3], wide[2]))
    sequentially = jax.jit(training_of(native, ones, carry))
    outputs = jax.jit(lambda w, x, c: strategies.Scan(unroll=1)(cell, w, x, c)[0])
    ys_sequentially = jax.jit(lambda w, x: native(cell, w, x, carry, precision="highest")[0])

    def error(found: Any, wanted: Any) -> float:
        pairs = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
        norm = jnp.linalg.norm
        return max(float(norm((a - b).ravel()) / norm(b.ravel())) for a, b in pairs)

    with turn:
        wanted, exact = outputs(*wide[:3]), exactly(*wide[:2])
        yield {
            "mode": "error",
            "outputs": error(ys, wanted),
            "outputs_sequentially": error(ys_sequentially(weights, x), wanted),
            "gradients": error(gradients, exact),
            "gradients_sequentially": error(sequentially(weights, x), exact),
        }


def work(case: tuple, folder: Path, deadline: float) -> None:
    import jax

    from gpu import Turn

    jax.config.update("jax_enable_x64", True)

    def late() -> bool:
        return time.time() > deadline

    row = dict(zip(("steps", "hidden", "cell"), case, strict=True))

    def append(result: dict[str, Any]) -> None:
        with (folder / "gpu-shooting.jsonl").open("a") as file:
            file.write(json.dumps(row | result) + "\n")

    try:
        for result in measure(*case, Turn(folder), late):
            append(result)
    except Exception as error:
        append({"error": f"{type(error).__name__}: {error}"[:300]})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=110)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--only", default=",".join(map(str, range(len(CASES)))), help="cases")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(CASES[int(given.worker[0])], given.out, float(given.worker[1]))
        return
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "gpu-shooting.jsonl").unlink(missing_ok=True)
    deadline = str(time.time() + given.seconds - 5)
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}

    def start(case: int, share: float) -> subprocess.Popen:
        command = [sys.executable, __file__, "--out", str(given.out), "--worker", str(case)]
        command.append(deadline)
        own = {"XLA_PYTHON_CLIENT_MEM_FRACTION": str(share), "XLA_FLAGS": UNTUNED}
        return subprocess.Popen(command, env=environment | own)

    wanted = {int(number) for number in given.only.split(",")}
    for cases in ([case for case in cases if case in wanted] for cases in TOGETHER):
        for worker in [start(case, 0.96 / len(cases)) for case in cases]:
            worker.wait()


if __name__ == "__main__":
    main()
