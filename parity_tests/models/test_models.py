"""All models in both packages: outputs, loss, gradients, training and options."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

import torch_ref.models
from jaxrnn import interchange, models, strategies, training
from jaxrnn.testing import assert_parity
from twins import compare_classifiers

B, T, I, H, O, V = 4, 6, 5, 5, 3, 9  # I = H: a transposed or misplaced matrix has the right shape
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, T, I))
TOKENS = RNG.integers(1, V, (B, T))
LENGTHS = np.array([6, 2, 1, 5])
PADDED = np.where(np.arange(T) < LENGTHS[:, None], TOKENS, 0)
LABELS = np.array([0, 2, 1, 2])
H0, C0 = RNG.normal(size=(B, H)), RNG.normal(size=(B, H))

# name: (class, arguments, inputs, lengths)
CASES = {
    "VanillaRNN": ("VanillaRNN", (I, H, O), (X, H0), None),
    "SimpleLSTM": ("SimpleLSTM", (I, H, O), (X, (H0, C0)), None),
    "SequenceClassifier": ("SequenceClassifier", (V, I, H, O, 2), (PADDED,), None),
    "SequenceClassifier-lengths": ("SequenceClassifier", (V, I, H, O), (PADDED,), LENGTHS),
    "EfficientLSTM": ("EfficientLSTM", (I, H, O), (X,), LENGTHS),
    "RNNComparison-RNN": ("RNNComparison", (I, H, O, "RNN"), (X,), None),
    "RNNComparison-LSTM": ("RNNComparison", (I, H, O), (X,), None),
    "RNNComparison-GRU": ("RNNComparison", (I, H, O, "GRU"), (X,), None),
    "SpeakerClassifier": ("SpeakerClassifier", (I, H, O, 2), (X,), LENGTHS),
}
TRAINED = [name for name in CASES if name != "SpeakerClassifier"]  # tested in test_training.py


def classes(module):
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and issubclass(value, nnx.Module | torch.nn.Module)
        and value.__module__.startswith(module.__name__)
    }


OURS, THEIRS = classes(models), classes(torch_ref.models)


def twins(name, *arguments, **options):
    return THEIRS[name](*arguments), OURS[name](*arguments, **options, rngs=nnx.Rngs(0))


def test_both_packages_have_the_same_classes_with_the_same_arguments():
    assert OURS.keys() == THEIRS.keys()
    assert set(models.__all__) == OURS.keys()
    assert {name for name, *_ in CASES.values()} == OURS.keys()
    for name, cls in OURS.items():
        mine, its = (inspect.signature(c.__init__).parameters for c in (cls, THEIRS[name]))
        positional = {k: p for k, p in mine.items() if p.kind is not p.KEYWORD_ONLY}
        assert list(positional) == list(its), name
        assert [p.default for p in positional.values()] == [p.default for p in its.values()], name
        calls = inspect.signature(cls.__call__), inspect.signature(THEIRS[name].forward)
        assert list(calls[0].parameters) == list(calls[1].parameters), name
        assert [p.default for p in calls[0].parameters.values()] == [
            p.default for p in calls[1].parameters.values()
        ], name


@pytest.mark.parametrize(
    ("name", "arguments", "count"),
    [
        ("VanillaRNN", (10, 32, 5), 1573),
        ("SimpleLSTM", (10, 32, 5), 5669),
        ("SequenceClassifier", (50, 32, 64, 2, 2), 60098),
        ("RNNComparison", (32, 64, 2, "RNN"), 6402),
        ("RNNComparison", (32, 64, 2, "LSTM"), 25218),
        ("RNNComparison", (32, 64, 2, "GRU"), 18946),
    ],
)
def test_parameter_counts_match_the_notebook(name, arguments, count):
    theirs = THEIRS[name](*arguments)
    ours = nnx.eval_shape(lambda: OURS[name](*arguments, rngs=nnx.Rngs(0)))
    assert sum(p.numel() for p in theirs.parameters()) == count
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(ours, nnx.Param))) == count


@pytest.mark.core
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", CASES)
def test_outputs_loss_and_gradients_match_pytorch(case, dtype):
    name, arguments, inputs, lengths = CASES[case]
    theirs, ours = twins(name, *arguments)
    report = assert_parity(theirs, ours, *inputs, lengths=lengths, dtype=dtype, steps=T)
    gradients = {row.name for row in report.rows if row.kind == "gradient"}
    assert gradients >= set(theirs.state_dict())


def train(case, steps, clip, max_norm=0.1):
    """Trains on two batches, without initial states."""
    name, arguments, (inputs, *_), lengths = CASES[case]
    batches = [(inputs, LABELS), (inputs[::-1].copy(), LABELS)]
    return compare_classifiers(
        *twins(name, *arguments), batches, steps, lengths=lengths, clip=clip, max_norm=max_norm
    )


@pytest.mark.parametrize("steps", [1, 20])
@pytest.mark.parametrize("case", TRAINED)
def test_training_with_clipping_matches_pytorch(case, steps):
    report = train(case, steps, training.clip_grad_norm)
    assert report.ok, report
    assert report["loss"].shape == (steps,)


@pytest.mark.parametrize(
    "clip", [optax.clip_by_global_norm, lambda max_norm: optax.identity()], ids=["optax", "none"]
)
def test_a_different_clipping_is_detected_after_one_step(clip):
    assert not train("VanillaRNN", 1, clip).ok


@pytest.mark.parametrize("max_norm", [0.0, 0.5, 5.0, 5.1, float("inf")])
def test_clipping_matches_pytorch_above_and_below_the_norm(max_norm):
    gradients = [np.array([3.0, 0.0]), np.array([[4.0]])]  # of norm 5
    parameters = [torch.zeros(g.shape, dtype=torch.float64) for g in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.from_numpy(gradient.copy())
    torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    clip = training.clip_grad_norm(max_norm)
    clipped, _ = clip.update([jnp.asarray(g) for g in gradients], clip.init(None))
    for mine, its in zip(clipped, parameters, strict=True):
        np.testing.assert_allclose(mine, its.grad, rtol=1e-15)


def test_clipping_supports_several_dtypes_and_keeps_nan():
    clip = training.clip_grad_norm(1.0)
    mixed = {"a": jnp.full(4, 3.0, jnp.float32), "b": jnp.full(3, 4.0, jnp.bfloat16)}
    clipped, _ = clip.update(mixed, clip.init(None))
    assert clipped["a"].dtype == jnp.float32
    assert clipped["b"].dtype == jnp.bfloat16
    np.testing.assert_allclose(float(clipped["a"][0]), 3 / 84**0.5, rtol=1e-5)
    poisoned, _ = clip.update(mixed | {"a": jnp.array([jnp.nan])}, clip.init(None))
    assert np.isnan(np.asarray(poisoned["b"], np.float32)).all()
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="needs max_norm of 0 or more, got"):
            training.clip_grad_norm(wrong)


def test_lengths_select_the_last_true_step_and_none_the_last_step():
    model = models.SequenceClassifier(V, I, H, O, 2, rngs=nnx.Rngs(0))
    model.eval()
    tokens, rows = jnp.asarray(PADDED), range(B)
    alone = [model(tokens[b : b + 1, : LENGTHS[b]])[0] for b in rows]
    np.testing.assert_allclose(model(tokens, LENGTHS), alone, atol=1e-6)
    noisy = jnp.asarray(TOKENS)
    assert (model(noisy, LENGTHS) == model(tokens, LENGTHS)).all()
    padded = model(tokens)
    np.testing.assert_array_equal(padded, model(tokens, np.full(B, T)))
    for b in rows:
        apart = np.abs(padded[b] - alone[b]).max()
        assert (apart < 1e-6) == (LENGTHS[b] == T)


def test_a_row_of_length_0_is_classified_from_the_initial_state():
    model = models.EfficientLSTM(I, H, O, rngs=nnx.Rngs(0))
    logits = model(jnp.asarray(X, jnp.float32), [0, 2, 1, 5])
    np.testing.assert_array_equal(logits[0], model.fc.bias[...])


@pytest.mark.parametrize("name", ["VanillaRNN", "SimpleLSTM"])
def test_states_continue_a_sequence(name):
    model = OURS[name](I, H, O, rngs=nnx.Rngs(0))
    x = jnp.asarray(X, jnp.float32)
    whole, last = model(x)
    first, states = model(x[:, :2])
    second, states = model(x[:, 2:], states)
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), whole, atol=1e-6)
    np.testing.assert_allclose(states, last, atol=1e-6)


@pytest.mark.parametrize("name", ["VanillaRNN", "SimpleLSTM", "SequenceClassifier"])
def test_strategy_and_dtype_are_used(name):
    tokens = name == "SequenceClassifier"
    arguments = (V, I, H, O) if tokens else (I, H, O)
    x = jnp.asarray(TOKENS) if tokens else jnp.asarray(X, jnp.float32)

    def outputs(**options):
        model = OURS[name](*arguments, **options, rngs=nnx.Rngs(0))
        model.eval()
        result = model(x)
        return result[0] if isinstance(result, tuple) else result

    usual = outputs()
    plain = outputs(strategy=strategies.Reference())
    np.testing.assert_allclose(plain, usual, atol=1e-6)
    low = outputs(dtype=jnp.bfloat16)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(low, np.float32), usual, atol=0.03)


@pytest.mark.parametrize("name", ["VanillaRNN", "SimpleLSTM"])
def test_low_parameters_make_low_outputs_and_wide_states(name):
    model = OURS[name](I, H, O, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    outputs, states = jax.eval_shape(model, jax.ShapeDtypeStruct((B, T, I), jnp.bfloat16))
    assert outputs.dtype == jnp.bfloat16
    assert {state.dtype for state in jax.tree.leaves(states)} == {jnp.dtype("float32")}


def test_dropout_zeroes_three_tenths_in_training_only():
    model = models.SequenceClassifier(V, I, H, O, rngs=nnx.Rngs(0))
    seen = []
    model.fc = nnx.data(lambda h: seen.append(np.asarray(h)) or h)
    tokens = RNG.integers(0, V, (500, 2))
    model(tokens)
    model(tokens)
    model.eval()
    model(tokens)
    first, second, whole = seen
    assert 0.25 < (first == 0).mean() < 0.35
    assert ((first == 0) != (second == 0)).any()
    np.testing.assert_allclose(first[first != 0], whole[first != 0] / 0.7, rtol=1e-5)


def test_initial_parameters_follow_pytorchs_distributions():
    theirs, ours = twins("SequenceClassifier", 200, 10, 20, 30)
    mine = interchange.state_dict(ours)
    for key, its in theirs.state_dict().items():
        np.testing.assert_allclose(mine[key].std(), its.std(), rtol=0.4, err_msg=key)
        np.testing.assert_allclose(np.abs(mine[key]).max(), its.abs().max(), rtol=0.3, err_msg=key)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: models.RNNComparison(I, H, O, "Lstm", rngs=nnx.Rngs(0)),
            r"^`RNNComparison\(rnn_type='Lstm'\)` needs 'RNN', 'LSTM' or 'GRU'\.$",
        ),
        (
            lambda: torch_ref.models.RNNComparison(I, H, O, "Lstm"),
            "needs rnn_type RNN, LSTM or GRU, got 'Lstm'",
        ),
        (
            lambda: models.SimpleLSTM(I, H, O, rngs=nnx.Rngs(0))(jnp.zeros((B, T, I))),
            "RNN input dtype .float64. does not match weight dtype .float32.",
        ),
        (
            lambda: models.SimpleLSTM(I, H, O, rngs=nnx.Rngs(0))(jnp.zeros((B, I))),
            r"`SimpleLSTM\(input_size=5\)` needs inputs of shape \(B, T, 5\), got \(4, 5\)\.",
        ),
        (
            lambda: models.VanillaRNN(I, H, O, dtype="float32", rngs=nnx.Rngs(0))(X, H0[:2]),
            "`VanillaRNN` needs hidden of shape \\(4, 5\\)",
        ),
        (
            lambda: models.SequenceClassifier(V, I, H, O, rngs=nnx.Rngs(0))(jnp.zeros((B, T))),
            r"needs integer tokens of shape \(B, T\), got float64 of shape \(4, 6\)",
        ),
        (
            lambda: models.SequenceClassifier(V, I, H, O, rngs=nnx.Rngs(0))(TOKENS, [7, 1, 1, 1]),
            r"`lengths` must be in \[0, T\] = \[0, 6\], got 7 in row 0",
        ),
    ],
)
def test_invalid_arguments_raise_one_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
