"""A run of `fit`: its progress, its next epoch, and how it is saved and resumed."""

import dataclasses
import errno
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrnn.training import checkpoints, state
from jaxrnn.training.batches import shapes, signature
from jaxrnn.training.lock import Lock
from jaxrnn.training.metrics import Mark, Metrics, Record
from jaxrnn.training.signals import Signals
from jaxrnn.training.source import Source
from jaxrnn.training.steps import Forward, Score, compiled_step, evaluate


@dataclasses.dataclass(frozen=True)
class Scoring:
    """Loss, metrics and watched score of a run."""

    loss: Score
    metrics: Mapping[str, Score]
    forward: Forward
    watch: str  # a name in the records of the validation
    sign: int  # 1 where a lower value is better, -1 where a higher one is


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

    def open(self, folder: Path | None, resume: bool) -> None:
        """Starts a new run in a folder, or resumes the run in it."""
        if folder is None:
            return
        self.folder = folder / "checkpoints"
        path = folder / "metrics.jsonl"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _failure(f"The folder `{folder}` cannot be made", error) from error
        _find(folder, resume)  # refuse before the lock's file is created
        self._lock(folder)
        found = _find(folder, resume)
        checkpoints.tidy(self.folder)
        if not found:
            self.save()  # fail now, not after an epoch, if the folder cannot be written to
        try:
            if found:
                self._load(found[-1], path)
            else:
                self.metrics = Metrics(path)
        except OSError as error:
            raise _failure(f"The run in `{folder}` cannot be opened", error) from error

    def close(self) -> None:
        self.metrics.close()
        if self.lock is not None:
            self.lock.close()

    def stale(self, patience: int | None) -> bool:
        """True after more than `patience` epochs without a better score."""
        if patience is None or self.best is None:
            return False
        return self.epoch - self.best[0] > patience

    def train_epoch(self, save_every: int | None, validation: Iterable[Any] | None) -> None:
        """Trains on the rest of an epoch and validates; ends early after a signal."""
        for batch in self.source.left(self.epoch):
            # Save before a step, not after: the end of an epoch is saved with its validation.
            due = save_every and self.position and self.step % save_every == 0
            if (due or self.signals.caught) and self.saved != (self.epoch, self.step):
                self.save()
            if self.signals.caught:
                return
            self._train_step(batch)
            self.last = self.epoch, self.position, batch
            self.position += 1
        if not self.position:
            raise ValueError(
                f"`fit(data)` gave no batches for epoch {self.epoch}. A generator gives each batch "
                "once: pass a function of the epoch, or `epoch_steps` for one that does not end."
            )
        if validation is not None:
            self._validate(validation)
        self.epoch, self.position = self.epoch + 1, 0

    def save(self) -> None:
        """Requires finite parameters, and writes a checkpoint if there is a folder."""
        for name, array in state.host(nnx.state(self.model, nnx.Param)).items():
            if jnp.issubdtype(array.dtype, jnp.inexact) and not np.isfinite(array).all():
                self._stop(f"`{name}` was not finite after step {self.step}")
        self.saved = self.epoch, self.step
        if self.folder is None:
            return
        notes = {name: getattr(self, name) for name in ("epoch", "position", "step", "best")}
        notes |= {"watch": self.scoring.watch, "sign": self.scoring.sign}
        notes["seconds"] = monotonic() - self.started
        notes["last"] = self.last and (*self.last[:2], state.digest(self.last[2]))
        arrays = state.host(self._state())
        try:
            self.metrics.sync()
        except OSError as error:
            raise _failure(f"The metrics of step {self.step} were not written", error) from error
        notes["metrics"] = self.metrics.mark()
        with self.signals.uninterrupted():
            checkpoints.save(self.folder, self.step, arrays, notes, self.keep)
        # Continue from the saved arrays, as a resumed run does: they lack JAX's weak types.
        self._restore(state.device(self._state(), arrays))

    def _lock(self, folder: Path) -> None:
        try:
            self.lock = Lock(folder)
        except BlockingIOError as error:
            failure = OSError(
                f"Another run of `fit` is training in `{folder}`: wait for it to end, or pass "
                "another `folder`. Nothing was changed."
            )
            failure.errno = error.errno
            raise failure from None
        except OSError as error:
            raise _failure(f"The run in `{folder}` cannot be opened", error) from error

    def _train_step(self, batch: Any) -> None:
        shape = signature(batch)
        if shape not in self.shapes and len(self.shapes) == self.most_compilations:
            raise ValueError(
                f"`fit(most_compilations={self.most_compilations})` met one more shape of batches, "
                f"{shapes(batch)}. Pad to fewer lengths, with `buckets`."
            )
        self.shapes.add(shape)
        scoring = self.scoring
        metrics = tuple(scoring.metrics.items())
        compiled, traces = compiled_step(scoring.loss, metrics, scoring.forward)
        before = len(traces)
        scores = jax.device_get(compiled(self.model, self.optimizer, batch))
        self.compilations += len(traces) - before
        loss = float(scores["loss"])
        if not math.isfinite(loss):
            self._stop(f"the loss was {loss} at step {self.step + 1}, in epoch {self.epoch}")
        self.step += 1
        order = ("loss", *scoring.metrics, "learning_rate")  # a compiled function sorts by name
        self._write({name: scores[name] for name in order if name in scores})

    def _validate(self, batches: Iterable[Any]) -> None:
        """Evaluates at the end of an epoch, and keeps the weights if they are the best so far."""
        scoring = self.scoring
        scores = evaluate(
            self.model,
            batches,
            loss=scoring.loss,
            metrics=scoring.metrics,
            forward=scoring.forward,
        )
        if not math.isfinite(scores["loss"]):
            self._stop(f"the validation loss was {scores['loss']} after step {self.step}")
        named = {f"validation_{name}": scores[name] for name in ("loss", *scoring.metrics)}
        self._write(named)
        score = scoring.sign * named[scoring.watch]
        if math.isfinite(score) and (self.best is None or score < self.best[1]):
            self.best = self.epoch, score
            self.best_weights = state.weights(self.model)

    def _write(self, scores: Mapping[str, Any]) -> None:
        values = {name: float(value) for name, value in scores.items()}
        record = {
            "epoch": self.epoch,
            "step": self.step,
            # JSON cannot represent non-finite numbers.
            **{name: value if math.isfinite(value) else None for name, value in values.items()},
            "seconds": round(monotonic() - self.started, 3),
        }
        try:
            self.metrics.write(record)
        except OSError as error:
            raise _failure(f"The metrics of step {self.step} were not written", error) from error
        if self.log is not None:
            self.log(record)

    def _stop(self, reason: str) -> NoReturn:
        saved = checkpoints.steps(self.folder) if self.folder else []
        rest = f" The checkpoint of step {saved[-1]} is in `{self.folder}`." if saved else ""
        raise FloatingPointError(
            f"Training diverged: {reason}. Try a lower learning rate or clipped gradients.{rest}"
        )

    def _state(self) -> dict[str, Any]:
        now = {"model": nnx.state(self.model), "optimizer": nnx.state(self.optimizer)}
        return now if self.best is None else {**now, "best": self.best_weights}

    def _load(self, step: int, metrics: Path) -> None:
        """Reads and checks everything before changing anything."""
        assert self.folder is not None
        path = self.folder / str(step)
        wanted = {"model": nnx.state(self.model), "optimizer": nnx.state(self.optimizer)}
        watched = self.scoring.watch, self.scoring.sign

        def accept(notes: dict[str, Any], found: dict[str, list[Any]]) -> None:
            if notes["best"] is not None:
                wanted["best"] = state.weights(self.model)
            state.check_layout(path, checkpoints.layout(state.host(wanted)), found)
            if notes["best"] is not None and (notes["watch"], notes["sign"]) != watched:
                raise ValueError(
                    f"The checkpoint `{path}` is of "
                    f"`fit({_watching(notes['watch'], notes['sign'])})`, got "
                    f"`{_watching(*watched)}`. Nothing was loaded."
                )
            if notes["last"] is not None:
                self._check_data(path, *notes["last"])

        arrays, notes = checkpoints.load(self.folder, step, accept)
        loaded = state.device(wanted, arrays)
        self.metrics = Metrics(metrics, Mark(*notes["metrics"]))
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


def _find(folder: Path, resume: bool) -> list[int]:
    """Checkpoints of the run in a folder; empty if there is no run."""
    found = checkpoints.steps(folder / "checkpoints")
    if found and not resume:
        raise ValueError(
            f"`{folder}` holds a run of {found[-1]} steps. Pass `resume=True` to continue it, or "
            "another `folder`."
        )
    if not found and (folder / "metrics.jsonl").exists():
        raise ValueError(
            f"`{folder}` holds a `metrics.jsonl` but no checkpoint to resume from. Pass another "
            "`folder`."
        )
    return found


def _watching(watch: str, sign: int) -> str:
    return f'watch="{watch}", better="{"lower" if sign > 0 else "higher"}"'


def _failure(what: str, error: OSError) -> OSError:
    failure = OSError(f"{what}: {error.strerror}. What was there before is untouched.")
    failure.errno = error.errno or errno.EIO
    return failure
