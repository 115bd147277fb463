"""All kinds of task learn through `data.batches` and `fit`, and padding is ignored."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxrnn import GRU, data, training
from jaxrnn.training import checkpoints

RNG = np.random.default_rng(0)
SEQUENCES = [RNG.standard_normal((n, 2)).astype(np.float32) for n in (3, 6, 4, 6, 5, 2)]


class Network(nnx.Module):
    """A GRU with a head on its last state, or on every step."""

    def __init__(self, outputs, *, per_step, seed=0):
        rngs = nnx.Rngs(seed)
        self.gru = GRU(2, 8, batch_first=True, rngs=rngs)
        self.head = nnx.Linear(8, outputs, rngs=rngs)
        self.per_step = per_step

    def __call__(self, x, *, lengths):
        output, last = self.gru(x, lengths=lengths)
        return self.head(output if self.per_step else last[0])


class NextToken(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.embed = nnx.Embed(5, 2, rngs=rngs)
        self.gru = Network(5, per_step=True)

    def __call__(self, tokens, *, lengths):
        return {"logits": self.gru(self.embed(tokens), lengths=lengths), "state": lengths}


def train(model, batches, loss, *, epochs=40, tx=None, **settings):
    optimizer = nnx.Optimizer(model, tx or optax.adam(0.05), wrt=nnx.Param)
    return training.fit(
        model, optimizer, lambda epoch: batches, epochs=epochs, loss=loss, **settings
    )


per_step = functools.partial(training.mean_squared_error, per_step=True)


def regression():
    targets = np.array([[s[:, 0].mean(), s[-1, 1]] for s in SEQUENCES], np.float64)
    batches = data.batches(SEQUENCES, targets, 6)
    assert batches[0].labels.dtype == np.float64
    return Network(2, per_step=False), batches, training.mean_squared_error


def forecasting():
    """The label at each step is the sum of all inputs so far."""
    targets = [np.cumsum(s[:, :1], axis=0) for s in SEQUENCES]
    return Network(1, per_step=True), data.batches(SEQUENCES, targets, 6), per_step


def tagging():
    tags = [(s[:, 0] > 0).astype(int) for s in SEQUENCES]
    batches = data.batches(SEQUENCES, tags, 6)
    assert batches[0].labels[0].tolist()[3:] == [-1, -1, -1]
    return Network(3, per_step=True), batches, training.cross_entropy


def ctc():
    labels = [[1], [2, 1, 2], [1, 2], [1, 1], [2], [2]]
    return Network(3, per_step=True), data.batches(SEQUENCES, labels, 6), training.ctc_loss


def multi_label():
    labels = [[s[0, 0] > 0, s[-1, 1] > 0, len(s) > 4] for s in SEQUENCES]
    return Network(3, per_step=False), data.batches(SEQUENCES, labels, 6), binary


def next_token():
    texts = [[(start + n) % 5 for n in range(7)] for start in range(5)]
    inputs, labels = [t[:-1] for t in texts], [t[1:] for t in texts]
    batches = data.batches(inputs, labels, 5)
    return NextToken(), batches, next_token_loss


def binary(outputs, batch):
    return training.binary_cross_entropy(outputs, batch)


def next_token_loss(outputs, batch):
    return training.cross_entropy(outputs["logits"], batch)


@pytest.mark.parametrize("task", [regression, forecasting, tagging, ctc, multi_label, next_token])
def test_each_task_learns_and_padding_is_ignored(task):
    model, batches, loss = task()
    (batch,) = batches
    padded = np.arange(batch.inputs.shape[1])[None, :] >= batch.lengths[:, None]
    history = train(model, batches, loss)
    assert history["loss"][-1] < 0.3 * history["loss"][0]
    assert set(history.records[0]) == {"epoch", "step", "loss", "seconds"}
    value = training.evaluate(model, batches, loss=loss)
    if task in (forecasting, tagging, next_token):
        labels = batch.labels.copy()
        labels[padded] = 10**6
        poisoned = batch._replace(labels=labels)
        assert training.evaluate(model, [poisoned], loss=loss) == value


def test_validation_over_buckets_averages_over_all_steps():
    model, (batch,), loss = tagging()
    tags = [(s[:, 0] > 0).astype(int) for s in SEQUENCES]
    bucketed = data.batches(SEQUENCES, tags, 6, buckets=[4, 6])
    metrics = {"accuracy": training.accuracy}
    whole = training.evaluate(model, [batch], loss=loss, metrics=metrics)
    parts = training.evaluate(model, bucketed, loss=loss, metrics=metrics)
    assert len(bucketed) == 2
    assert parts == pytest.approx(whole, rel=1e-6)
    by_rows = [training.evaluate(model, [part], loss=loss)["loss"] for part in bucketed]
    assert abs(np.mean(by_rows) - whole["loss"]) > 1e-4


def test_batches_of_any_kind_and_a_custom_forward():
    """A mapping, a tuple, and a pytree that only the caller can read."""
    x, y = np.eye(3, dtype=np.float32), np.array([2, 0, 1])

    def call(model, batch):
        return model(batch["a"]["x"])

    def loss(outputs, batch):
        return training.cross_entropy(outputs, batch["y"])

    results = [
        train(nnx.Linear(3, 3, rngs=nnx.Rngs(0)), [batch], function, epochs=3, **settings)["loss"]
        for batch, function, settings in [
            ({"inputs": x, "labels": y}, training.cross_entropy, {}),
            ((x, y), training.cross_entropy, {}),
            ([x, y], training.cross_entropy, {}),
            ({"a": {"x": x}, "y": y}, loss, {"forward": call}),
        ]
    ]
    assert all((result == results[0]).all() for result in results)
    model = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"a mapping with the keys \['a', 'y'\]. .* `forward="):
        train(model, [{"a": x, "y": y}], training.cross_entropy)
    named = collections.namedtuple("Named", ["labels_first", "x"])(y, x)
    with pytest.raises(ValueError, match="or a tuple in this order, got a Named"):
        train(model, [named], training.cross_entropy)
    with pytest.raises(ValueError, match="a pytree of arrays, got a leaf of type str"):
        train(model, [(x, "labels")], training.cross_entropy)


def plateau():
    adam = optax.inject_hyperparams(optax.adam)(learning_rate=0.1)
    return optax.chain(adam, optax.contrib.reduce_on_plateau(patience=1, rtol=0.5, factor=0.5))


@pytest.mark.parametrize(
    "make",
    [
        plateau,
        functools.partial(optax.lbfgs, linesearch=optax.scale_by_zoom_linesearch(4)),
        lambda: optax.polyak_sgd(max_learning_rate=0.1),
    ],
    ids=["plateau", "lbfgs", "polyak"],
)
def test_optimizers_that_need_the_loss_learn_and_resume_exactly(make, tmp_path):
    _, batches, loss = regression()
    tx = make()
    results = {}
    for name, parts in {"whole": [6], "resumed": [2, 6]}.items():
        for epochs in parts:
            model = Network(2, per_step=False, seed=epochs if epochs != parts[0] else 0)
            optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
            history = training.fit(
                model,
                optimizer,
                lambda epoch: batches,
                epochs=epochs,
                loss=loss,
                folder=tmp_path / name,
                resume=True,
            )
        results[name] = history, jax.tree.map(np.asarray, nnx.state((model, optimizer)))
    (whole, state), (resumed, again) = results.values()
    assert whole["loss"].tolist() == resumed["loss"].tolist()
    assert whole["loss"][-1] < whole["loss"][0]
    jax.tree.map(np.testing.assert_array_equal, state, again)
    if make is plateau:
        rates = whole["learning_rate"]
        assert rates[0] == pytest.approx(0.1)
        assert rates[-1] < 0.06
        assert rates.tolist() == resumed["learning_rate"].tolist()
    else:
        assert len(whole["learning_rate"]) == 0


def test_extra_arguments_of_an_optimizer_use_the_same_batch_and_noise():
    class Noisy(nnx.Module):
        def __init__(self):
            self.fc = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
            self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(1))

        def __call__(self, x):
            return self.fc(self.dropout(x))

    def update(updates, state, params=None, *, value, grad, value_fn, grad_fn, **_):
        again = optax.tree.norm(jax.tree.map(jnp.subtract, grad_fn(params), grad))
        return updates, {"apart": jnp.abs(value_fn(params) - value), "grads": again}

    zeros = {"apart": jnp.ones(()), "grads": jnp.ones(())}
    tx = optax.GradientTransformationExtraArgs(lambda _: zeros, update)
    model = Noisy()
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    batch = (np.ones((4, 3), np.float32), np.array([0, 1, 1, 0]))
    first = training.train_step(model, optimizer, batch)["loss"]
    second = training.train_step(model, optimizer, batch)["loss"]
    assert first != second  # different weights, different noise
    assert float(optimizer.opt_state["apart"][...]) < 1e-6
    assert float(optimizer.opt_state["grads"][...]) < 1e-6


def test_the_learning_rate_of_a_schedule_is_recorded():
    schedule = optax.linear_schedule(0.4, 0.0, 4)
    _, batches, loss = regression()
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=schedule)
    history = train(Network(2, per_step=False), batches, loss, tx=tx, epochs=3)
    np.testing.assert_allclose(history["learning_rate"], [0.4, 0.3, 0.2], rtol=1e-6)


def test_weights_are_loaded_without_an_optimizer(tmp_path):
    _, batches, loss = regression()
    held_back = [batches[0]._replace(labels=-batches[0].labels)]  # the best epoch is the first
    model = Network(2, per_step=False)
    history = train(model, batches, loss, folder=tmp_path, epochs=3, validation=held_back)
    assert history.best == 0
    for which, expected in (("best", history["validation_loss"][0]), ("last", None)):
        loaded = Network(2, per_step=False, seed=9)
        training.load(tmp_path, loaded, which)
        found = training.evaluate(loaded, held_back, loss=loss)["loss"]
        assert found == (history["validation_loss"][-1] if expected is None else expected)
    other = Network(3, per_step=False)
    with pytest.raises(ValueError, match=r"`head.bias` is float32 of \(2,\) in the checkpoint"):
        training.load(tmp_path, other)
    with pytest.raises(ValueError, match="holds no checkpoint of a run"):
        training.load(tmp_path / "nothing", other)
    train(Network(2, per_step=False), batches, loss, folder=tmp_path / "b", epochs=1)
    with pytest.raises(ValueError, match=r"no best weights.*`which=\"last\"`"):
        training.load(tmp_path / "b", Network(2, per_step=False))


class Loader:
    """A data loader with internal state, which shuffles differently in each pass."""

    def __init__(self):
        self.rng = np.random.default_rng(3)
        self.passes = 0

    def __iter__(self):
        self.passes += 1
        for row in self.rng.permutation(6):
            yield SEQUENCES[row][None, :2], np.array([[1.0, row]])


def stream():
    rng = np.random.default_rng(5)
    while True:
        row = rng.integers(6)
        yield SEQUENCES[row][None, :2], np.array([[1.0, row]])


@pytest.mark.parametrize(
    ("make", "settings"), [(Loader, {}), (stream, {"epoch_steps": 5})], ids=["loader", "generator"]
)
def test_an_iterable_as_data_resumes_exactly(make, settings, tmp_path):
    def forward(model, batch):
        return model(batch[0], lengths=jnp.full(1, batch[0].shape[1]))

    settings = {**settings, "loss": training.mean_squared_error, "forward": forward}
    results = []
    for folder, stops in (("a", [None]), ("b", [4, 9, None])):
        for stop in stops:

            def log(record, stop=stop):
                if record["step"] == stop:
                    raise RuntimeError("enough")

            model = Network(2, per_step=False)
            optimizer = nnx.Optimizer(model, optax.adam(0.01), wrt=nnx.Param)
            options = {"epochs": 3, "folder": tmp_path / folder, "resume": True, "save_every": 2}
            try:
                history = training.fit(model, optimizer, make(), log=log, **options, **settings)
            except RuntimeError:
                saved = checkpoints.steps(tmp_path / folder / "checkpoints")[-1]
                assert saved <= stop
        results.append(history["loss"].tolist())
    assert results[0] == results[1]
    assert len(results[0]) == (18 if make is Loader else 15)
    assert len(set(results[0])) > 10
