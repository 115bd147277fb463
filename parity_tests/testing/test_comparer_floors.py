"""Gradients that cancel are judged by floors of their own: no false alarm, no miss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from jax import lax

import jaxrnn
from jaxrnn.testing import assert_parity, compare, compare_training, operations
from jaxrnn.testing.rounding import Floor, floors
from jaxrnn.testing.verdicts import judge

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 7, 3))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    # Flax's normalisations promote their input to float32 at least.
    with jax.numpy_dtype_promotion("standard"):
        yield


class Theirs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.bn = torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)
        self.gru, self.head = torch.nn.GRU(4, 5, batch_first=True), torch.nn.Linear(5, 2)

    def forward(self, x):
        y = self.bn(self.lin(x).transpose(1, 2)).transpose(1, 2)
        return self.head(self.gru(y)[0])


class Ours(nnx.Module):
    def __init__(self, factor=1.0):
        rngs = nnx.Rngs(0)
        self.lin = nnx.Linear(3, 4, rngs=rngs)
        self.bn = nnx.BatchNorm(4, momentum=0.9, epsilon=1e-5, rngs=rngs)
        self.gru = jaxrnn.GRU(4, 5, batch_first=True, rngs=rngs)
        self.head = nnx.Linear(5, 2, rngs=rngs)
        self.factor = factor

    def __call__(self, x):
        y = self.gru(self.bn(self.lin(x)))[0]
        fixed = lax.stop_gradient(y)
        return self.head(fixed + (y - fixed) * self.factor)


@pytest.mark.parametrize(
    ("dtype", "against"),
    [("float64", None), ("float32", None), ("float32", "float64"), ("bfloat16", None)],
)
def test_a_bias_before_batch_norm_hides_no_wrong_gradient(dtype, against):
    options = {"dtype": dtype, "against": against, "train": True}
    report = assert_parity(Theirs(), Ours(), X, **options)
    assert report["lin.bias"].note == "cancels"
    assert report.verdict.endswith("rounding alone in lin.bias")
    assert "cancels" in str(report)
    others = [row.note for row in report.rows if row.name != "lin.bias"]
    assert "cancels" not in others
    factor = 0.5 if dtype == "bfloat16" else 1.001
    failed = {row.name for row in compare(Theirs(), Ours(factor), X, **options).failures}
    assert failed >= {"lin.weight", "bn.weight", "bn.bias", "gru.weight_hh_l0", "input"}
    assert not failed & {"lin.bias", "head.weight", "output"}


def test_a_value_far_above_the_floor_is_wrong():
    def call(module, x):
        bias = module.lin.bias
        fixed = lax.stop_gradient(bias[...])
        leak = (bias[...] - fixed).sum() * jnp.asarray(1e-10, fixed.dtype)
        return module(x) + leak

    report = compare(Theirs(), Ours(), X, train=True, jax_call=call)
    assert [row.name for row in report.failures] == ["lin.bias"]
    assert report["lin.bias"].note == "cancels"


class TheirAttention(torch.nn.Module):
    def __init__(self, fused):
        super().__init__()
        self.query, self.key = torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)
        self.fused = fused

    def forward(self, x):
        q, k = self.query(x), self.key(x)
        if self.fused:
            return torch.nn.functional.scaled_dot_product_attention(q, k, x, scale=1.0)
        return (q @ k.transpose(-1, -2)).softmax(-1) @ x


class OurAttention(nnx.Module):
    def __init__(self):
        self.query, self.key = (nnx.Linear(3, 4, rngs=nnx.Rngs(0)) for _ in range(2))

    def __call__(self, x):
        return nnx.softmax(self.query(x) @ self.key(x).swapaxes(-1, -2)) @ x


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_the_key_bias_of_attention_cancels(dtype, fused):
    report = assert_parity(TheirAttention(fused), OurAttention(), X, dtype=dtype)
    assert report["key.bias"].note == "cancels"


def test_the_sum_of_a_softmax_is_rounded():
    """An error in it is one of the whole row: a sum over the row does not cancel."""
    x, dy = (torch.tensor(RNG.normal(size=(50, 100))) for _ in range(2))

    def run():
        leaf = x.clone().requires_grad_()
        (dx,) = torch.autograd.grad(leaf.softmax(-1), leaf, dy + 100.0)
        return {"rows": dx.sum(-1).numpy()}

    # 100 terms add to a sum of 100; the rounding of the terms alone gives about 1 in place of 4.
    assert floors(run, run(), "float32")["rows"].element > 4 * 100 * 2.0**-24


def test_training_with_a_gradient_that_cancels():
    theirs = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    bn = nnx.BatchNorm(4, momentum=0.9, epsilon=1e-5, rngs=nnx.Rngs(1))
    ours = nnx.Sequential(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), bn)

    def train(rate):
        return compare_training(
            theirs,
            ours,
            [(X[0],)],
            # With a tiny eps, Adam turns rounding noise into full steps.
            lambda parameters: torch.optim.Adam(parameters, lr=1e-2, eps=1e-30),
            optax.adam(rate, eps=1e-30),
            train=True,
        )

    report = train(1e-2)
    assert report.ok, report
    assert report["0.bias"].note == "ill-conditioned"
    assert {"0.weight", "1.bias"} <= {row.name for row in train(1.001e-2).failures}


# The floor


def sums(dtype, *terms):
    """The floors of sums, each of one tensor."""

    def run():
        return {i: torch.tensor(x, dtype=torch.float64).sum().numpy() for i, x in enumerate(terms)}

    return {key: floor.element for key, floor in floors(run, run(), dtype).items()}


def test_the_floor_of_a_sum_is_the_rounding_of_its_terms():
    x = RNG.normal(size=1000)
    for dtype, unit in (("float64", 2.0**-53), ("float32", 2.0**-24)):
        alone = sums(dtype, np.r_[x, -x])[0]
        # Sequential addition rounds partial sums of the size sqrt(k), k = 1 ... 2000.
        assert 0.3 < alone / (unit * 2000) < 3
    assert sums("bfloat16", np.r_[x, -x])[0] > 1e3 * sums("float32", np.r_[x, -x])[0]


def test_a_floor_does_not_depend_on_its_neighbours():
    x = RNG.normal(size=100)
    quiet = sums("float32", x)[0]
    assert 0.2 < sums("float32", x, 1e6 * x, x - x)[0] / quiet < 5
    assert sums("float32", x, x - x)[1] == 0


def test_the_terms_of_a_normalisation():
    """The features of a step forwards, and the steps backwards, where weights are summed."""
    aten, x = torch.ops.aten, torch.zeros(5, 2, 4)
    for func, args, wanted in [
        (aten.native_layer_norm.default, (x, [4]), 4),
        (aten.native_layer_norm_backward.default, (x, x, [4]), 10),
        (aten.native_batch_norm.default, (x,), 20),
        (aten.native_batch_norm_backward.default, (x,), 20),
    ]:
        assert operations.terms(func, args, "float32") == wanted
        assert operations.terms(func, args, "bfloat16") == 1


def test_integers_are_exact():
    assert sums("bfloat16", np.arange(100.0))[0] == 0


def test_in_place_operations_and_views_have_floors():
    def run():
        x = torch.tensor(X)
        y = torch.zeros(7, 3, dtype=torch.float64)
        for row in x:
            y[:, 0].add_(row[:, 0] / 3)
        return {"y": y.numpy().copy(), "x": x.numpy().copy()}

    found = floors(run, run(), "float32")
    assert 1e-8 < found["y"].element < 1e-5
    assert found["x"] == (0, 0)


def test_the_2_norm_counts_independent_directions():
    x = RNG.normal(size=400)

    def together():
        # One rounded sum, in 400 elements.
        return {0: (torch.ones(400, dtype=torch.float64) * torch.tensor(x).sum()).numpy()}

    def apart():
        return {0: (torch.tensor(x) * 3.0).sin().numpy()}

    one, many = floors(together, together(), "float32")[0], floors(apart, apart(), "float32")[0]
    assert one.norm == pytest.approx(20 * one.element, rel=0.2)
    assert many.norm < 20 * many.element / 3


def test_a_sum_of_terms_of_one_sign_rounds_partial_sums_of_its_size():
    terms = np.full(10_000, 1.1)
    assert sums("float32", terms)[0] > 20 * 2.0**-24 * terms.sum()


def row(got, ref, floor, norm=None, **options):
    got, ref = np.asarray(got, np.float64), np.asarray(ref, np.float64)
    both = None if floor is None else Floor(floor, floor if norm is None else norm)
    return judge("name", "gradient", got, ref, dtype="float64", steps=1, floor=both, **options)


def test_a_floor_is_a_bound_of_its_own():
    assert not row([1e-10, 1.0], [0, 1.0], None).ok
    assert row([1e-10, 1.0], [0, 1.0], 1e-10).note == "ill-conditioned"
    assert not row([4e-10, 1.0], [0, 1.0], 1e-10).ok
    assert row([1e-16], [0.0], 1e-16).note == "cancels"
    assert not row([4e-16], [0.0], 1e-16).ok
    assert row([1e-16], [0.0], 1e-16, peer_error=0.0).ok
    for floor in (np.nan, np.inf, 1.0):
        assert not row([np.nan], [1.0], floor).ok
    assert not row([2.0], [1.0], np.nan).ok
    assert not row([2.0], [1.0], 1.0, np.nan).ok
    assert row([1.0 + 3e-14], [1.0], 1e-16).excess == pytest.approx(0.6, rel=1e-2)


def test_an_error_in_every_element_is_seen_by_its_2_norm():
    got, ref = np.full(100, 1e-10), np.zeros(100)
    got[0] = ref[0] = 1.0
    assert row(got, ref, 1e-10, 1e-9).ok
    far = row(got, ref, 1e-10, 3e-10)
    assert not far.ok
    assert far.excess == pytest.approx(99**0.5 / 9)
