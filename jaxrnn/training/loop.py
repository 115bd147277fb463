"""`fit`: training that can be killed at any moment and resumed to the same bits."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from jaxrnn.training import steps
from jaxrnn.training.losses import cross_entropy
from jaxrnn.training.metrics import Record
from jaxrnn.training.run import Run, Scoring
from jaxrnn.training.signals import Signals
from jaxrnn.training.source import Data, Source
from jaxrnn.training.steps import Forward, Score

_BETTER = {"validation_loss": "lower", "validation_accuracy": "higher"}


@dataclasses.dataclass(frozen=True)
class History:
    """Records of a run, from its first step on, also where it was resumed.

    Attributes:
        records: as in the file of metrics: one for each step with `epoch`, `step`, `loss`, the
            metrics, `learning_rate` where the optimizer's state holds it, and `seconds`; one for
            each epoch with a validation, with `epoch`, `step`, `validation_loss`, the metrics as
            `validation_...`, and `seconds`. Epochs count from 0; `step` counts the steps done;
            `seconds` counts the time since the run began, up to each resumption the time that led
            to its checkpoint. A metric that is not finite is None.
        best: the epoch with the best validation, or None.
        compilations: of the training step, in this process.

    Example:
        >>> from jaxrnn import training
        >>> training.History([{"epoch": 0, "step": 1, "loss": 0.5}], None, 1)["loss"]
        array([0.5])
    """

    records: list[Record]
    best: int | None
    compilations: int

    def __getitem__(self, name: str) -> np.ndarray:
        """The values of one name in all records that have it, in order."""
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
) -> History:
    """Trains a model in place, and with a `folder` so that nothing can make it start anew.

    The folder holds `metrics.jsonl`, a line for each record of the `History` as it comes, and
    `checkpoints`, each with the whole state: parameters, the optimizer's state, the counters of
    dropout, the position in the data, the best weights so far. Killed at any moment and resumed on
    the same machine, a run ends with the losses and the parameters of one that was not killed, bit
    for bit. (On a GPU this needs XLA_FLAGS=--xla_gpu_deterministic_ops=true.)

    With a folder, Ctrl-C and SIGTERM let the step end and write a checkpoint. Then Ctrl-C raises
    KeyboardInterrupt, and SIGTERM ends the process. A second Ctrl-C does not wait for the step. One
    run at a time may write to a folder; a second one is refused.

    Args:
        model: to be trained; it is left in training mode.
        optimizer: made for this model's `nnx.Param`, or for what its `wrt` says. One that asks for
            more than the gradient (`optax.lbfgs`, `optax.contrib.reduce_on_plateau`) gets it, see
            `train_step`.
        data: a function that gives the batches of an epoch, counted from 0, and the same ones each
            time that it is asked for the same epoch: its order and its noise are functions of the
            epoch. Sequences of few lengths compile few steps: see `buckets` in
            `jaxrnn.data.batches`. Or an iterable (a list, a loader, a generator), gone through once
            for each epoch. To resume costs the time to make the batches of the epoch at hand up to
            the checkpoint; with an iterable it costs all batches of all epochs up to it, and it
            needs an iterable that begins with the same ones in a new process.
        epochs: to train in all, those before a resumption included.
        loss: of the outputs and the batch, a scalar; see `jaxrnn.training.losses` for some. One
            function serves several runs best, as each new one is compiled anew.
        metrics: of the outputs and the batch too, by the names that they get in the records.
        forward: of the model and a batch, the outputs, where `jaxrnn.training.forward` does not
            serve.
        validation: batches to `evaluate` after each epoch.
        watch: the name, in the records of the validation, of the score that says which epoch is
            the best: "validation_loss" or "validation_" and the name of a metric.
        better: "lower" or "higher", which of two scores is the better one. None serves
            "validation_loss" (lower) and "validation_accuracy" (higher).
        patience: the run stops after this many epochs without a better one, and, stopped or not,
            ends with the best weights. None for all epochs, and the last weights.
        folder: where the run is kept; None for nowhere.
        resume: go on from the newest checkpoint in the folder, if there is one.
        until: asked with all records before each epoch; True ends the run.
        epoch_steps: batches of an epoch at most, for a generator that does not end.
        save_every: steps between checkpoints, besides those at the ends of epochs.
        save_epochs: epochs from one checkpoint to the next; the end of the run has one always.
        keep: checkpoints; older ones are removed.
        most_compilations: how many shapes of batches to accept.
        log: called with each new record, to show progress.

    Returns:
        The history of the whole run.

    Raises:
        ValueError: for arguments that do not fit together; for a folder that holds another run, or
            a checkpoint that is damaged, of another model or optimizer, or of other data. The model
            and the folder are as they were.
        FloatingPointError: the loss or a parameter was not finite. The checkpoints from before
            stay.
        OSError: a checkpoint or the metrics could not be written, or another run trains in the
            folder. What was there is untouched.
        KeyboardInterrupt: after Ctrl-C, with the step at which the run goes on.

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
    if folder is not None and jax.process_count() > 1:
        raise ValueError(
            f"`fit(folder=...)` runs in one process, and {jax.process_count()} are started. Pass "
            "`folder=None`."
        )
    scoring = _scoring(loss, dict(steps.named(metrics)), forward, watch, better)
    if isinstance(validation, Iterator):  # it would be empty after the first epoch
        validation = list(validation)
    with Signals(active=folder is not None) as signals:
        source = Source(data, epoch_steps)
        run = Run(model, optimizer, source, scoring, signals, most_compilations, keep, log)
        try:
            run.open(None if folder is None else Path(folder), resume)
            model.train()
            while run.epoch < epochs and not run.stale(patience) and not signals.caught:
                if until is not None and until(run.metrics.records):
                    break
                run.train_epoch(save_every, validation)
                if run.epoch % save_epochs == 0 and not run.position:
                    run.save()
            if run.saved != (run.epoch, run.step):
                run.save()
        finally:
            run.close()
    signals.end(
        f"Stopped after step {run.step}. The checkpoint is in `{run.folder}`: "
        "`fit(..., resume=True)` goes on from there."
    )
    if patience is not None and run.best is not None:
        nnx.update(model, run.best_weights)
    best = None if run.best is None else run.best[0]
    return History(run.metrics.records, best, run.compilations)


def _scoring(
    loss: Score,
    metrics: dict[str, Score],
    forward: Forward,
    watch: str,
    better: Literal["lower", "higher"] | None,
) -> Scoring:
    names = [f"validation_{name}" for name in ("loss", *metrics)]
    if watch not in names:
        raise ValueError(f"`fit(watch)` must be one of {', '.join(names)}, got `{watch}`.")
    chosen = better or _BETTER.get(watch)
    if chosen is None:
        raise ValueError(
            f'`fit(watch="{watch}")` needs `better="lower"` or `better="higher"`, to know which '
            "epoch is the best."
        )
    return Scoring(loss, metrics, forward, watch, 1 if chosen == "lower" else -1)
