"""`fit`: its records, its scores, its errors for arguments and for training that diverges."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxrnn import training
from jaxrnn.training import checkpoints, state
from small_run import arrays, epoch, start, timeless


def test_checkpoints_every_few_epochs_and_at_the_end(tmp_path, monkeypatch):
    written, save = [], checkpoints.save

    def counted(folder, step, *rest):
        written.append(step)
        save(folder, step, *rest)

    monkeypatch.setattr(checkpoints, "save", counted)
    training.fit(*start(), epoch, epochs=5, folder=tmp_path, save_epochs=2)
    assert written == [0, 10, 20, 25]
    training.fit(*start(), epoch, epochs=5, folder=tmp_path, save_epochs=2, resume=True)
    assert written == [0, 10, 20, 25]


def test_until_ends_a_run(tmp_path):
    for resume in (False, True):
        history = training.fit(
            *start(),
            epoch,
            epochs=9,
            until=lambda records: len(records) >= 15,
            folder=tmp_path,
            save_epochs=2,
            resume=resume,
        )
        assert len(history["loss"]) == 15
        assert checkpoints.steps(tmp_path / "checkpoints")[-1] == 15


def test_each_record_is_in_the_file_before_the_next_step(tmp_path, held_back):
    told = []

    def log(record):
        told.append(record)
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == told

    training.fit(*start(), epoch, epochs=2, validation=held_back, folder=tmp_path, log=log)
    assert len(told) == 2 * (len(epoch(0)) + 1)


def test_each_shape_compiles_once_and_compilations_are_counted(tmp_path):
    def loss(logits, batch):  # a new function, so that nothing is compiled yet
        return training.cross_entropy(logits, batch)

    shapes = {batch.inputs.shape for n in range(3) for batch in epoch(n)}
    assert 1 < len(shapes) <= 4  # full batches and the remainder, for each of two buckets
    history = training.fit(*start(), epoch, epochs=3, loss=loss, folder=tmp_path)
    assert history.compilations == len(shapes)
    assert training.fit(*start(), epoch, epochs=3, loss=loss).compilations == 0
    with pytest.raises(ValueError, match=r"`fit\(most_compilations=1\)` met one more shape"):
        training.fit(*start(), epoch, epochs=3, most_compilations=1)


def test_a_custom_loss():
    model, optimizer = start()
    history = training.fit(
        model, optimizer, epoch, epochs=1, loss=lambda logits, batch: 7 + 0 * logits.sum()
    )
    np.testing.assert_array_equal(history["loss"], 7.0)


def wrong(logits, batch):
    """A custom metric."""
    return 1 - training.accuracy(logits, batch)


@pytest.mark.parametrize("watch", ["loss", "accuracy", "wrong"])
def test_early_stopping_restores_the_best_weights(tmp_path, held_back, watch):
    tx = optax.sgd(3.0)
    model, optimizer = start(tx)
    metrics = {"accuracy": training.accuracy, "wrong": wrong}
    settings = {"validation": held_back, "metrics": metrics, "patience": 2, "epochs": 40}
    settings |= {"watch": f"validation_{watch}", "better": "lower" if watch == "wrong" else None}
    history = training.fit(model, optimizer, epoch, folder=tmp_path, **settings)
    values = history[f"validation_{watch}"] * (-1 if watch == "accuracy" else 1)
    assert history.best == values.argmin()
    assert len(values) == history.best + 3 < 40
    scores = training.evaluate(model, held_back, metrics=metrics)
    assert scores[watch] == history[f"validation_{watch}"][history.best]
    resumed, optimizer = start(tx, seed=5)
    again = training.fit(resumed, optimizer, epoch, folder=tmp_path, resume=True, **settings)
    assert again.records == history.records
    scores = training.evaluate(resumed, held_back, metrics=metrics)
    assert scores[watch] == history[f"validation_{watch}"][history.best]


def test_a_non_finite_loss(tmp_path):
    def poisoned(number):
        batches = epoch(number)
        if number == 1:
            batches[2].inputs[0, 0, 0] = np.nan
        return batches

    with pytest.raises(
        FloatingPointError,
        match=r"the loss was nan at step 8, in epoch 1. .* The checkpoint of step 7 is in",
    ):
        training.fit(*start(), poisoned, epochs=3, folder=tmp_path, save_every=1)
    resumed, whole = start(), start()
    # The checkpoint is good: with valid data the run continues.
    expected = training.fit(*whole, epoch, epochs=3)
    history = training.fit(*resumed, epoch, epochs=3, folder=tmp_path, resume=True)
    assert timeless(history) == timeless(expected)
    assert arrays(*resumed) == arrays(*whole)


def test_non_finite_parameters_are_not_saved(tmp_path):
    tx = optax.scale_by_schedule(lambda step: jnp.where(step == 5, jnp.inf, 0.1))
    with pytest.raises(FloatingPointError, match=r"was not finite after step 6"):
        training.fit(*start(tx), epoch, epochs=3, folder=tmp_path, save_every=2)
    assert checkpoints.steps(tmp_path / "checkpoints")[-1] == 5


def test_old_checkpoints_are_removed(tmp_path):
    for name in (".partial-ab", ".partial-cd/state"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    training.fit(*start(), epoch, epochs=4, folder=tmp_path, keep=2)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["15", "20"]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"epochs": -1}, r"`fit\(epochs\)` must be 0 or more, got -1."),
        ({"keep": 0}, r"`fit\(keep\)` must be 1 or more"),
        ({"save_epochs": 0}, r"`fit\(save_epochs\)` must be 1 or more"),
        ({"patience": 3}, r"`fit\(patience\)` needs a `validation`"),
        ({"resume": True}, "needs the `folder`"),
        ({"watch": "F1"}, r"`fit\(watch\)` must be one of validation_loss, got `F1`"),
        (
            {"watch": "validation_mae", "metrics": {"mae": wrong}},
            r'`fit\(watch="validation_mae"\)` needs `better="lower"` or `better="higher"`',
        ),
        ({"metrics": {"loss": wrong}}, "No metric may have the name `loss`"),
        ({"metrics": {"validation_mae": wrong}}, "may have the name `validation_mae`"),
        ({"loss": lambda logits, batch: logits}, r"`loss` must be a scalar, got shape \(\d, 3\)"),
        ({"data": lambda epoch: []}, "gave no batches for epoch 0"),
        ({"data": iter(())}, "A generator gives each batch once"),
    ],
)
def test_bad_arguments(options, match):
    settings = {"data": epoch, "epochs": 1, **options}
    with pytest.raises((ValueError, TypeError), match=match):
        training.fit(*start(), **settings)


@pytest.mark.parametrize("spec", [(), (None, "data"), ("data", "more")], ids=str)
def test_a_placement_of_anything_but_rows_is_refused(spec):
    mesh = jax.make_mesh((1, 1), ("data", "more"))
    placement = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    with pytest.raises(ValueError, match="needs a placement of the rows, such as"):
        training.fit(*start(), epoch, epochs=1, sharding=placement)


def test_restoring_the_best_weights_keeps_the_dropout_counters(held_back):
    model, optimizer = start(optax.sgd(3.0))
    history = training.fit(model, optimizer, epoch, epochs=40, validation=held_back, patience=2)
    assert history.best < len(history["validation_loss"]) - 1
    (count,) = jax.tree.leaves(nnx.state(model, nnx.RngCount))
    assert int(count) == len(history["loss"])


def test_the_digest_depends_on_shape_dtype_and_name():
    array = np.arange(6, dtype=np.int32)
    batches = [array, array.reshape(2, 3), array.reshape(3, 2), array.view(np.uint32)]
    batches += [{"a": array}, {"b": array}, (array[:3], array[3:])]
    assert len({state.digest(batch) for batch in batches}) == len(batches)
