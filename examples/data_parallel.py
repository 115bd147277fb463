"""A speaker classifier trained by several processes at once, and by each alone: the same losses.

    python examples/data_parallel.py                     # two processes on this machine
    python examples/data_parallel.py --processes 4
    srun python examples/data_parallel.py --cluster      # the processes that a cluster has started

Every process first trains a model alone, on its first device, and then all of them train one
together, from the same weights on the same batches: each device computes the gradient of its rows,
and the gradients are summed. In float64 the losses agree to rounding. Processes on this machine
share its cores evenly, so that the times of one and of all compare.
"""

import dataclasses
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from datasets.japanese_vowels import CHANNELS, SPEAKERS, Utterances
from jaxrnn import data, models, training
from support import runs
from support.options import launch, require, require_counts, require_module, require_rate
from support.output import make_folder, new_figure, print_written, save_figure

MEMBER = "DATA_PARALLEL_MEMBER"  # address of the first process, number of processes, own number


@dataclasses.dataclass(frozen=True)
class Options:
    """Trains a speaker classifier in several processes at once, and in each alone."""

    processes: int = 2
    """Processes to start on this machine."""
    cluster: bool = False
    """Join the processes that a cluster has started (Slurm, Kubernetes, Cloud TPU, Open MPI)."""
    epochs: int = 4
    """Passes over the 270 utterances."""
    batch_size: int = 54
    """Utterances in a batch of all processes together; a multiple of the number of devices."""
    hidden_size: int = 128
    """Hidden units of the LSTM, in each direction."""
    learning_rate: float = 3e-3
    """Of Adam."""
    folder: Path | None = None
    """Folder that all processes see, to keep the common run in; a run in it goes on."""
    out: Path = Path("runs/data_parallel")
    """Folder for the figure."""

    def check(self) -> None:
        """Raise ValueError for options that cannot run. Make the folder."""
        require_counts(self, "processes", "epochs", "batch_size", "hidden_size")
        require_rate(self)
        if not self.cluster:
            even = self.batch_size % self.processes == 0
            require(self, even, "batch_size", f"a multiple of {self.processes}")
        require_module("sktime", "The data")
        make_folder(self.out)


@dataclasses.dataclass(frozen=True)
class Training:
    """A finished training: the losses, the time at the end of each step, the test accuracy."""

    losses: np.ndarray
    ends: list[float]
    accuracy: float

    @property
    def milliseconds(self) -> float:
        """Median time of a step, without the first half, which compiles."""
        steps = np.diff(self.ends)
        return 1000 * float(np.median(steps[len(steps) // 2 :])) if len(steps) else float("nan")


def main(options: Options) -> None:
    if MEMBER not in os.environ and not options.cluster:
        start(options.processes)
    else:
        join(options)
        compare(options)


def start(processes: int) -> None:
    """Starts this script in several processes on this machine, and waits for them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, *sys.argv]
    members = [
        subprocess.Popen(command, env={**os.environ, MEMBER: f"{address} {processes} {number}"})
        for number in range(processes)
    ]
    try:
        codes = [member.wait() for member in members]
    except KeyboardInterrupt:  # the terminal sends it to all of them
        codes = [member.wait() for member in members]
    if any(codes):
        sys.exit(f"The processes ended with the exit codes {codes}.")


def join(options: Options) -> None:
    """Joins the other processes, before anything else uses a device."""
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # where there are only CPUs
    if options.cluster:
        jax.distributed.initialize()
        return
    address, processes, number = os.environ[MEMBER].split()
    share_cores(int(processes), int(number))
    jax.distributed.initialize(address, int(processes), int(number), local_device_ids=int(number))


def share_cores(processes: int, number: int) -> None:
    """Keeps this process on its share of the machine's cores, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[number::processes] or cores)


def compare(options: Options) -> None:
    """Trains alone and together; the first process prints the comparison."""
    together = train(options, jax.devices(), options.folder)
    alone = train(options, jax.local_devices()[:1], None)
    if jax.process_index() != 0:
        return
    devices, batch = jax.device_count(), options.batch_size
    print(f"JapaneseVowels, {jax.process_count()} processes, {devices} devices, float64")
    print(f"{len(alone.losses)} steps of {batch} utterances, {batch // devices} on each device\n")
    print("   step    one device    all devices")
    for step in sorted({0, len(alone.losses) // 2, len(alone.losses) - 1}):
        print(f"{step + 1:>7}{alone.losses[step]:>14.10f}{together.losses[step]:>15.10f}")
    apart = np.abs(alone.losses - together.losses).max()
    print(f"\nLargest difference of the losses: {apart:.1e}")
    print(f"Accuracy on the test set: {alone.accuracy:.2%} and {together.accuracy:.2%}")
    one, many = alone.milliseconds, together.milliseconds
    print(f"Time of a step: {one:.1f} ms and {many:.1f} ms, {one / many:.2f} times as fast")
    path = options.out / "data_parallel.png"
    draw(path, alone, together)
    print_written(path)


def train(options: Options, devices: list[jax.Device], folder: Path | None) -> Training:
    """Trains on some devices, from the same weights and on the same batches as on any others."""
    mesh = Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    recordings, tests = Utterances.load("train"), Utterances.load("test")
    longest = max(len(sequence) for sequence in recordings.sequences)
    model = models.SpeakerClassifier(
        CHANNELS, options.hidden_size, SPEAKERS, param_dtype=jnp.float64, rngs=nnx.Rngs(0)
    )
    optimizer = nnx.Optimizer(model, optax.adam(options.learning_rate), wrt=nnx.Param)
    ends: list[float] = []

    def epoch(number: int) -> list[data.Batch]:
        """The same in every process, each of which takes its own rows."""
        return data.batches(
            recordings.sequences,
            recordings.speakers,
            options.batch_size,
            seed=(0, number),
            buckets=[longest],
            dtype=np.float64,
        )

    settings = {"epochs": options.epochs, "sharding": rows}
    settings["log"] = lambda record: ends.append(time.perf_counter())
    if folder is None:
        history = training.fit(model, optimizer, epoch, **settings)
    else:
        history = runs.fit(folder, True, model, optimizer, epoch, **settings)
    scores = training.evaluate(
        model,
        data.batches(tests.sequences, tests.speakers, len(tests), dtype=np.float64),
        metrics={"accuracy": training.accuracy},
        sharding=rows,
    )
    return Training(history["loss"], ends, scores["accuracy"])


def draw(path: Path, alone: Training, together: Training) -> None:
    apart = np.abs(alone.losses - together.losses).max()
    speed = alone.milliseconds / together.milliseconds
    title = (
        f"{jax.device_count()} devices repeat one device's losses to {apart:.0e}, "
        f"at {speed:.2f} times its speed"
    )
    figure, (left, right) = new_figure(2, title)
    steps = np.arange(1, len(alone.losses) + 1)
    left.plot(steps, alone.losses, linewidth=5, alpha=0.4, label="one device")
    left.plot(steps, together.losses, "--", linewidth=1.4, label="all devices")
    left.set(title="Training loss", xlabel="step", ylabel="cross entropy (nats)", ylim=(0, None))
    left.legend(loc="lower left")
    right.bar(["one device", "all devices"], [alone.milliseconds, together.milliseconds])
    right.set(title="Time of a step (median)", ylabel="ms")
    save_figure(figure, path)


if __name__ == "__main__":
    launch(Options, main)
