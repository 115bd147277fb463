"""A run of `fit`: where it stands, its next epoch, and how it is saved and resumed."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from jaxrnn.data import Batch
from jaxrnn.training import checkpoints, state
from jaxrnn.training.metrics import Mark, Metrics, Record
from jaxrnn.training.steps import Scores, evaluate, train_on

Loss: TypeAlias = Callable[[Array, Array], Array]


@dataclasses.dataclass
class Run:
    """A run, and where it stands: before the batch `position` of `epoch`, after `step` in all."""

    model: nnx.Module
    optimizer: nnx.Optimizer
    data: Callable[[int], Sequence[Batch]]
    loss: Loss
    watch: str
    most_compilations: int
    keep: int
    log: Callable[[Record], None] | None

    folder: Path | None = None
    metrics: Metrics = dataclasses.field(default_factory=Metrics)
    epoch: int = 0
    position: int = 0
    step: int = 0
    last: tuple[int, int, Batch] | None = None  # the batch trained on last: epoch, number, itself
    best: tuple[int, float] | None = None  # an epoch and its score, the lower the better
    best_weights: Any = None
    compilations: int = 0
    shapes: set[Any] = dataclasses.field(default_factory=set)
    saved: tuple[int, int] = (0, 0)  # the epoch and the step of the last checkpoint

    def open(self, folder: Path | None, resume: bool) -> None:
        """Starts in a folder without a run, or where the run in it stood."""
        if folder is None:
            return
        self.folder = folder / "checkpoints"
        path = folder / "metrics.jsonl"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _failure(f"The folder `{folder}` cannot be made", error) from error
        found = checkpoints.steps(self.folder)
        if found and not resume:
            raise ValueError(
                f"`{folder}` holds a run of {found[-1]} steps. Pass `resume=True` to go on with "
                "it, or another `folder`."
            )
        if not found and path.exists():
            raise ValueError(
                f"`{folder}` holds a `metrics.jsonl` but no checkpoint, so no run that could be "
                "resumed. Pass another `folder`."
            )
        checkpoints.tidy(self.folder)
        if not found:
            self.save()  # now, and not after an epoch, is the time to find that it cannot be done
        try:
            if found:
                self._load(found[-1], path)
            else:
                self.metrics = Metrics(path)
        except OSError as error:
            raise _failure(f"The run in `{folder}` cannot be opened", error) from error

    def stale(self, patience: int | None) -> bool:
        """Whether so many epochs went by without a better one."""
        if patience is None or self.best is None:
            return False
        return self.epoch - self.best[0] > patience

    def train_epoch(self, save_every: int | None, validation: Sequence[Batch] | None) -> None:
        """What is left of an epoch, and its validation."""
        batches = list(self.data(self.epoch))
        if not batches:
            raise ValueError(f"`fit(data)` gave no batches for epoch {self.epoch}.")
        for number in range(self.position, len(batches)):
            self._train_step(batches[number])
            self.last = self.epoch, number, batches[number]
            self.position = number + 1
            if save_every and self.step % save_every == 0 and self.position < len(batches):
                self.save()
        if validation is not None:
            self._validate(validation)
        self.epoch, self.position = self.epoch + 1, 0

    def save(self) -> None:
        """Checks the parameters, and writes a checkpoint if there is a folder."""
        for name, array in state.host(nnx.state(self.model, nnx.Param)).items():
            if jnp.issubdtype(array.dtype, jnp.inexact) and not np.isfinite(array).all():
                self._stop(f"`{name}` was not finite after step {self.step}")
        self.saved = self.epoch, self.step
        if self.folder is None:
            return
        notes = {
            name: getattr(self, name) for name in ("epoch", "position", "step", "best", "watch")
        }
        notes["last"] = self.last and (*self.last[:2], state.digest(self.last[2]))
        arrays = state.host(self._state())
        try:
            self.metrics.sync()
        except OSError as error:
            raise _failure(f"The metrics of step {self.step} were not written", error) from error
        notes["metrics"] = self.metrics.mark()
        checkpoints.save(self.folder, self.step, arrays, notes, self.keep)
        # A resumed run has what was saved, which says nothing of JAX's weak types.
        self._restore(state.device(self._state(), arrays))

    def _train_step(self, batch: Batch) -> None:
        shape = jax.tree.map(lambda array: (np.shape(array), str(array.dtype)), batch)
        if shape not in self.shapes and len(self.shapes) == self.most_compilations:
            raise ValueError(
                f"`fit(most_compilations={self.most_compilations})` met one more shape of batches, "
                f"inputs of {np.shape(batch.inputs)}. Pad to fewer lengths, with `buckets`."
            )
        self.shapes.add(shape)
        compiled, traces = _compiled(self.loss)
        before = len(traces)
        scores = compiled(self.model, self.optimizer, batch)
        self.compilations += len(traces) - before
        loss, accuracy = map(float, scores)
        if not math.isfinite(loss):
            self._stop(f"the loss was {loss} at step {self.step + 1}, in epoch {self.epoch}")
        self.step += 1
        self._write(loss=loss, accuracy=accuracy)

    def _validate(self, batches: Sequence[Batch]) -> None:
        """Scores the end of an epoch, and keeps the weights if they are the best so far."""
        loss, accuracy = map(float, evaluate(self.model, batches))
        if not math.isfinite(loss):
            self._stop(f"the validation loss was {loss} after step {self.step}")
        self._write(validation_loss=loss, validation_accuracy=accuracy)
        score = loss if self.watch == "loss" else -accuracy
        if self.best is None or score < self.best[1]:
            self.best = self.epoch, score
            self.best_weights = state.weights(self.model)

    def _write(self, **values: float) -> None:
        record = {"epoch": self.epoch, "step": self.step, **values}
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
        """Everything is read and checked before anything is changed."""
        assert self.folder is not None
        path = self.folder / str(step)
        wanted = {"model": nnx.state(self.model), "optimizer": nnx.state(self.optimizer)}

        def accept(notes: dict[str, Any], found: dict[str, list[Any]]) -> None:
            if notes["best"] is not None:
                wanted["best"] = state.weights(self.model)
            state.check_layout(path, checkpoints.layout(state.host(wanted)), found)
            if notes["best"] is not None and notes["watch"] != self.watch:
                raise ValueError(
                    f'The checkpoint `{path}` is of `fit(watch="{notes["watch"]}")`, '
                    f'got "{self.watch}". Nothing was loaded.'
                )
            if notes["last"] is not None:
                self._check_data(path, *notes["last"])

        arrays, notes = checkpoints.load(self.folder, step, accept)
        loaded = state.device(wanted, arrays)
        self.metrics = Metrics(metrics, Mark(*notes["metrics"]))
        self.epoch, self.position, self.step = notes["epoch"], notes["position"], notes["step"]
        self.best = notes["best"] and tuple(notes["best"])
        self.saved = self.epoch, self.step
        self._restore(loaded)

    def _check_data(self, path: Path, epoch: int, number: int, digest: str) -> None:
        batches = list(self.data(epoch))
        if number >= len(batches) or state.digest(batches[number]) != digest:
            raise ValueError(
                f"The checkpoint `{path}` was trained on other data: batch {number} of epoch "
                f"{epoch} is not the same. Pass the same data, seed, batch size and buckets, or "
                "another `folder`. Nothing was loaded."
            )

    def _restore(self, saved: Mapping[str, Any]) -> None:
        nnx.update(self.model, saved["model"])
        nnx.update(self.optimizer, saved["optimizer"])
        self.best_weights = saved.get("best")


@functools.lru_cache(maxsize=16)
def _compiled(loss: Loss) -> tuple[Callable[..., Scores], list[None]]:
    """The training step, and a list that grows whenever it is compiled."""
    traces: list[None] = []

    @nnx.jit
    def compiled(model: nnx.Module, optimizer: nnx.Optimizer, batch: Batch) -> Scores:
        traces.append(None)
        return train_on(model, optimizer, batch, loss)

    return compiled, traces


def _failure(what: str, error: OSError) -> OSError:
    failure = OSError(f"{what}: {error.strerror}. What was there before is untouched.")
    failure.errno = error.errno
    return failure
