"""One epoch of a run of `fit`: its training steps, its validation, and their records."""

import math
from collections.abc import Iterable, Mapping
from time import monotonic
from typing import Any

import jax

from jaxrnn.training import state
from jaxrnn.training.batches import shapes, signature
from jaxrnn.training.evaluation import evaluate
from jaxrnn.training.folder import restate
from jaxrnn.training.placement import place_batch, placements
from jaxrnn.training.run import Run
from jaxrnn.training.steps import compiled_step


def train_epoch(run: Run, save_every: int | None, validation: Iterable[Any] | None) -> None:
    """Train on the rest of an epoch and validate; end early after a signal."""
    for batch in run.source.left(run.epoch):
        run.agree()
        # Save before a step, not after: the end of an epoch is saved with its validation.
        due = save_every and run.position and run.step % save_every == 0
        if (due or run.ending) and run.saved != (run.epoch, run.step):
            run.save()
        if run.ending:
            return
        _train_step(run, batch)
        run.last = run.epoch, run.position, batch
        run.position += 1
    if not run.position:
        raise ValueError(
            f"`fit(data)` gave no batches for epoch {run.epoch}. A generator gives each batch "
            "once: pass a function of the epoch, or `epoch_steps` for one that does not end."
        )
    if validation is not None:
        _validate(run, validation)
    run.epoch, run.position = run.epoch + 1, 0


def _train_step(run: Run, batch: Any) -> None:
    shape = signature(batch)
    if shape not in run.shapes and len(run.shapes) == run.most_compilations:
        raise ValueError(
            f"`fit(most_compilations={run.most_compilations})` met one more shape of batches, "
            f"{shapes(batch)}. Pad to fewer lengths, with `buckets`."
        )
    run.shapes.add(shape)
    scoring = run.scoring
    metrics = tuple(scoring.metrics.items())
    kept = placements(run.sharding, run.model, run.optimizer)
    compiled, traces = compiled_step(scoring.loss, metrics, scoring.forward, kept)
    before = len(traces)
    placed = place_batch(batch, run.sharding)
    scores = jax.device_get(compiled(run.model, run.optimizer, placed))
    run.compilations += len(traces) - before
    loss = float(scores["loss"])
    if not math.isfinite(loss):
        run.diverge(f"the loss was {loss} at step {run.step + 1}, in epoch {run.epoch}")
    run.step += 1
    order = ("loss", *scoring.metrics, "learning_rate")  # a compiled function sorts by name
    _write(run, {name: scores[name] for name in order if name in scores})


def _validate(run: Run, batches: Iterable[Any]) -> None:
    """Evaluate at the end of an epoch, and keep the weights if they are the best so far."""
    scoring = run.scoring
    scores = evaluate(
        run.model,
        batches,
        loss=scoring.loss,
        metrics=scoring.metrics,
        forward=scoring.forward,
        sharding=run.sharding,
    )
    if not math.isfinite(scores["loss"]):
        run.diverge(f"the validation loss was {scores['loss']} after step {run.step}")
    named = {f"validation_{name}": scores[name] for name in ("loss", *scoring.metrics)}
    _write(run, named)
    score = scoring.sign * named[scoring.watch]
    if math.isfinite(score) and (run.best is None or score < run.best[1]):
        run.best = run.epoch, score
        run.best_weights = state.weights(run.model)


def _write(run: Run, scores: Mapping[str, Any]) -> None:
    values = {name: float(value) for name, value in scores.items()}
    record = {
        "epoch": run.epoch,
        "step": run.step,
        # JSON cannot represent non-finite numbers.
        **{name: value if math.isfinite(value) else None for name, value in values.items()},
        "seconds": round(monotonic() - run.started, 3),
    }
    try:
        run.metrics.write(record)
    except OSError as error:
        failure = restate(f"The metrics of step {run.step} were not written", error)
        if run.processes.count == 1:
            raise failure from error
        run.failure = failure
    if run.log is not None and run.processes.first:
        run.log(record)
