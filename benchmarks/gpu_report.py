"""Table, JSON and figure of benchmarks/gpu.py, from its lines of results."""

import itertools
import json
import math
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

SUBJECT = "native"
PEERS = ("cudnn graph", "cudnn", "scan", "flax", "jax.experimental.rnn")
NAMES = {"cudnn graph": "cuDNN as a CUDA graph", "cudnn": "cuDNN called eagerly"}
KEYS = ("cell", "dtype", "batch", "hidden", "lengths", "mode", "layers", "directions", "steps")
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
# As measured: operations a second of each unit, bytes a second from an H100's memory and L2.
FLOPS = {"bfloat16": 790e12, "float32": 390e12, "highest": 130e12}
MEMORY, L2 = 3.0e12, 5.5e12
LATENCY = 0.4e-6  # of an exchange within 8 CTAs, and again of a pass through a step


def floor(row: dict[str, Any]) -> float:
    """Least time of an inference step on this machine, in microseconds."""
    batch, hidden, gates = row["batch"], row["hidden"], GATES[row["cell"]]
    size = 2 if row["dtype"] == "bfloat16" else 4
    products = 4 * batch * gates * hidden * hidden / FLOPS[row["dtype"]]  # of x and of h
    streamed = batch * (gates + 2) * hidden * size / MEMORY
    exchanged = batch * hidden * size * max(1, hidden // 8 // 4) / L2
    return (max(products, streamed, exchanged) + 2 * LATENCY) * 1e6


def collect(lines: Iterable[str]) -> dict[tuple, dict[str, Any]]:
    """Results by point, then by peer."""
    points: dict[tuple, dict[str, Any]] = {}
    for line in lines:
        row = json.loads(line)
        point = points.setdefault(tuple(row[k] for k in KEYS), {})
        point[row["peer"]] = row
    return points


def geometric_mean(values: Iterable[float]) -> float | None:
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs)) if logs else None


def ratios(points: dict[tuple, dict[str, Any]], peer: str, **wanted: Any) -> list[float]:
    """Time of the peer divided by ours, at every point that has both."""
    found = []
    for key, rows in points.items():
        named = dict(zip(KEYS, key, strict=True))
        if all(named[k] in v for k, v in wanted.items()) and SUBJECT in rows and peer in rows:
            ours, theirs = rows[SUBJECT].get("us"), rows[peer].get("us")
            if ours and theirs:
                found.append(theirs / ours)
    return found


def machine() -> dict[str, str]:
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    gpu = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    versions = {"gpu": gpu, "python": platform.python_version()}
    for name in ("jax", "jaxlib", "flax", "torch"):
        try:
            versions[name] = __import__(name).__version__
        except ImportError:
            versions[name] = "absent"
    return versions


def write(folder: Path) -> None:
    points = collect((folder / "gpu.jsonl").read_text().splitlines())
    about = machine()
    rows = [row for peers in points.values() for row in peers.values()]
    (folder / "gpu.json").write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")
    text = [f"{name}: {value}" for name, value in about.items()]
    shooting = folder / "gpu-shooting.jsonl"
    lines = shooting.read_text().splitlines() if shooting.exists() else []
    text += ["", *summary(points), "", *table(points), ""]
    text += long_sequences(points, [json.loads(line) for line in lines])
    (folder / "gpu.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))
    try:
        draw(points, folder / "gpu.png")
    except ImportError:
        print("no figure: matplotlib is not installed")


SIZES = {
    "B <= 64, H >= 128": {"batch": (1, 16, 64), "hidden": (128, 256, 512, 768, 1024)},
    "B = 256, H >= 128": {"batch": (256,), "hidden": (128, 256, 512, 768, 1024)},
    "H = 64": {"hidden": (64,)},
}
USUAL = {"layers": (1,), "steps": (512,)}


def summary(points: dict[tuple, dict[str, Any]]) -> list[str]:
    lines = [
        "Time of the peer over that of `Native`, one layer, T = 512.",
        "",
        "| over | mode | lengths | sizes | points | geometric mean | least |",
        "|---|---|---|---|---|---|---|",
    ]
    kinds = itertools.product(PEERS, ("inference", "training"), ("dense", "ragged"), SIZES)
    for peer, mode, lengths, sizes in kinds:
        named = USUAL | SIZES[sizes] | {"mode": (mode,), "lengths": (lengths,)}
        found = ratios(points, peer, **named)
        if mean := geometric_mean(found):
            numbers = f"{len(found)} | {mean:.2f} | {min(found):.2f}"
            lines.append(f"| {peer} | {mode} | {lengths} | {sizes} | {numbers} |")
    return [*lines, "", *slower(points)]


def slower(points: dict[tuple, dict[str, Any]]) -> list[str]:
    """The points with H >= 128 at which cuDNN as a CUDA graph is faster."""
    lines = []
    for key, rows in sorted(points.items(), key=str):
        named = dict(zip(KEYS, key, strict=True))
        ours, theirs = (rows.get(peer, {}).get("us") for peer in (SUBJECT, "cudnn graph"))
        if ours and theirs and theirs < ours and named["hidden"] >= 128:
            what = " ".join(map(str, key))
            lines.append(f"- {what}: {ours:.2f} against {theirs:.2f} microseconds a step")
    return [f"cuDNN as a CUDA graph is faster at {len(lines)} points with H >= 128.", "", *lines]


def table(points: dict[tuple, dict[str, Any]]) -> list[str]:
    names = [SUBJECT, *PEERS]
    lines = [
        "Microseconds per step.",
        "",
        "| " + " | ".join([*KEYS, *names, "share of the floor", "run"]) + " |",
        "|---" * (len(KEYS) + len(names) + 2) + "|",
    ]
    for key, rows in sorted(points.items(), key=lambda item: tuple(map(str, item[0]))):
        if SUBJECT not in rows:
            continue
        times = [rows.get(name, {}).get("us") for name in names]
        named = dict(zip(KEYS, key, strict=True))
        share = "-"
        if times[0] and named["mode"] == "inference" and named["layers"] == 1:
            share = f"{floor(named) / times[0]:.2f}"
        cells = [*map(str, key), *("-" if t is None else f"{t:.2f}" for t in times), share]
        runs = {rows[name]["run"] for name in names if "us" in rows.get(name, {})}
        lines.append("| " + " | ".join([*cells, ", ".join(sorted(runs))]) + " |")
    return lines


def long_sequences(points: dict[tuple, dict[str, Any]], rows: list[dict[str, Any]]) -> list[str]:
    """The lines of gpu_shooting.py, and cuDNN's longest sequences."""
    columns = "ms", "lower_s", "compile_s", "sweeps", "residual", "fell_back"
    errors = "outputs", "outputs_sequentially", "gradients", "gradients_sequentially"
    rows = sorted(rows, key=lambda r: (r["cell"], r["steps"], r["hidden"]))
    lines = ["One row, by `Shooting` over `Native`, float32 at the highest precision.", ""]
    for kinds, names in ((("inference", "training", "adjoint"), columns), (("error",), errors)):
        head = ["cell", "H", "T", "mode", *names]
        lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for row in rows:
            if row.get("mode") in kinds:
                numbers = [f"{row[n]:.3g}" if n in row else "-" for n in names]
                about = [row["cell"], str(row["hidden"]), str(row["steps"]), row["mode"]]
                lines.append(f"| {' | '.join(about + numbers)} |")
        lines.append("")
    for row in rows:
        if "error" in row:
            what = f"{row['cell']}, H = {row['hidden']}, T = {row['steps']}"
            lines.append(f"- {what}: {row['error'][:90]}")
    for key, peers in points.items():
        named, row = dict(zip(KEYS, key, strict=True)), peers.get("cudnn", {})
        if named["steps"] > 512 and row:
            what = f"H = {named['hidden']}, T = {named['steps']}, {named['mode']}"
            time = f"{row['us'] * named['steps'] / 1e3:.1f} ms" if "us" in row else row["error"]
            lines.append(f"- cuDNN, LSTM, {what}: {time}")
    return lines


def draw(points: dict[tuple, dict[str, Any]], path: Path) -> None:
    """Speed-up over cuDNN by hidden size, with a line for each batch size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    dense = USUAL | {"lengths": ("dense",)}
    peers = [peer for peer in ("cudnn graph", "cudnn") if ratios(points, peer, **dense)]
    if not peers:
        return
    size = {"figsize": (11, 4 * len(peers)), "squeeze": False, "layout": "constrained"}
    figure, axes = plt.subplots(len(peers), 2, sharex=True, **size)
    hiddens = 64, 128, 256, 512, 768, 1024
    for row, peer in zip(axes, peers, strict=True):
        for axis, mode in zip(row, ("inference", "training"), strict=True):
            for batch in (1, 16, 64, 256):
                known = []
                for hidden in hiddens:
                    named = dense | {"mode": (mode,), "batch": (batch,), "hidden": (hidden,)}
                    if mean := geometric_mean(ratios(points, peer, **named)):
                        known.append((hidden, mean))
                if known:
                    axis.plot(*np.array(known).T, marker="o", label=f"B = {batch}")
            mean = geometric_mean(ratios(points, peer, mode=(mode,), **dense))
            told = "not measured" if mean is None else f"geometric mean {mean:.1f}"
            axis.set_title(f"{mode}, over {NAMES[peer]}: {told}", fontsize=10)
            axis.axhline(1, color="black", linewidth=1)
            axis.set(xscale="log", yscale="log", xlabel="H", ylabel="speed-up, times")
            axis.set_xticks(hiddens, labels=hiddens)
            axis.set_yticks([0.5, 1, 2, 4], labels=["0.5", "1", "2", "4"])
            axis.minorticks_off()
            axis.legend()
    wide = {k: v for k, v in SIZES["B <= 64, H >= 128"].items() if k == "hidden"}
    best = geometric_mean(ratios(points, peers[0], **dense, **wide))
    found = f"From 128 units on, {best:.1f} times as fast as {NAMES[peers[0]]}" if best else ""
    figure.suptitle(found or "jaxrnn's CUDA kernels")
    figure.savefig(path, dpi=110)
