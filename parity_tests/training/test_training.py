"""`jaxrnn.training` against `torch_ref.training`: scores, one step, many steps, evaluation."""

import functools
import os

import jax
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
from jaxrnn.training.batches import as_arrays

pytestmark = pytest.mark.core

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
    # The bias is initially 0, which would hide swapped biases.
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


def metrics(functions):
    return {"accuracy": functions.accuracy}


def assert_same(ours, theirs, bound):
    mine = interchange.state_dict(ours)
    reference = theirs.state_dict()
    assert mine.keys() == reference.keys()
    for name, array in mine.items():
        np.testing.assert_allclose(array, reference[name], rtol=0, atol=bound, err_msg=name)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("optimizers", [sgd, adamw])
@pytest.mark.parametrize("steps", [1, 20])
def test_a_step_matches_pytorch(batches, twins, optimizers, steps, smoothing):
    ours, theirs = twins
    before = interchange.state_dict(ours)
    optimizer, reference = optimizers(0.05, ours, theirs)
    bound = tolerance("float64", steps, "training")
    sides = [
        (functions, model, tx, functools.partial(functions.cross_entropy, smoothing=smoothing))
        for functions, model, tx in (
            (training, ours, optimizer),
            (torch_ref.training, theirs, reference),
        )
    ]
    for n in range(steps):
        batch = batches[n % len(batches)]
        mine, its = (
            functions.train_step(model, tx, batch, loss=loss, metrics=metrics(functions))
            for functions, model, tx, loss in sides
        )
        np.testing.assert_allclose(float(mine["loss"]), float(its["loss"]), rtol=0, atol=bound)
        assert float(mine["accuracy"]) == float(its["accuracy"])
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
    mine, its = (
        functions.evaluate(model, batches, metrics=metrics(functions))
        for functions, model in ((training, ours), (torch_ref.training, theirs))
    )
    assert mine == pytest.approx(its, abs=1e-14)
    together = [data.Batch(*map(np.concatenate, zip(*batches, strict=True)))]
    assert mine == pytest.approx(training.evaluate(ours, together, metrics=metrics(training)))


def test_evaluation_has_no_dropout_and_keeps_the_mode():
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
def test_cross_entropy_matches_pytorch(smoothing):
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


LOGITS = np.zeros((2, 3, 3), np.float32)  # T = C, so shapes do not reveal a wrong axis


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: training.accuracy(LOGITS, np.array([0, 1])), r"\(2, 3, 3\) and labels of \(2,\)"),
        (lambda: training.accuracy(LOGITS[0], np.zeros((3, 3), int)), r"and labels of \(3, 3\)"),
        (lambda: training.cross_entropy(LOGITS[0], np.ones(3)), "integer labels, got float"),
        (lambda: training.mean_squared_error(np.ones((3, 1)), np.ones(3)), r"\(3, 1\) and \(3,\)"),
        (lambda: training.accuracy((LOGITS, 0), np.array([0, 1])), r"got a tuple: .*outputs\[0\]"),
        (lambda: training.ctc_loss(LOGITS, np.array([0, 1])), r"labels of shape \(B, N\), got"),
        (
            lambda: training.mean_squared_error(
                LOGITS[..., 0], data.Batch(LOGITS, LOGITS[..., 0], np.array([1, 3]))
            ),
            "pass `per_step=True` if",
        ),
        (lambda: training.masked_mean(np.ones(2), np.ones(2, int)), r"shape \(B, T, \.\.\.\)"),
    ],
)
def test_losses_refuse_other_shapes_in_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_accuracy_at_each_step_counts_true_steps_alone():
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((4, 3, 3)), rng.integers(0, 3, (4, 3))
    lengths = np.array([3, 0, 1, 2])
    right = logits.argmax(-1) == labels
    expected = np.mean([right[b, t] for b in range(4) for t in range(lengths[b])])
    batch = data.Batch(None, labels, lengths)
    assert float(training.accuracy(logits, batch)) == pytest.approx(expected)
    assert float(training.accuracy(logits, labels)) == pytest.approx(right.mean())


def test_losses_match_pytorch():
    rng = np.random.default_rng(0)
    outputs, labels = rng.standard_normal((4, 3)), rng.integers(0, 2, (4, 3)).astype(float)
    x, y = torch.from_numpy(outputs), torch.from_numpy(labels)
    for ours, theirs in [
        (training.mean_squared_error, torch.nn.functional.mse_loss),
        (training.binary_cross_entropy, torch.nn.functional.binary_cross_entropy_with_logits),
    ]:
        np.testing.assert_allclose(float(ours(outputs, labels)), float(theirs(x, y)), rtol=1e-14)
        # Several labels for each row, of 5 steps, have no padding.
        batch = data.Batch(np.zeros((4, 5)), labels, np.array([5, 1, 0, 2]))
        assert float(ours(outputs, batch)) == float(ours(outputs, labels))


def test_ctc_matches_pytorch():
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((3, 6, 4)), [[1, 2], [3], [2, 2, 1]]
    lengths = np.array([6, 2, 5], np.int32)
    batch = data.Batch(None, np.array([[1, 2, -1], [3, -1, -1], [2, 2, 1]]), lengths)
    expected = torch.nn.functional.ctc_loss(
        torch.from_numpy(logits).log_softmax(-1).transpose(0, 1),
        torch.tensor([label for row in labels for label in row]),
        torch.from_numpy(lengths),
        torch.tensor([len(row) for row in labels]),
        reduction="none",
    )
    # optax uses -1e5 for log 0.
    assert float(training.ctc_loss(logits, batch)) == pytest.approx(float(expected.mean()), 1e-6)


def test_a_label_outside_the_classes_makes_the_loss_nan():
    assert np.isnan(training.cross_entropy(LOGITS[0], np.array([0, 1, 3])))
    assert np.isnan(training.cross_entropy(LOGITS[0], np.array([0, -1, 2])))


def test_predictions_of_other_shapes_are_not_joined():
    def states(model, batch):
        return batch[0].T

    batches = [(np.ones((2, 3)), 0), (np.ones((1, 3)), 0)]
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="cannot join shapes"):
        training.predict(model, batches, forward=states)
    with pytest.raises(ValueError, match="`predict` got no batches"):
        training.predict(model, [])
    with pytest.raises(ValueError, match="`evaluate` got no batches"):
        training.evaluate(model, [])


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int32", "uint32", "int64"])
def test_narrow_labels_and_lengths_do_not_wrap(dtype):
    logits = jnp.zeros((2, 300)).at[0, 256].set(9.0).at[1, 100].set(9.0)
    labels = np.array([0, 100])
    assert float(training.accuracy(logits, labels.astype(dtype))) == 0.5
    wanted = float(training.cross_entropy(logits, labels))
    assert float(training.cross_entropy(logits, labels.astype(dtype))) == wanted
    values = jnp.ones((2, 300)).at[:, 200:].set(100.0)
    lengths = np.array([100, 127]).astype(dtype)
    assert float(training.masked_mean(values, lengths)) == 1.0


@pytest.mark.skipif(
    "SSE4_2" in os.environ.get("XLA_FLAGS", ""), reason="XLA converts no float16 without AVX"
)
def test_the_mean_of_many_steps_in_float16():
    lengths = np.array([70_000])
    assert float(training.masked_mean(jnp.ones((1, 70_000), jnp.float16), lengths)) == 1.0


def test_the_mean_of_many_steps_in_bfloat16():
    logits = jnp.zeros((3, 257, 2), jnp.bfloat16).at[:, :, 1].set(1)
    labels = jnp.ones((3, 257), jnp.int32).at[0, 0].set(0)
    got = training.accuracy(logits, data.Batch(logits, labels, np.array([257] * 3)))
    np.testing.assert_allclose(float(got), 1 - 1 / 771, rtol=1e-6)


def test_integers_that_jax_would_cut_are_refused():
    large = np.array([2**40, 1])
    with jax.enable_x64(False):
        for batch in (large, (np.zeros(2), large), {"x": large}):
            with pytest.raises(ValueError, match="integers of int64 beyond 32 bits"):
                as_arrays(batch)
        with pytest.raises(ValueError, match="integers of int64 beyond 32 bits"):
            training.mean_squared_error(jnp.zeros(2), large)
        np.testing.assert_array_equal(as_arrays(large // 2**20), large // 2**20)
    assert as_arrays(large) is large
