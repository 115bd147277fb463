"""`fit`: training that can be killed at any moment and resumed to the same bits."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from flax import nnx

from jaxrnn.data import Batch
from jaxrnn.training.metrics import Record
from jaxrnn.training.run import Loss, Run
from jaxrnn.training.steps import cross_entropy


@dataclasses.dataclass(frozen=True)
class History:
    """What a run did, from its first step on, also where it was resumed.

    Attributes:
        records: as in the file of metrics: one with `epoch`, `step`, `loss` and `accuracy` for each
            step, one with `epoch`, `step`, `validation_loss` and `validation_accuracy` for each
            epoch, if there was a validation. Epochs count from 0; `step` counts the steps done.
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
        return np.array([record[name] for record in self.records if name in record])


def fit(
    model: nnx.Module,
    optimizer: nnx.Optimizer,
    data: Callable[[int], Sequence[Batch]],
    *,
    epochs: int,
    loss: Loss = cross_entropy,
    validation: Sequence[Batch] | None = None,
    watch: Literal["loss", "accuracy"] = "loss",
    patience: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    until: Callable[[list[Record]], bool] | None = None,
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
    for bit. (On a GPU this needs XLA_FLAGS=--xla_gpu_deterministic_ops=true.) One process at a time
    may write to a folder.

    Args:
        model: to be trained; it is left in training mode.
        optimizer: made for this model's `nnx.Param`.
        data: gives the batches of an epoch, counted from 0, and the same ones each time that it is
            asked for the same epoch: its order and its noise are functions of the epoch.
            Sequences of few lengths compile few steps: see `buckets` in `jaxrnn.data.batches`.
        epochs: to train in all, those before a resumption included.
        loss: of the logits and the labels of a batch. One function serves several runs best, as
            each new one is compiled anew.
        validation: what to `evaluate` after each epoch.
        watch: which of its scores tells what is best, the lowest loss or the highest accuracy.
        patience: the run stops after this many epochs without a better one, and, stopped or not,
            ends with the best weights. None for all epochs, and the last weights.
        folder: where the run is kept; None for nowhere.
        resume: go on from the newest checkpoint in the folder, if there is one.
        until: asked with all records before each epoch; True ends the run.
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
        OSError: a checkpoint or the metrics could not be written. What was there is untouched.

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
    if watch not in ("loss", "accuracy"):
        raise ValueError(f'`fit(watch)` must be "loss" or "accuracy", got "{watch}".')
    run = Run(model, optimizer, data, loss, watch, most_compilations, keep, log)
    try:
        run.open(None if folder is None else Path(folder), resume)
        model.train()
        while run.epoch < epochs and not run.stale(patience):
            if until is not None and until(run.metrics.records):
                break
            run.train_epoch(save_every, validation)
            if run.epoch % save_epochs == 0:
                run.save()
        if run.saved != (run.epoch, run.step):
            run.save()
    finally:
        run.metrics.close()
    if patience is not None and run.best is not None:
        nnx.update(model, run.best_weights)
    best = None if run.best is None else run.best[0]
    return History(run.metrics.records, best, run.compilations)
