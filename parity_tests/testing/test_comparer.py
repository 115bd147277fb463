"""The comparer accepts modules that agree, and rejects inputs that it cannot compare."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch.nn import functional as F

import jaxrnn
from jaxrnn import interchange
from jaxrnn.testing import assert_parity, compare, compare_training

T, B, I, H = 4, 3, 5, 5  # I = H: a transposed matrix has the right shape
RNG = np.random.default_rng(0)
X, H0, C0 = RNG.normal(size=(T, B, I)), RNG.normal(size=(1, B, H)), RNG.normal(size=(1, B, H))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def rngs():
    return nnx.Rngs(0)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "options", "lengths"),
    [
        ("RNN", {"nonlinearity": "relu", "batch_first": True}, [3, 1]),
        ("LSTM", {"bidirectional": True, "proj_size": 2}, [2, 0, 4]),
        ("GRU", {"bias": False, "batch_first": True}, [0, 4, 1]),
    ],
)
def test_layers_agree(name, options, lengths, dtype):
    theirs = getattr(torch.nn, name)(I, H, **options)
    ours = getattr(jaxrnn, name)(I, H, **options, rngs=rngs())
    x = RNG.normal(size=(len(lengths), T, I) if "batch_first" in options else (T, len(lengths), I))
    x[(0, 3) if "batch_first" in options else (3, 0)] = np.nan  # padding
    report = assert_parity(theirs, ours, x, lengths=lengths, dtype=dtype)
    states = ["h_n", "c_n"] if name == "LSTM" else ["h_n"]
    parameters = [key for key, _ in theirs.named_parameters()]
    assert [row.name for row in report.rows] == ["output", *states, "loss", *parameters, "input"]


@pytest.mark.parametrize("name", ["RNNCell", "LSTMCell", "GRUCell"])
def test_cells_agree(name):
    theirs, ours = getattr(torch.nn, name)(I, H), getattr(jaxrnn, name)(I, H, rngs=rngs())
    hx = (H0[0], C0[0]) if name == "LSTMCell" else H0[0]
    report = assert_parity(theirs, ours, X[0], hx=hx)
    assert {"h_1", "h_0", "weight_hh"} <= {row.name for row in report.rows}


def test_unbatched_rows_agree_with_and_without_states():
    theirs, ours = torch.nn.LSTM(I, H), jaxrnn.LSTM(I, H, rngs=rngs())
    assert_parity(theirs, ours, X[:, 0], hx=(H0[:, 0], C0[:, 0]), lengths=np.array(2))
    assert_parity(theirs, ours, torch.from_numpy(X[:, 0]), lengths=jnp.array(0), dtype="float32")


class Theirs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(7, I)
        self.lstm = torch.nn.LSTM(I, H, batch_first=True)
        self.fc = torch.nn.Linear(H, 2)

    def forward(self, tokens):
        logits = self.fc(self.lstm(self.embed(tokens))[0])
        return {"logits": logits, "classes": logits.argmax(-1)}


class Ours(nnx.Module):
    def __init__(self):
        self.embed = nnx.Embed(7, I, rngs=rngs())
        self.lstm = jaxrnn.LSTM(I, H, batch_first=True, rngs=rngs())
        self.fc = nnx.Linear(H, 2, rngs=rngs())

    def __call__(self, tokens):
        logits = self.fc(self.lstm(self.embed(tokens))[0])
        return {"logits": logits, "classes": logits.argmax(-1)}


TOKENS = RNG.integers(0, 7, (B, T))
LABELS = RNG.integers(0, 2, B)


def test_a_users_model():
    report = assert_parity(Theirs(), Ours(), TOKENS)
    assert {"output['logits']", "embed.weight", "fc.bias"} <= {row.name for row in report.rows}
    assert report["output['classes']"].tolerance == 0
    assert "lstm.weight_hh_l0" in str(report)


def test_the_users_modules_are_unchanged():
    theirs, ours = Theirs(), Ours()
    before = [{k: v.clone() for k, v in theirs.state_dict().items()}, interchange.state_dict(ours)]
    compare(theirs, ours, TOKENS, noise=0.5)
    after = [theirs.state_dict(), interchange.state_dict(ours)]
    for old, new in zip(before, after, strict=True):
        for name in old:
            assert old[name].dtype == new[name].dtype
            assert np.array_equal(old[name], new[name])
    assert theirs.training
    assert ours.embed.dtype == jnp.float32


def test_noise_changes_every_parameter_and_zero_noise_none():
    theirs, seen = torch.nn.Linear(I, H), []

    def call(module, x):
        seen.append({k: v.detach().clone() for k, v in module.named_parameters()})
        return module(x)

    for noise in (0.0, 0.1):
        assert_parity(theirs, nnx.Linear(I, H, rngs=rngs()), X, noise=noise, torch_call=call)
    for name, value in theirs.named_parameters():
        assert (seen[0][name] == value.double()).all()
        assert (seen[1][name] != value.double()).all()


def test_float64_needs_no_flag():
    with jax.enable_x64(False):
        report = assert_parity(torch.nn.GRU(I, H), jaxrnn.GRU(I, H, rngs=rngs()), X)
        assert jnp.ones(()).dtype == jnp.float32
    assert report["output"].max_abs < 1e-15


def test_shared_parameters_have_one_row():
    theirs = torch.nn.Sequential(torch.nn.Embedding(7, I), torch.nn.Linear(I, 7, bias=False))
    theirs[1].weight = theirs[0].weight

    class Tied(nnx.Module):
        def __init__(self):
            self.layers = nnx.List([nnx.Embed(7, I, rngs=rngs())])

        def __call__(self, tokens):
            return self.layers[0].attend(self.layers[0](tokens))

    with pytest.raises(ValueError, match=r"only in JAX: `layers\.0\.weight`"):
        compare(theirs, Tied(), TOKENS)
    theirs = torch.nn.ModuleDict({"layers": theirs})
    report = assert_parity(theirs, Tied(), TOKENS, torch_call=lambda m, tokens: m["layers"](tokens))
    assert [row.name for row in report.rows] == ["output", "loss", "layers.0.weight"]


def test_errors_against_float64_catch_lost_precision():
    theirs, ours = torch.nn.LSTM(I, H), jaxrnn.LSTM(I, H, rngs=rngs())
    report = assert_parity(theirs, ours, X, dtype="float32", against="float64")
    assert all(row.error_ratio <= 3 for row in report.rows)

    def coarse(module, x):
        return module(x.astype(jnp.bfloat16).astype(x.dtype))

    report = compare(theirs, ours, X, dtype="float32", against="float64", jax_call=coarse)
    assert not report["output"].ok
    assert "ratio" in str(report)


@pytest.mark.parametrize("steps", [1, 20])
def test_training_agrees_and_another_learning_rate_does_not(steps):
    def loss(module, tokens, labels):
        return F.cross_entropy(module(tokens)["logits"][:, -1], labels)

    def our_loss(module, tokens, labels):
        logits = module(tokens)["logits"][:, -1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def train(rate):
        return compare_training(
            Theirs(),
            Ours(),
            [(TOKENS, LABELS), (TOKENS[::-1], LABELS)],
            lambda parameters: torch.optim.SGD(parameters, lr=0.1),
            optax.sgd(rate),
            steps=steps,
            torch_call=loss,
            jax_call=our_loss,
        )

    report = train(0.1)
    assert report.ok, report
    assert report["loss"].shape == (steps,)
    assert not train(0.1 + 1e-7)["lstm.bias_hh_l0"].ok


def test_integer_outputs_must_be_equal():
    def shifted(module, tokens):
        outputs = module(tokens)
        return outputs | {"classes": outputs["classes"].at[-1, -1].set(5)}

    failures = compare(Theirs(), Ours(), TOKENS, jax_call=shifted).failures
    assert [row.name for row in failures] == ["output['classes']"]


class Extra(jaxrnn.GRU):
    def __init__(self):
        super().__init__(I, H, rngs=rngs())
        self.extra = nnx.Param(jnp.zeros(2))


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        (
            lambda: jaxrnn.GRU(I, H, bias=False, rngs=rngs()),
            r"4 in PyTorch, 2 in JAX.*`bias_hh_l0`",
        ),
        (Extra, r"only in JAX: `extra` \(2,\)"),
        (lambda: jaxrnn.GRU(I + 1, H, rngs=rngs()), r"`weight_ih_l0` is \(15, 5\) in PyTorch"),
    ],
)
def test_different_parameters_are_listed(ours, message):
    with pytest.raises(ValueError, match=message):
        compare(torch.nn.GRU(I, H), ours(), X)


def test_different_outputs_are_listed():
    twins = torch.nn.GRU(I, H), jaxrnn.GRU(I, H, rngs=rngs())
    with pytest.raises(ValueError, match=r"outputs differ \(2 in PyTorch, 1 in JAX\)"):
        compare(*twins, X, jax_call=lambda m, x: m(x)[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "got dtype='float16'"),
        ({"against": "float64"}, "needs a dtype below float64"),
        ({"train": True}, r"dropout at 0 or 1.* got 0\.3 in `LSTM`"),
    ],
)
def test_invalid_arguments_are_refused(options, message):
    twins = torch.nn.LSTM(I, H, 2, dropout=0.3), jaxrnn.LSTM(I, H, 2, dropout=0.3, rngs=rngs())
    with pytest.raises(ValueError, match=message):
        compare(*twins, X, **options)


def test_dropout_is_compared_at_one_in_training_and_is_off_otherwise():
    twins = torch.nn.RNN(I, H, 2, dropout=1.0), jaxrnn.RNN(I, H, 2, dropout=1.0, rngs=rngs())
    assert_parity(*twins, X, train=True)
    assert_parity(*twins, X)
    with pytest.raises(AssertionError, match="output, h_n, loss"):
        assert_parity(*twins, X, jax_call=lambda m, x: (m.train(), m(x))[1])


def test_without_torch_the_error_is_one_sentence():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import jaxrnn.testing, numpy as np\n"
        "from flax import nnx\n"
        "jaxrnn.testing.compare(None, nnx.Linear(2, 2, rngs=nnx.Rngs(0)), np.ones((2, 2)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: `jaxrnn.testing` compares with PyTorch, which is not")
    assert "pip install 'jaxrnn[torch]'" in last
