"""`jaxrnn.training` against `torch_ref.training`: scores, one step, many steps, evaluation."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import torch_ref.models
import torch_ref.training
from jaxrnn import data, interchange, models, training
from jaxrnn.testing import tolerance

CLASSES = 4


@pytest.fixture
def batches():
    """Three ragged batches, two of them of one shape, float64."""
    rng = np.random.default_rng(0)
    sequences = [rng.standard_normal((n, 3)) for n in (7, 1, 4, 5, 2, 7, 3, 6)]
    return data.batches(sequences, rng.integers(0, CLASSES, 8), batch_size=3, seed=0)


@pytest.fixture
def twins():
    """The classifier in both frameworks, float64, with the same weights."""
    ours = models.SpeakerClassifier(
        3, 5, CLASSES, num_layers=2, param_dtype=jnp.float64, rngs=nnx.Rngs(0)
    )
    # The bias starts at 0, where a swap would not be seen.
    ours.fc.bias[...] = jnp.linspace(-1.0, 1.0, CLASSES, dtype=jnp.float64)
    theirs = torch_ref.models.SpeakerClassifier(3, 5, CLASSES, num_layers=2).double()
    theirs.load_state_dict(
        {name: torch.from_numpy(array) for name, array in interchange.state_dict(ours).items()}
    )
    return ours, theirs


def sgd(rate, ours, theirs):
    return (
        nnx.Optimizer(ours, optax.sgd(rate), wrt=nnx.Param),
        torch.optim.SGD(theirs.parameters(), lr=rate),
    )


def adamw(rate, ours, theirs):
    steps = 30
    tx = optax.adamw(optax.cosine_decay_schedule(rate, steps), weight_decay=0.3)
    return (
        nnx.Optimizer(ours, tx, wrt=nnx.Param),
        torch_ref.training.adamw(theirs, rate, weight_decay=0.3, steps=steps),
    )


def assert_same(ours, theirs, bound):
    mine = interchange.state_dict(ours)
    reference = theirs.state_dict()
    assert mine.keys() == reference.keys()
    for name, array in mine.items():
        np.testing.assert_allclose(array, reference[name], rtol=0, atol=bound, err_msg=name)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("optimizers", [sgd, adamw])
@pytest.mark.parametrize("steps", [1, 20])
def test_a_step_is_pytorchs(batches, twins, optimizers, steps, smoothing):
    ours, theirs = twins
    before = interchange.state_dict(ours)
    optimizer, reference = optimizers(0.05, ours, theirs)
    bound = tolerance("float64", steps, "training")
    for n in range(steps):
        batch = batches[n % len(batches)]
        mine = training.train_step(ours, optimizer, batch, smoothing=smoothing)
        its = torch_ref.training.train_step(theirs, reference, batch, smoothing=smoothing)
        np.testing.assert_allclose(float(mine.loss), float(its.loss), rtol=0, atol=bound)
        assert float(mine.accuracy) == float(its.accuracy)
    assert_same(ours, theirs, bound)
    after = interchange.state_dict(ours)
    assert all(np.abs(after[name] - before[name]).max() > 1e-6 for name in before)


def test_both_classifiers_agree_without_lengths(batches, twins):
    ours, theirs = twins
    whole = [batch._replace(lengths=None) for batch in batches]
    np.testing.assert_allclose(
        training.predict(ours, whole), torch_ref.training.predict(theirs, whole), atol=1e-14
    )
    assert np.abs(training.predict(ours, whole) - training.predict(ours, batches)).max() > 1e-3


def test_evaluation_counts_rows_and_not_batches(batches, twins):
    ours, theirs = twins
    mine = training.evaluate(ours, batches)
    its = torch_ref.training.evaluate(theirs, batches)
    np.testing.assert_allclose(np.array(mine), np.array(its), atol=1e-14)
    together = [data.Batch(*map(np.concatenate, zip(*batches, strict=True)))]
    np.testing.assert_allclose(np.array(mine), np.array(training.evaluate(ours, together)))


def test_evaluation_is_without_dropout_and_leaves_the_mode():
    class Dropped(nnx.Module):
        def __init__(self):
            self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.dropout(x)

    model = Dropped()
    batch = data.Batch(np.eye(6, dtype=np.float32), np.arange(6, dtype=np.int32))
    np.testing.assert_array_equal(training.predict(model, [batch]), batch.inputs)
    assert not model.dropout.deterministic
    assert (np.asarray(model(batch.inputs)) != batch.inputs).any()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_is_pytorchs(smoothing):
    rng = np.random.default_rng(1)
    logits, labels = 30 * rng.standard_normal((8, 5)), rng.integers(0, 5, 8)
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits), torch.from_numpy(labels), label_smoothing=smoothing
    )
    loss = training.cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing)
    np.testing.assert_allclose(float(loss), float(expected), rtol=1e-14)


def test_a_second_step_of_a_shape_compiles_nothing(batches, twins, compilations):
    ours, _ = twins
    optimizer = nnx.Optimizer(ours, optax.sgd(0.1), wrt=nnx.Param)

    def once():
        for batch in batches:
            training.train_step(ours, optimizer, batch)
        training.predict(ours, batches)

    once()
    compiled = compilations()
    once()
    assert compiled > 0
    assert compilations() == compiled
