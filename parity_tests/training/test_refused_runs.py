"""Folders that `fit` refuses to resume from: damaged, changed, or of another run."""

import shutil

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrnn import training
from small_run import TX, arrays, contents, epoch, newest, start


def refused(run, match, error=ValueError, data=epoch, **options):
    """Checks that `fit` raises one sentence and changes neither the model nor the folder."""
    tx, settings = options.pop("tx", TX), options.pop("settings", {})
    model, optimizer = start(tx, **options)
    model.train()
    before, files = arrays(model, optimizer), contents(run)
    with pytest.raises(error, match=match) as caught:
        training.fit(model, optimizer, data, epochs=3, folder=run, resume=True, **settings)
    assert arrays(model, optimizer) == before
    assert contents(run) == files
    return str(caught.value)


def test_a_flipped_bit_is_found_in_every_file(run):
    files = [path for path in newest(run).rglob("*") if path.is_file()]
    assert len(files) > 5
    rng = np.random.default_rng(0)
    for path in files:
        whole = path.read_bytes()
        for _ in range(3):
            broken = bytearray(whole)
            broken[rng.integers(max(len(whole) - 1, 1))] ^= 1 << rng.integers(8)
            path.write_bytes(broken)
            text = refused(run, "cannot be resumed from: it is damaged")
            assert "Remove it to resume from step 5." in text
        path.write_bytes(whole[: len(whole) // 2])
        refused(run, "it is damaged")
        path.unlink()
        refused(run, "is missing|no `manifest.json`")
        path.write_bytes(whole)
    training.fit(*start(), epoch, epochs=2, folder=run, resume=True)


def test_folders_that_are_not_checkpoints(run):
    path = newest(run)
    (path / "state" / "stray").touch()
    refused(run, "`state/stray` does not belong to it")
    shutil.rmtree(path)
    path.mkdir()
    refused(run, "no `manifest.json`, so it was not written by `fit`")
    path.rmdir()
    path.touch()
    refused(run, "it is not a folder")
    path.unlink()
    # Remove it, as the message advises, to resume from the one before.
    training.fit(*start(), epoch, epochs=2, folder=run, resume=True)


def test_another_model_or_optimizer(run):
    text = refused(run, "is of another model or optimizer. Nothing was loaded", hidden=5)
    assert "`model.inner.kernel` is float32 of (2, 4) in the checkpoint, float32 of (2, 5)" in text
    assert "`model.inner.bias` is float32 of (4,)" in text
    text = refused(run, "of another model or optimizer", dtype=jnp.float16)
    assert "`model.fc.bias` is float32 of (3,) in the checkpoint, float16 of (3,) here." in text
    text = refused(run, "of another model or optimizer", tx=optax.sgd(0.1))
    assert "`optimizer.opt_state.0.mu.fc.bias` is float32 of (3,) in the checkpoint, absent" in text


def test_other_data(run):
    refused(run, "was trained on other data", data=lambda number: epoch(number, seed=1))
    refused(run, "was trained on other data", data=lambda number: epoch(number)[:1])


def test_another_watched_score(run):
    settings = {"watch": "validation_accuracy", "metrics": {"accuracy": training.accuracy}}
    text = refused(
        run, r'is of `fit\(watch="validation_loss", better="lower"\)`', settings=settings
    )
    assert 'got `watch="validation_accuracy", better="higher"`' in text
    refused(run, 'got `watch="validation_loss", better="higher"`', settings={"better": "higher"})


@pytest.mark.parametrize("change", [lambda text: text[:-9], lambda text: b"[" + text[1:]])
def test_metrics_that_were_changed(run, change):
    path = run / "metrics.jsonl"
    path.write_bytes(change(path.read_bytes()))
    refused(run, "is not as it was when the checkpoint was written")


def test_metrics_that_are_gone(run):
    (run / "metrics.jsonl").unlink()
    refused(run, "is not as it was when the checkpoint was written")


def test_a_folder_with_another_run(run, tmp_path):
    before = contents(run)
    with pytest.raises(ValueError, match=r"holds a run of 10 steps. Pass `resume=True`"):
        training.fit(*start(), epoch, epochs=3, folder=run)
    assert contents(run) == before
    other = tmp_path / "other"
    other.mkdir()
    (other / "metrics.jsonl").write_text("mine\n")
    refused(other, "no checkpoint to resume from")


def test_a_file_in_place_of_the_folder(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(OSError, match="cannot be made: Not a directory"):
        training.fit(*start(), epoch, epochs=1, folder=path)
    assert path.read_text() == "mine"
