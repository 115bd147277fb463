"""Settings that explain a disagreement are named; modules that resist copying are compared."""

import copy
import threading

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from jaxrnn.testing import compare
from jaxrnn.testing.copies import copied

TOKENS = np.array([[1, 2, 0], [4, 0, 0]])
X = np.random.default_rng(0).normal(size=(6, 4))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
    # Flax's normalisations promote their input to float32 at least.
    with jax.numpy_dtype_promotion("standard"):
        yield


def rngs():
    return nnx.Rngs(0)


def embedding(**options):
    return torch.nn.Embedding(5, 3, **options), nnx.Embed(5, 3, rngs=rngs()), TOKENS


def normed(theirs, ours):
    linear = torch.nn.Linear(4, 4), nnx.Linear(4, 4, rngs=rngs())
    return torch.nn.Sequential(linear[0], theirs), nnx.Sequential(linear[1], ours), X


def gelu(approximate, ours):
    class Theirs(torch.nn.Linear):
        def forward(self, x):
            return torch.nn.functional.gelu(super().forward(x), approximate=approximate)

    class Ours(nnx.Linear):
        def __call__(self, x):
            return ours(super().__call__(x))

    return Theirs(4, 4), Ours(4, 4, rngs=rngs()), X


CASES = {
    "padding_idx": (lambda: embedding(padding_idx=0), "padding_idx=0: PyTorch gives that row no"),
    "scale_grad_by_freq": (
        lambda: embedding(scale_grad_by_freq=True),
        "scale_grad_by_freq=True: PyTorch divides",
    ),
    "max_norm": (lambda: embedding(max_norm=0.1), "max_norm=0.1: PyTorch rescales"),
    "LayerNorm": (
        lambda: normed(torch.nn.LayerNorm(4), nnx.LayerNorm(4, rngs=rngs())),
        "`1` has eps=1e-05 in PyTorch and epsilon=1e-06 in JAX",
    ),
    "BatchNorm": (
        lambda: normed(torch.nn.BatchNorm1d(4), nnx.BatchNorm(4, epsilon=1e-3, rngs=rngs())),
        "`1` has momentum=0.1 in PyTorch, which is momentum=0.9 in Flax, not 0.99",
    ),
    "exact GELU": (lambda: gelu("none", jax.nn.gelu), "exact GELU and JAX computes no erf"),
    "tanh GELU": (
        lambda: gelu("tanh", lambda x: jax.nn.gelu(x, approximate=False)),
        "tanh form of GELU",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_setting_is_named(case):
    twins, sentence = CASES[case]
    report = compare(*twins())
    assert not report.ok
    found = next(s for s in report.suspects if sentence in s)
    assert f"suspect: {found}" in str(report)


def test_agreement_and_another_fault_name_no_setting():
    twins = gelu("none", lambda x: jax.nn.gelu(x, approximate=False))
    assert compare(*twins).suspects == ()
    report = compare(*twins, jax_call=lambda m, x: 2 * m(x))
    assert not report.ok
    assert report.suspects == ()
    report = compare(*embedding(padding_idx=3), jax_call=lambda m, x: 2 + m(x))
    assert [row.name for row in report.failures] == ["output", "loss"]
    assert report.suspects == ()  # no token is 3, so its row has no gradient anyway


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_a_module_that_deepcopy_rejects_is_copied():
    normed = torch.nn.utils.weight_norm(torch.nn.Linear(4, 3))
    normed.lock = threading.Lock()
    model = torch.nn.Sequential(normed, torch.nn.Linear(3, 2))
    x = torch.tensor(X, dtype=torch.float32)
    before = model(x)  # the weight now has a grad_fn
    with pytest.raises((RuntimeError, TypeError)):
        copy.deepcopy(model)
    twin = copied(model)
    assert twin[0].lock is normed.lock
    assert torch.equal(twin(x), before)
    with torch.no_grad():
        twin[0].weight_g.mul_(2)
        twin[1].bias.add_(1)
    assert not torch.equal(twin(x), before)
    assert torch.equal(model(x), before)
    loss = twin(x).sum()
    assert torch.autograd.grad(loss, twin[0].weight_v)[0].abs().max() > 0


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_weight_norm_of_old_style_is_compared():
    class Ours(nnx.Module):
        def __init__(self):
            key = jax.random.key(0)
            self.weight_g = nnx.Param(jax.random.normal(key, (3, 1)))
            self.weight_v = nnx.Param(jax.random.normal(key, (3, 4)))
            self.bias = nnx.Param(jax.random.normal(key, (3,)))

        def __call__(self, x):
            v = self.weight_v[...]
            w = self.weight_g[...] * v / (v**2).sum(1, keepdims=True) ** 0.5
            return x @ w.T + self.bias[...][None]

    theirs = torch.nn.utils.weight_norm(torch.nn.Linear(4, 3))
    theirs(torch.tensor(X, dtype=torch.float32))
    report = compare(theirs, Ours(), X)
    assert report.ok, report
