"""The comparer detects a single wrong thing at a time, in exactly the rows that it affects."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from jax import lax
from torch.nn import functional as F

import jaxrnn
from jaxrnn import strategies
from jaxrnn.testing import Report, Row, assert_parity, compare, tolerance
from jaxrnn.testing.values import cotangents
from jaxrnn.testing.verdicts import judge

T, B, I, H = 4, 3, 5, 5  # I = H: a transposed matrix has the right shape
RNG = np.random.default_rng(0)
X, H0, C0 = RNG.normal(size=(T, B, I)), RNG.normal(size=(1, B, H)), RNG.normal(size=(1, B, H))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def rngs():
    return nnx.Rngs(0)


@pytest.fixture(autouse=True)
def fast_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def changed(name, change):
    """A call of our module with one parameter changed inside the computation."""

    def call(module, *inputs, **options):
        parameter = getattr(module, name)
        parameter[...] = change(parameter[...])
        return module(*inputs, **options)

    return call


def gradient_of(value, source):
    """`value`, with the derivative of `source`."""
    return source + lax.stop_gradient(value - source)


def swapped_cotangents(module, *inputs, **options):
    y, (h, c) = module(*inputs, **options)
    return y, (gradient_of(h, c), gradient_of(c, h))


def state_of_step_before(module, x, hx):
    y, _ = module(x, hx)
    return y, module(x[:-1], hx)[1]


def b_hn_outside_the_reset_gate(module, x, hx):
    b = jnp.where(jnp.arange(3 * H) < 2 * H, 0, module.bias_hh_l0[...])
    module.bias_ih_l0[...] += b
    module.bias_hh_l0[...] -= b
    return module(x, hx)


MUTATIONS = {
    "two gates swapped": (
        "LSTM",
        changed("weight_hh_l0", lambda w: w[np.r_[H : 2 * H, :H, 2 * H : 4 * H]]),
        ["output", "h_n", "c_n", "weight_hh_l0", "h_0"],
    ),
    "no b_hn": (
        "GRU",
        changed("bias_hh_l0", lambda b: b.at[2 * H :].set(0)),
        ["output", "h_n", "loss", "bias_hh_l0"],
    ),
    "b_hn outside the reset gate": (
        "GRU",
        b_hn_outside_the_reset_gate,
        ["output", "h_n", "bias_hh_l0"],
    ),
    "transposed square weight": (
        "RNN",
        changed("weight_hh_l0", lambda w: w.T),
        ["output", "h_n", "weight_hh_l0", "h_0"],
    ),
    "h_0 ignored": ("GRU", lambda m, x, h: m(x), ["output", "h_0"]),
    "c_0 ignored": (
        "LSTM",
        lambda m, x, hc: m(x, (hc[0], jnp.zeros_like(hc[1]))),
        ["c_n", "c_0"],
    ),
    "state of the step before": ("LSTM", state_of_step_before, ["h_n", "c_n"]),
    "cotangents of h_n and c_n swapped": ("LSTM", swapped_cotangents, ["weight_hh_l0", "c_0"]),
    "one gradient off by 1e-10": (
        "LSTM",
        changed("weight_hh_l0", lambda w: gradient_of(w, w * (1 + 1e-10))),
        ["weight_hh_l0"],
    ),
    "one element of one output": (
        "RNN",
        lambda m, x, h: (lambda y, h_n: (y, h_n.at[0, -1, -1].add(1e-13)))(*m(x, h)),
        ["h_n"],
    ),
    "no gradient of the input": ("RNN", lambda m, x, h: m(lax.stop_gradient(x), h), ["input"]),
    "NaN in one element": (
        "RNN",
        lambda m, x, h: (lambda y, h_n: (y.at[-1, -1, -1].set(jnp.nan), h_n))(*m(x, h)),
        ["output", "loss"],
    ),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutation_is_detected(mutation):
    name, call, rows = MUTATIONS[mutation]
    hx = (H0, C0) if name == "LSTM" else H0
    twins = getattr(torch.nn, name)(I, H), getattr(jaxrnn, name)(I, H, rngs=rngs())
    report = compare(*twins, X, hx=hx, jax_call=call)
    assert not report.ok
    failed = {row.name for row in report.failures}
    assert set(rows) <= failed
    if mutation in ("one gradient off by 1e-10", "no gradient of the input"):
        assert failed == set(rows)
    with pytest.raises(AssertionError, match=f"DISAGREE: {len(failed)} of"):
        assert_parity(*twins, X, hx=hx, jax_call=call)


def test_a_reverse_direction_that_runs_forwards_is_detected():
    def forwards(cell, weights, x, carry, mask=None, *, precision=None, reverse=False):
        return strategies.Scan()(cell, weights, x, carry, mask, precision=precision)

    twins = (
        torch.nn.GRU(I, H, bidirectional=True),
        jaxrnn.GRU(I, H, bidirectional=True, strategy=forwards, rngs=rngs()),
    )
    failed = {row.name for row in compare(*twins, X).failures}
    assert {"output", "h_n", "weight_ih_l0_reverse"} <= failed
    assert "weight_ih_l0" not in failed


def test_leaking_padding_is_detected():
    twins = torch.nn.LSTM(I, H), jaxrnn.LSTM(I, H, rngs=rngs())
    report = compare(*twins, X, lengths=[2, 0, 4], jax_call=lambda m, x, lengths: m(x))
    assert {"output", "h_n", "c_n", "input"} <= {row.name for row in report.failures}


def test_a_wrong_loss_is_detected():
    twins = torch.nn.Linear(I, 2), nnx.Linear(I, 2, rngs=rngs())
    losses = {
        "torch_call": lambda m, x, labels: F.cross_entropy(m(x), labels),
        "jax_call": lambda m, x, labels: optax.softmax_cross_entropy_with_integer_labels(
            m(x), labels
        ).sum(),
    }
    report = compare(*twins, X[0], np.array([0, 1, 1]), **losses)
    assert {row.name for row in report.failures} >= {"output", "loss", "weight", "bias"}


def test_nan_on_both_sides_never_passes():
    x = X.copy()
    x[0, 0, 0] = np.nan
    report = compare(torch.nn.RNN(I, H), jaxrnn.RNN(I, H, rngs=rngs()), x)
    assert not report["output"].ok
    assert not report["weight_ih_l0"].ok


# The measure


def test_tolerance_matches_its_table():
    assert tolerance("float64", 1000, "output") == tolerance("float64", 1, "state") == 1e-14
    assert tolerance("float64", 7, "gradient") == 5e-14
    assert tolerance("float32", 100, "gradient") == 3e-6
    assert tolerance("float32", 101, "gradient") == 1e-5
    assert tolerance("float32", 101, "loss") == 1e-6
    assert tolerance("bfloat16", 7, "output") == 4e-3
    assert tolerance("bfloat16", 7, "gradient") == 1e-2
    assert tolerance("float64", 2000, "gradient") == 1e-13
    assert tolerance("float64", 1, "training") == 1e-12
    assert tolerance("float64", 20, "training") == 1e-9
    for arguments in [("float16", 1, "output"), ("float64", 21, "training"), ("float64", 1, "x")]:
        with pytest.raises(ValueError, match="`tolerance"):
            tolerance(*arguments)


def row(kind, got, ref, **options) -> Row:
    got, ref = np.asarray(got, np.float64), np.asarray(ref, np.float64)
    return judge("name", kind, got, ref, dtype="float64", steps=1, **options)


def test_gradients_are_judged_by_the_largest_element():
    ref, got = np.full((50, 20), 1e-3), np.full((50, 20), 1e-3)
    got[-1, -1] += 1e-16
    assert row("gradient", got, ref).norm_relative == pytest.approx(1e-13, rel=1e-2)
    assert not row("gradient", got, ref).ok
    assert row("output", got, ref).ok
    assert row("output", got + 0.9e-14, ref).ok
    assert not row("output", got + 1.1e-14, ref).ok


def test_zeros_infinities_and_empty_arrays():
    assert row("gradient", np.zeros(3), np.zeros(3)).ok
    assert row("gradient", [0, 1e-20], [0, 0]).norm_relative == np.inf
    assert not row("gradient", [0, 1e-20], [0, 0]).ok
    assert row("gradient", [0, 1e-295], [0, 0]).ok  # what a processor may flush to zero
    assert row("output", [np.inf, 1], [np.inf, 1]).ok
    assert not row("output", [-np.inf, 1], [np.inf, 1]).ok
    assert not row("output", [1, 1], [np.inf, 1]).ok
    assert not row("output", [np.inf, 1], [1, 1]).ok
    for kind in ("output", "gradient"):
        assert not row(kind, [np.nan, 1], [1, 1]).ok
        assert not row(kind, [1, 1], [np.nan, 1]).ok
        assert not row(kind, [np.nan], [np.nan]).ok
        assert not row(kind, [np.nan], [np.nan], peer_error=np.nan).ok
    assert row("output", np.zeros((0, 3)), np.zeros((0, 3))).ok


def test_every_output_has_independent_cotangents():
    drawn = cotangents({"a": (40, 50), "b": (40, 50)}, "float64", 0)
    assert np.abs(np.corrcoef(drawn["a"].ravel(), drawn["b"].ravel())[0, 1]) < 0.1
    assert len(np.unique(drawn["a"])) == 2000
    assert sum((value**2).sum() for value in drawn.values()) == pytest.approx(1, rel=0.1)
    assert cotangents({"": ()}, "float64", 0)[""] == 1


def test_the_text_of_a_report():
    report = compare(torch.nn.RNN(I, H), jaxrnn.RNN(I, H, rngs=rngs()), X)
    lines = str(report).splitlines()
    assert lines[0] == "RNN, float64, T = 4: JAX against PyTorch"
    assert lines[1].split() == ["name", "kind", "shape", "max", "abs", "norm", "rel", "tolerance"]
    assert lines[-1] == "agree: all 8 rows within tolerance"
    assert report.to_markdown().count("\n") == 9
    assert report.worst("gradient").kind == "gradient"
    bad = dataclasses.replace(report["h_n"], max_abs=1.0)
    report = Report("title", (*report.rows[:2], bad))
    assert str(report).endswith("DISAGREE: 1 of 3 rows beyond tolerance: h_n")
    assert "**beyond**" in report.to_markdown()
    assert not Report("title", ()).ok
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.title = ""
