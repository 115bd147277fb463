"""Peak memory of one call, measured in a separate process (Linux only).

    python benchmarks/footprint.py PEER POINT_AS_JSON

The process makes the peer and its inputs, warms the framework up on a tiny point, compiles a JAX
peer without running it, resets the kernel's peak memory counter, and calls the peer once. It prints
the growth as JSON: the memory that the call allocates, including its results.
"""

import dataclasses
import gc
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from points import Point

MIB = 2**20


def measure(peer: str, point: Point) -> dict[str, Any]:
    """{"mib": ..., "xla_mib": ...} of a peer, or {"absent": reason}; xla_mib is XLA's estimate."""
    arguments = [peer, json.dumps(dataclasses.asdict(point))]
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return {"absent": last[0]}
    return json.loads(done.stdout)


def resident(field: str) -> float:
    """Value in MiB of `VmRSS` (current size) or `VmHWM` (peak since the last reset)."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


def main() -> None:
    import cases
    import peers

    name, text = sys.argv[1:]
    point = Point(**json.loads(text))
    tiny = dataclasses.replace(point, batch=1, steps=2, inputs=2, hidden=2)
    try:
        peers.make(name, cases.make(tiny))()
        peer = peers.make(name, cases.make(point))
        planned = peer.compile().memory_analysis() if isinstance(peer, peers.Jax) else None
    except peers.Absent as error:
        print(json.dumps({"absent": str(error)}))
        return
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    result = peer()
    report = {"mib": resident("VmHWM") - before}
    if planned is not None:
        report["xla_mib"] = (planned.temp_size_in_bytes + planned.output_size_in_bytes) / MIB
    del result
    print(json.dumps(report))


if __name__ == "__main__":
    main()
