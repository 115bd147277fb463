"""`fit`: training that can be killed at any moment and resumed bit for bit."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flax import nnx
from jax.sharding import NamedSharding

from jaxrnn.training import placement, scoring, signals, steps
from jaxrnn.training.epoch import train_epoch
from jaxrnn.training.losses import cross_entropy
from jaxrnn.training.metrics import Record
from jaxrnn.training.run import Run
from jaxrnn.training.scoring import Forward, Score
from jaxrnn.training.source import Data, Source


@dataclasses.dataclass(frozen=True)
class History:
    """Records of a run from its first step, including those before a resumption.

    Attributes:
        records: as in the metrics file. Each step has one record with `epoch`, `step`, `loss`, the
            metrics, `learning_rate` if the optimizer's state holds it, and `seconds`. Each epoch
            with a validation has one with `epoch`, `step`, `validation_loss`, the metrics as
            `validation_...`, and `seconds`. Epochs count from 0; `step` counts completed steps;
            `seconds` counts the training time since the run began, without the time lost between a
            checkpoint and a resumption. A non-finite metric is None.
        best: epoch with the best validation score, or None.
        compilations: number of compilations of the training step in this process.

    Example:
        >>> from jaxrnn import training
        >>> training.History([{"epoch": 0, "step": 1, "loss": 0.5}], None, 1)["loss"]
        array([0.5])
    """

    records: list[Record]
    best: int | None
    compilations: int

    def __getitem__(self, name: str) -> np.ndarray:
        """Values of one name in all records that have it, in order."""
        values = [record[name] for record in self.records if name in record]
        return np.array([np.nan if value is None else value for value in values])


def fit(
    model: nnx.Module,
    optimizer: nnx.Optimizer,
    data: Data,
    *,
    epochs: int,
    loss: Score = cross_entropy,
    metrics: Mapping[str, Score] | None = None,
    forward: Forward = steps.forward,
    validation: Iterable[Any] | None = None,
    watch: str = "validation_loss",
    better: Literal["lower", "higher"] | None = None,
    patience: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    until: Callable[[list[Record]], bool] | None = None,
    epoch_steps: int | None = None,
    save_every: int | None = None,
    save_epochs: int = 1,
    keep: int = 3,
    most_compilations: int = 32,
    log: Callable[[Record], None] | None = None,
    sharding: NamedSharding | None = None,
) -> History:
    """Train a model in place; with a `folder`, the run can be killed and resumed exactly.

    The folder holds `metrics.jsonl`, with one line for each record of the `History`, and
    `checkpoints`, each with the whole state: the parameters, the optimizer's state, the dropout
    counters, the position in the data and the best weights so far. A run that is killed at any
    moment and resumed on the same machine ends with the losses and parameters of an uninterrupted
    run, bit for bit. (On a GPU this needs XLA_FLAGS=--xla_gpu_deterministic_ops=true.)

    With a folder, Ctrl-C and SIGTERM let the current step finish and write a checkpoint. Then
    Ctrl-C raises KeyboardInterrupt, and SIGTERM ends the process. A second Ctrl-C stops at once.
    Only one run at a time may write to a folder.

    With `sharding`, each device computes the gradient of its rows, and the gradients are summed
    over the devices. Arrays of the model and the optimizer that are on the mesh already stay as
    they are, sharded or not; all others are copied to each device. In several processes `data` must
    give the same whole batches in each, of which every process takes its own rows; for data of
    which each process reads its own rows, see `join_rows`. A batch whose rows the devices cannot
    divide evenly, such as the last one of an epoch, is computed whole on each device. The folder
    must be one that all processes see. The first process writes the metrics and calls `log`. A
    signal to one process ends all of them at the same step. A run resumes on the same number of
    devices bit for bit, and on another number up to rounding.

    Args:
        model: the model to train. It is left in training mode.
        optimizer: an optimizer made for this model's `nnx.Param`, or for the variables that its
            `wrt` selects. Optimizers that need more than the gradient (`optax.lbfgs`,
            `optax.contrib.reduce_on_plateau`) are supported, see `train_step`.
        data: a function that maps an epoch, counted from 0, to its batches. It must return the same
            batches each time that it is called with the same epoch, so its order and its noise must
            depend on the epoch alone. Sequences of few different lengths compile few steps: see
            `buckets` in `jaxrnn.data.batches`. Alternatively an iterable (a list, a loader, a
            generator), consumed once in each epoch. Resuming a run makes the batches of the current
            epoch again up to the checkpoint. With an iterable it makes all batches of all epochs up
            to the checkpoint, and the iterable must begin with the same batches in a new process.
        epochs: total number of epochs, including those before a resumption.
        loss: scalar function of the outputs and the batch; see `jaxrnn.training.losses`. Reuse one
            function in several runs, because each new function is compiled anew.
        metrics: scalar functions of the outputs and the batch, by their names in the records.
        forward: function of the model and a batch that returns the outputs, if
            `jaxrnn.training.forward` does not apply.
        validation: batches to `evaluate` after each epoch.
        watch: name of the validation score that determines the best epoch: "validation_loss", or
            "validation_" and the name of a metric.
        better: "lower" or "higher": the direction of a better score. None is allowed for
            "validation_loss" (lower) and "validation_accuracy" (higher).
        patience: number of epochs without a better score after which the run stops. With a
            `patience` the run ends with the best weights, stopped or not. None trains all epochs
            and ends with the last weights.
        folder: folder of the run, or None to save nothing.
        resume: continue from the newest checkpoint in the folder, if there is one.
        until: called with all records before each epoch; the run ends if it returns True.
        epoch_steps: largest number of batches in an epoch, for a generator that does not end.
        save_every: number of steps between checkpoints, in addition to those at the ends of epochs.
        save_epochs: number of epochs between checkpoints. The end of the run always has one.
        keep: number of checkpoints to keep; older ones are removed.
        most_compilations: largest number of different batch shapes.
        log: called with each new record, to show progress; in several processes, in the first one.
        sharding: placement of each batch's rows, `NamedSharding(mesh, PartitionSpec("data"))`, for
            several devices, in one process or in all that `jax.distributed` has started. None
            leaves everything where it is.

    Returns:
        The history of the whole run.

    Raises:
        ValueError: for arguments that contradict each other; for a folder that holds another run;
            for a checkpoint that is damaged, or of another model, optimizer or data. The model and
            the folder are unchanged.
        FloatingPointError: the loss or a parameter was non-finite. Earlier checkpoints are kept.
        OSError: a checkpoint or the metrics could not be written, or another run uses the folder.
            Existing files are unchanged.
        KeyboardInterrupt: after Ctrl-C, with the step from which the run can resume.

    Example:
        >>> import optax
        >>> from flax import nnx
        >>> from jaxrnn import data, models, training
        >>> x, y = data.create_synthetic_sequences(vocab_size=8, n_samples=64, max_len=8)
        >>> model = models.SequenceClassifier(8, 4, 16, 2, rngs=nnx.Rngs(0))
        >>> optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
        >>> history = training.fit(
        ...     model,
        ...     optimizer,
        ...     lambda epoch: data.batches(x, y, 16, seed=(0, epoch), buckets=[6, 8]),
        ...     epochs=5,
        ... )
        >>> bool(history["loss"][-5:].mean() < history["loss"][:5].mean()), history.compilations
        (True, 4)
    """
    for name, value, least in (
        ("epochs", epochs, 0),
        ("patience", patience, 1),
        ("epoch_steps", epoch_steps, 1),
        ("save_every", save_every, 1),
        ("save_epochs", save_epochs, 1),
        ("keep", keep, 1),
        ("most_compilations", most_compilations, 1),
    ):
        if value is not None and value < least:
            raise ValueError(f"`fit({name})` must be {least} or more, got {value}.")
    if patience is not None and validation is None:
        raise ValueError("`fit(patience)` needs a `validation` to watch.")
    if resume and folder is None:
        raise ValueError("`fit(resume=True)` needs the `folder` to resume from.")
    if sharding is not None:
        placement.check("fit(sharding)", sharding)
    chosen = scoring.choose(loss, dict(scoring.named(metrics)), forward, watch, better)
    if isinstance(validation, Iterator):  # it would be empty after the first epoch
        validation = list(validation)
    where = None if folder is None else Path(folder)
    with signals.Signals(active=folder is not None) as caught:
        source = Source(data, epoch_steps)
        run = Run(model, optimizer, source, chosen, caught, most_compilations, keep, log, sharding)
        try:
            run.place(where)
            run.open(where, resume)
            model.train()
            while run.epoch < epochs and not run.stale(patience) and not run.ending:
                if until is not None and run.processes.largest(bool(until(run.metrics.records))):
                    break
                train_epoch(run, save_every, validation)
                ended = not run.position and not run.ending
                if ended and run.epoch % save_epochs == 0:
                    run.save()
            run.agree()
            if run.saved != (run.epoch, run.step):
                run.save()
        finally:
            run.close()
    signals.end(
        run.ending,
        f"Stopped after step {run.step}. The checkpoint is in `{run.folder}`: "
        "`fit(..., resume=True)` goes on from there.",
    )
    if patience is not None and run.best is not None:
        nnx.update(model, run.best_weights)
    best = None if run.best is None else run.best[0]
    return History(run.metrics.records, best, run.compilations)
