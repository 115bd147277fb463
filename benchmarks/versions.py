"""Two checkouts of jaxrnn against each other: time and memory at 20 points.

    python benchmarks/versions.py OLD_CHECKOUT NEW_CHECKOUT [--strategy Scan]

Each checkout runs in a process of its own, with its kernel built in place or beside it. The two
take turns, so that both see the same machine; a ratio is the median over the turns.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

# (cell, mode, ragged, B, T, I, H)
POINTS = [
    (cell, mode, ragged, *shape)
    for cell, shape in (
        ("RNN", (8, 100, 32, 64)),
        ("GRU", (32, 100, 64, 128)),
        ("LSTM", (1, 1000, 32, 64)),
        ("LSTM", (32, 100, 128, 256)),
        ("LSTM", (128, 100, 32, 32)),
    )
    for mode in ("inference", "training")
    for ragged in (False, True)
]
TURNS, SECONDS = 11, 0.15


def serve(strategy: str) -> None:
    """A child: compiles the points that it reads, and times calls of the last one."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    import jaxrnn
    from jaxrnn import strategies

    call: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        if "calls" in request:
            start = time.perf_counter()
            for _ in range(request["calls"]):
                result = call()
            jax.block_until_ready(result)
            answer = {"seconds": (time.perf_counter() - start) / request["calls"]}
        else:
            cell, mode, ragged, batch, steps, inputs, hidden = request["point"]
            chosen = getattr(strategies, strategy)() if strategy else None
            layer = getattr(jaxrnn, cell)(inputs, hidden, strategy=chosen, rngs=nnx.Rngs(0))
            graph, state = nnx.split(layer)
            rng = np.random.default_rng(0)
            x = jnp.asarray(rng.normal(size=(steps, batch, inputs)), jnp.float32)
            lengths = jnp.asarray(rng.integers(1, steps + 1, batch)) if ragged else None

            def outputs(state, x, graph=graph, lengths=lengths):
                return nnx.merge(graph, state)(x, lengths=lengths)[0]

            f = outputs
            if mode == "training":
                f = jax.grad(lambda state, x, f=outputs: (f(state, x) ** 2).sum(), (0, 1))
            compiled = jax.jit(f).lower(state, x).compile()

            def call(compiled=compiled, state=state, x=x):
                return compiled(state, x)

            total = sum(float(jnp.abs(a).sum()) for a in jax.tree.leaves(call()))
            memory = compiled.memory_analysis()
            answer = {"total": total, "mib": memory.temp_size_in_bytes / 2**20}
        print(json.dumps(answer), flush=True)


class Side:
    def __init__(self, checkout: str, strategy: str) -> None:
        self.child = subprocess.Popen(
            [sys.executable, __file__, "--serve", "--strategy", strategy],
            env={**os.environ, "PYTHONPATH": checkout},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: Any) -> dict[str, float]:
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        print(json.dumps(request), file=self.child.stdin, flush=True)
        return json.loads(self.child.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkouts", nargs="*", metavar="CHECKOUT", help="the old, the new")
    parser.add_argument("--strategy", default="", help="the default one unless given")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.strategy)
        return
    if len(options.checkouts) != 2:
        parser.error("name two checkouts, the old one and the new one")
    old, new = (Side(checkout, options.strategy) for checkout in options.checkouts)
    print("| cell | mode | lengths | B, T, I, H | old, us | new / old | MiB, old | new |")
    print("|---" * 8 + "|")
    ratios = []
    for point in POINTS:
        found = [side.ask(point=point) for side in (old, new)]
        agree = abs(found[0]["total"] - found[1]["total"]) <= 1e-4 * abs(found[0]["total"])
        assert agree, f"the checkouts disagree at {point}: {found}"
        calls = max(1, round(SECONDS / old.ask(calls=1)["seconds"]))
        turns = [
            [side.ask(calls=calls)["seconds"] for side in ((old, new) if i % 2 else (new, old))]
            for i in range(TURNS)
        ]
        pairs = [turn if i % 2 else turn[::-1] for i, turn in enumerate(turns)]
        ratio = statistics.median(b / a for a, b in pairs)
        ratios.append(ratio)
        cell, mode, ragged, *shape = point
        print(
            f"| {cell} | {mode} | {'ragged' if ragged else 'dense'} | {', '.join(map(str, shape))} "
            f"| {1e6 * statistics.median(a for a, _ in pairs):,.0f} | {ratio:.3f} "
            f"| {found[0]['mib']:.1f} | {found[1]['mib']:.1f} |",
            flush=True,
        )
    print(f"\nGeometric mean of new / old: {statistics.geometric_mean(ratios):.3f}.")


if __name__ == "__main__":
    main()
