"""Collectives, memory and time of a data-parallel training step of an LSTM.

    python benchmarks/devices.py                   # bytes and memory on 1, 2, 4 and 8 devices
    python benchmarks/devices.py --time            # times too, on 1 and 2 devices of two cores
    python benchmarks/devices.py --projection      # the table for 8, 64 and 1,024 devices

The devices are those that a CPU stands in for. Bytes are read from the compiled program: every
all-reduce, all-gather, reduce-scatter, all-to-all and collective-permute, by its result.
"""

import argparse
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from typing import Any

COUNTS = 1, 2, 4, 8
BATCH, STEPS, INPUTS, HIDDEN = 256, 60, 128, 128
ITEM_BYTES = {"f64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "pred": 1, "s8": 1}
COLLECTIVE = re.compile(
    r"= (?P<shape>\([^=]*?\)|\S+) "
    r"(?P<name>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
)


def count_bytes(program: str) -> Counter[str]:
    """Bytes of the results of each kind of collective in a compiled program, per device."""
    found: Counter[str] = Counter()
    for match in COLLECTIVE.finditer(program):
        for dtype, shape in re.findall(r"(\w+)\[([0-9,]*)\]", match["shape"]):
            size = math.prod(int(n) for n in shape.split(",") if n)
            found[match["name"]] += size * ITEM_BYTES[dtype]
    return found


def measure(devices: int, strategy: str, *, timed: bool) -> dict[str, Any]:
    """Bytes, MiB and milliseconds of one step on some devices of this process."""
    import jax
    import numpy as np
    import optax
    from flax import nnx
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    import jaxrnn
    from jaxrnn import data, strategies, training
    from jaxrnn.training.placement import place_batch, place_modules, placements
    from jaxrnn.training.steps import compiled_step

    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    chosen = getattr(strategies, strategy)()
    model = jaxrnn.LSTM(INPUTS, HIDDEN, batch_first=True, strategy=chosen, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    place_modules(rows, model, optimizer)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, STEPS, INPUTS)).astype(np.float32)
    batch = place_batch(data.Batch(x, x[:, :, :HIDDEN]), rows)

    def forward(model: Any, batch: Any) -> Any:
        return model(batch.inputs)[0]

    step, _ = compiled_step(
        training.mean_squared_error, (), forward, placements(rows, model, optimizer)
    )
    compiled = step.lower(model, optimizer, batch).compile()
    memory = compiled.compiled.memory_analysis()
    size = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(nnx.state(model, nnx.Param)))
    report = {
        "parameters": size,
        "bytes": dict(count_bytes(compiled.compiled.as_text())),
        "mib": (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**20,
    }
    if timed:
        times = []
        for _ in range(20):
            start = time.perf_counter()
            jax.block_until_ready(step(model, optimizer, batch))
            times.append(1000 * (time.perf_counter() - start))
        report["ms"] = statistics.median(times[5:])
    return report


def project(
    parameters: int, single_ms: float, devices: int, bandwidth: float, hop_ms: float
) -> tuple[float, float, float]:
    """(bytes that a device sends, ms of the all-reduce, efficiency), without overlap.

    Every byte passes twice through each device's link but for its own share, and a tree of devices
    is passed up and down once.
    """
    sent = 2 * (devices - 1) / devices * parameters
    ms = 1000 * sent / bandwidth + 2 * math.ceil(math.log2(devices)) * hop_ms
    return sent, ms, single_ms / (single_ms + ms)


# LSTM of one layer, I = H, float32, T = 512, training: microseconds a step of
# benchmarks/results/gpu-h100-2026-11-26.md at the batch of one device.
MEASURED = ((256, 64), (512, 64), (1024, 64), (512, 256), (1024, 256))
# Bytes a second in each direction, and ms of a hop.
LINKS = {"NVLink, 450 GB/s": (450e9, 0.005), "Ethernet, 12.5 GB/s": (12.5e9, 0.02)}


def print_projection(results: str) -> None:
    steps = 512
    print(
        "| H | B a device | parameters, MiB | ms, one device | devices | all-reduced, MiB | ",
        end="",
    )
    print(" | ".join(f"{name}: ms | efficiency" for name in LINKS) + " |")
    print("|" + "---|" * (6 + 2 * len(LINKS)))
    for hidden, batch in MEASURED:
        point = f"| lstm | float32 | {batch} | {hidden} | dense | training | 1 | 1 | {steps} | "
        found = re.search(re.escape(point) + r"(\S+)", results)
        if found is None:
            sys.exit(f"The results hold no row for H = {hidden}, B = {batch}.")
        single = float(found[1]) * steps / 1000
        parameters = 4 * (4 * hidden * 2 * hidden + 8 * hidden)
        for devices in (8, 64, 1024):
            cells = [hidden, batch, f"{parameters / 2**20:.1f}", f"{single:.2f}", f"{devices:,}"]
            cells += [f"{project(parameters, single, devices, 1.0, 0.0)[0] / 2**20:.1f}"]
            for link in LINKS.values():
                _, ms, efficiency = project(parameters, single, devices, *link)
                cells += [f"{ms:.2f}", f"{efficiency:.0%}"]
            print("| " + " | ".join(map(str, cells)) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--time", action="store_true", help="measure 1 and 2 devices")
    parser.add_argument("--projection", metavar="RESULTS", help="a GPU report of this folder")
    parser.add_argument("--devices", type=int, help="one number of devices, in this process")
    parser.add_argument("--strategy", default="Native", choices=["Native", "Scan"])
    options = parser.parse_args()
    if options.projection:
        with open(options.projection) as file:
            print_projection(file.read())
        return
    if options.devices:
        print(measure(options.devices, options.strategy, timed=options.time))
        return
    for strategy in ("Native", "Scan"):
        for count in COUNTS[:2] if options.time else COUNTS:
            flags = f"--xla_force_host_platform_device_count={count}"
            command = [sys.executable, __file__, "--devices", str(count), "--strategy", strategy]
            done = subprocess.run(
                command + ["--time"] * options.time,
                env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
                capture_output=True,
                text=True,
                check=True,
            )
            print(strategy, count, done.stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
