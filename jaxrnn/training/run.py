"""A run of `fit`: its progress, and how it is saved and resumed."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, Sharding

from jaxrnn.sharding import is_divided
from jaxrnn.training import checkpoints, scoring, state
from jaxrnn.training.folder import claim, restate
from jaxrnn.training.lock import Lock
from jaxrnn.training.metrics import Mark, Metrics, Record
from jaxrnn.training.placement import place_modules
from jaxrnn.training.processes import ALONE, Processes
from jaxrnn.training.scoring import Scoring
from jaxrnn.training.signals import Signals
from jaxrnn.training.source import Source

_FAILED = 1 << 16  # larger than the number of any signal


@dataclasses.dataclass
class Run:
    """State of a run: before the batch `position` of `epoch`, after `step` steps in total."""

    model: nnx.Module
    optimizer: nnx.Optimizer
    source: Source
    scoring: Scoring
    signals: Signals
    most_compilations: int
    keep: int
    log: Callable[[Record], None] | None
    sharding: NamedSharding | None

    processes: Processes = ALONE
    ending: int = 0  # the signal, noticed by all processes, that ends the run
    failure: OSError | None = None  # an error of this process that the others do not know yet
    folder: Path | None = None
    lock: Lock | None = None
    metrics: Metrics = dataclasses.field(default_factory=Metrics)
    epoch: int = 0
    position: int = 0
    step: int = 0
    last: tuple[int, int, Any] | None = None  # the last batch trained on: epoch, number, batch
    best: tuple[int, float] | None = None  # epoch and score; lower is better
    best_weights: Any = None
    compilations: int = 0
    shapes: set[Any] = dataclasses.field(default_factory=set)
    saved: tuple[int, int] = (0, 0)  # epoch and step of the last checkpoint
    started: float = dataclasses.field(default_factory=monotonic)  # minus earlier seconds

    def place(self, folder: Path | None) -> None:
        """Places the model and the optimizer on the devices, and finds the processes of the run."""
        place_modules(self.sharding, self.model, self.optimizer)
        arrays = jax.tree.leaves(nnx.state(self.model))
        spread = not all(a.is_fully_addressable for a in arrays if isinstance(a, jax.Array))
        if folder is not None and not spread and jax.process_count() > 1:
            raise ValueError(
                f"`fit(folder=...)` runs in {jax.process_count()} processes, each with a model of "
                "its own. Pass `sharding=` to train one model together, or `folder=None`."
            )
        self.processes = Processes(together=spread)
        if not self.processes.same(self._fingerprint()):
            raise ValueError(
                "`fit` needs the same model in every process: make it from the same seed."
            )

    def open(self, folder: Path | None, resume: bool) -> None:
        """Start a new run in a folder, or resume the run in it."""
        if folder is None:
            return
        self.folder = folder / "checkpoints"
        path = folder / "metrics.jsonl"
        newest = -1
        with self.processes.all_or_none("Opening the run"):
            if self.processes.first:
                self.lock, newest = claim(folder, resume)
        newest = self.processes.largest(newest)
        if newest < 0:
            self.save()  # fail now, not after an epoch, if the folder cannot be written to
        with self.processes.all_or_none("Opening the run"):
            try:
                if newest < 0:
                    self.metrics = Metrics(path if self.processes.first else None)
                else:
                    self._load(newest, path)
            except OSError as error:
                raise restate(f"The run in `{folder}` cannot be opened", error) from error

    def agree(self) -> None:
        """Lets all processes notice a signal or an error of one at the same step."""
        signal = self.signals.caught or 0
        self.ending = self.processes.largest(signal if self.failure is None else _FAILED)
        if self.ending == _FAILED:
            raise self.failure or RuntimeError(
                "The metrics were not written by another process, whose error says why."
            )

    def close(self) -> None:
        self.metrics.close()
        if self.lock is not None:
            self.lock.close()

    def stale(self, patience: int | None) -> bool:
        """True after more than `patience` epochs without a better score."""
        if patience is None or self.best is None:
            return False
        return self.epoch - self.best[0] > patience

    def save(self) -> None:
        """Require finite parameters, and write a checkpoint if there is a folder."""
        for name, array in state.host(nnx.state(self.model, nnx.Param)).items():
            isfinite = jnp.isfinite if is_divided(array) else np.isfinite
            if jnp.issubdtype(array.dtype, jnp.inexact) and not isfinite(array).all():
                self.diverge(f"`{name}` was not finite after step {self.step}")
        self.saved = self.epoch, self.step
        if self.folder is None:
            return
        notes = {name: getattr(self, name) for name in ("epoch", "position", "step", "best")}
        notes |= {"watch": self.scoring.watch, "sign": self.scoring.sign}
        notes |= {"seconds": monotonic() - self.started, "last": None}
        if self.last is not None:
            epoch, number, batch = self.last
            digest = state.digest(batch)
            if not self.processes.same(int(digest[:7], 16)):
                raise ValueError(
                    f"`fit(data)` gave the processes different batches: number {number} of epoch "
                    f"{epoch}. Give each the same whole batches, or join its rows by `join_rows`."
                )
            notes["last"] = epoch, number, digest
        arrays = state.host(self._state())
        with self.processes.all_or_none("Writing the metrics"):
            try:
                self.metrics.sync()
            except OSError as error:
                message = f"The metrics of step {self.step} were not written"
                raise restate(message, error) from error
        notes["metrics"] = self.metrics.mark()
        with self.signals.uninterrupted():
            checkpoints.save(self.folder, self.step, arrays, notes, self.keep, self.processes)
        # Continue from the saved arrays, as a resumed run does: they lack JAX's weak types.
        self._restore(state.device(self._state(), arrays))

    def diverge(self, reason: str) -> NoReturn:
        """End the run with an error that says what was not finite, and what is saved."""
        saved = checkpoints.steps(self.folder) if self.folder else []
        rest = f" The checkpoint of step {saved[-1]} is in `{self.folder}`." if saved else ""
        raise FloatingPointError(
            f"Training diverged: {reason}. Try a lower learning rate or clipped gradients.{rest}"
        )

    def _fingerprint(self) -> int:
        """A number of 28 bits for the model's arrays that each process holds whole."""
        if self.processes.count == 1:
            return 0
        whole = {n: a for n, a in state.host(nnx.state(self.model)).items() if not is_divided(a)}
        return int(state.digest(whole)[:7], 16)

    def _state(self) -> dict[str, Any]:
        now = {"model": nnx.state(self.model), "optimizer": nnx.state(self.optimizer)}
        return now if self.best is None else {**now, "best": self.best_weights}

    def _load(self, step: int, metrics: Path) -> None:
        """Read and check everything before changing anything."""
        assert self.folder is not None
        path = self.folder / str(step)
        wanted = {"model": nnx.state(self.model), "optimizer": nnx.state(self.optimizer)}
        watched = self.scoring.watch, self.scoring.sign

        def accept(notes: dict[str, Any], found: dict[str, list[Any]]) -> dict[str, Sharding]:
            if notes["best"] is not None:
                wanted["best"] = state.weights(self.model)
            state.check_layout(path, checkpoints.layout(state.host(wanted)), found)
            if notes["best"] is not None and (notes["watch"], notes["sign"]) != watched:
                raise ValueError(
                    f"The checkpoint `{path}` is of "
                    f"`fit({scoring.describe(notes['watch'], notes['sign'])})`, got "
                    f"`{scoring.describe(*watched)}`. Nothing was loaded."
                )
            if notes["last"] is not None:
                self._check_data(path, *notes["last"])
            return state.divided(wanted)

        arrays, notes = checkpoints.load(self.folder, step, accept)
        loaded = state.device(wanted, arrays)
        self.metrics = Metrics(metrics, Mark(*notes["metrics"]), write=self.processes.first)
        self.epoch, self.position, self.step = notes["epoch"], notes["position"], notes["step"]
        self.best = notes["best"] and tuple(notes["best"])
        self.started = monotonic() - notes["seconds"]
        self.saved = self.epoch, self.step
        self._restore(loaded)

    def _check_data(self, path: Path, epoch: int, number: int, digest: str) -> None:
        batch = self.source.seek(epoch, number)
        if batch is None or state.digest(batch) != digest:
            raise ValueError(
                f"The checkpoint `{path}` was trained on other data: batch {number} of epoch "
                f"{epoch} is not the same. Pass the same data, seed, batch size and buckets, or "
                "another `folder`. Nothing was loaded."
            )

    def _restore(self, saved: Mapping[str, Any]) -> None:
        nnx.update(self.model, saved["model"])
        nnx.update(self.optimizer, saved["optimizer"])
        self.best_weights = saved.get("best")
