"""The CUDA kernels, run by the emulator, against float64: no GPU is needed."""

import itertools
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import emulated
from jaxrnn import strategies
from jaxrnn.cells import Weights
from jaxrnn.native import cuda as device_code
from jaxrnn.native.cuda import calls
from jaxrnn.strategies.native import CELLS

if device_code.library() is None:
    pytest.skip("this build of jaxrnn has no CUDA kernels", allow_module_level=True)
if shutil.which("g++") is None:
    pytest.skip("the emulator needs g++", allow_module_level=True)

STEPS = 6
BARS = {calls.BF16: 2e-2, calls.TF32: 3e-3, calls.FLOAT32: 5e-6}
TANH, RELU, LSTM, GRU = range(4)


def case(cell, precision, hidden, batch, **options):
    padded = device_code.padded(hidden)
    problem = cell, precision, padded, batch
    return SimpleNamespace(
        cell=cell,
        precision=precision,
        hidden=hidden,
        batch=batch,
        problem=problem,
        options=options,
    )


# Digits of `form`: weights in shared memory, unit tiles, row tiles, warps (0: chosen), CTAs that
# split K, CTAs on an SM.
GROUPS = {"form": 11011}
CASES = {
    "lstm bf16": case(LSTM, calls.BF16, 64, 5, **GROUPS),
    "lstm tf32": case(LSTM, calls.TF32, 20, 5, **GROUPS),
    "lstm float32": case(LSTM, calls.FLOAT32, 20, 5, **GROUPS),
    "gru bf16": case(GRU, calls.BF16, 20, 5, **GROUPS),
    "gru tf32": case(GRU, calls.TF32, 20, 5, **GROUPS),
    "gru float32": case(GRU, calls.FLOAT32, 64, 5, **GROUPS),
    "tanh float32": case(TANH, calls.FLOAT32, 20, 5, **GROUPS),
    "relu bf16": case(RELU, calls.BF16, 20, 5, **GROUPS),
    "weights of groups in shared memory": case(LSTM, calls.TF32, 128, 19, form=121411, sms=8),
    "alone: lstm float32": case(LSTM, calls.FLOAT32, 20, 2, form=811),
    "alone: gru bf16": case(GRU, calls.BF16, 64, 1, form=812),
    "alone: gru tf32": case(GRU, calls.TF32, 128, 2, form=811),
    "alone: weights in shared memory": case(LSTM, calls.BF16, 128, 1, form=811),
    "alone: eight units a thread": case(TANH, calls.FLOAT32, 256, 1, form=811),
    "two groups, a tail of rows": case(LSTM, calls.BF16, 64, 19, form=11211, sms=16),
    "two sub-tiles": case(GRU, calls.FLOAT32, 64, 19, form=11411, sms=8),
    "two launches": case(LSTM, calls.BF16, 64, 19, form=41211, sms=2, smem=37_000),
    "split K": case(LSTM, calls.FLOAT32, 64, 5, form=11221, sms=16),
    "split K and sub-tiles": case(GRU, calls.BF16, 64, 19, form=11121, sms=8),
    "two tiles of units and of rows": case(LSTM, calls.BF16, 64, 37, form=22211, sms=8),
    "warps without a cell": case(LSTM, calls.TF32, 128, 5, form=11811),
    "cells that do not fill the threads": case(GRU, calls.BF16, 192, 17, form=21611, sms=24),
}


RUNS = [
    *itertools.product(CASES, ["dense"], [False]),
    *((name, "lengths", True) for name in list(CASES)[:3]),
    ("gru float32", "lengths", False),
    ("two sub-tiles", "any", False),
    ("lstm float32", "dense", True),
    *(("lstm float32", "resets", reverse) for reverse in (False, True)),
    ("lstm bf16", "resets", False),
    ("gru tf32", "resets", True),
    ("tanh float32", "resets", True),
    ("relu bf16", "resets", True),
    ("two sub-tiles", "resets", False),
    ("split K", "resets", False),
    ("split K and sub-tiles", "resets", True),
    ("two launches", "resets", False),
    ("two tiles of units and of rows", "resets", True),
    ("cells that do not fill the threads", "resets", False),
    ("weights of groups in shared memory", "resets", True),
    ("alone: lstm float32", "any", True),
    ("alone: lstm float32", "resets", False),
    ("alone: gru tf32", "resets", True),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    needed = {(name, kind != "dense") for name, kind, _ in RUNS}
    instances = {i for name, ragged in needed for i in emulated.instances_of(CASES[name], ragged)}
    return emulated.build(instances, tmp_path_factory.mktemp("emulator"))


def arrays_of(c, seed=0):
    """Weights, x, carry and cotangents in float64, exact in the case's dtype of products."""
    rng = np.random.default_rng(seed)
    cell, io = CELLS[c.cell], jnp.bfloat16 if c.precision == calls.BF16 else jnp.float32

    def draw(*shape, scale=1.0):
        drawn = rng.standard_normal(shape) * scale
        return jnp.asarray(drawn).astype(io).astype(jnp.float64)

    rows, h = cell.gates * c.hidden, c.hidden
    weights = Weights(
        draw(rows, 3, scale=0.5), draw(rows, h, scale=h**-0.5), draw(rows), draw(rows, scale=0.3)
    )
    states = tuple(draw(c.batch, h, scale=0.5) for _ in range(cell.states))
    weights = weights._replace(initial=states)  # to which rows are reset
    x = draw(STEPS, c.batch, 3)
    carry = tuple(draw(c.batch, h, scale=0.5) for _ in range(cell.states))
    d_ys = draw(STEPS, c.batch, h)
    d_last = tuple(draw(c.batch, h) for _ in range(cell.states))
    return weights, x, carry, (d_ys, d_last)


def mask_of(kind, batch):
    if kind == "dense":
        return None
    rng = np.random.default_rng(1)
    if kind == "lengths":
        lengths = rng.integers(0, STEPS + 1, batch)
        lengths[0], lengths[-1] = 0, STEPS
        return jnp.arange(STEPS)[:, None] < lengths[None, :]
    if kind == "resets":
        drawn = rng.integers(0, 3, (STEPS, batch))
        if batch > 2:
            drawn[:, 0], drawn[:, 1] = strategies.HOLD, strategies.RESET
        return jnp.asarray(drawn, jnp.uint8)
    return jnp.asarray(rng.random((STEPS, batch)) < 0.6)


def in_dtypes(c, weights, x, carry, cotangents):
    io = jnp.bfloat16 if c.precision == calls.BF16 else jnp.float32
    to = lambda dtype, tree: jax.tree.map(lambda a: a.astype(dtype), tree)  # noqa: E731
    states = to(jnp.float32, weights.initial)
    weights = to(io, weights)._replace(initial=states)
    return weights, to(io, x), to(jnp.float32, carry), to(jnp.float32, cotangents)


def direction_of(c, reverse):
    precision = "highest" if c.precision == calls.FLOAT32 else None
    return calls.Direction(CELLS[c.cell], c.cell, precision, reverse)


def run(c, device, monkeypatch, arrays, mask, reverse):
    """The kernels' outputs and cotangents, as one flat dict."""
    monkeypatch.setattr(jax.ffi, "ffi_call", device.ffi_call)
    weights, x, carry, cotangents = in_dtypes(c, *arrays)
    direction = direction_of(c, reverse)
    ys, last, gates, cs = calls.forward(direction, True, weights, x, carry, mask)
    fixed = weights, x, carry, mask, ys, gates, cs
    dweights, dx, dcarry = calls.adjoint(direction, fixed, cotangents)
    return named(ys, last, dweights, dx, dcarry)


def named(ys, last, dweights, dx, dcarry):
    out = {"ys": ys, "dx": dx}
    out |= {f"last {i}": a for i, a in enumerate(last)}
    named_weights = zip(Weights._fields[:4], dweights[:4], strict=True)
    out |= {f"d{n}": a for n, a in named_weights}
    out |= {f"dreset {i}": a for i, a in enumerate(dweights.initial)}
    return out | {f"dcarry {i}": a for i, a in enumerate(dcarry)}


def expected(c, arrays, mask, reverse):
    weights, x, carry, cotangents = arrays
    turn = lambda a: a[::-1] if reverse and a is not None else a  # noqa: E731

    def layer(weights, x, carry):
        ys, last = strategies.Scan()(CELLS[c.cell], weights, turn(x), carry, turn(mask))
        return turn(ys), last

    (ys, last), pull = jax.vjp(layer, weights, x, carry)
    dweights, dx, dcarry = pull(cotangents)
    return named(ys, last, dweights, dx, dcarry)


def expected_of_branches(taken, arrays, mask, reverse):
    """relu's results, given at each step which units are above 0."""
    weights, x, carry, cotangents = arrays
    kinds = jnp.full(x.shape[:2], strategies.RUN) if mask is None else mask

    def layer(weights, x, carry):
        (h,), (initial,), ys = carry, weights.initial, [None] * STEPS
        for t in reversed(range(STEPS)) if reverse else range(STEPS):
            kind = kinds[t][:, None]
            before = jnp.where(kind == strategies.RESET, initial, h)
            gh = before @ weights.hh.T + weights.b_hh[None]
            new = jnp.where(taken[t], x[t] @ weights.ih.T + weights.b_ih[None] + gh, 0.0)
            h = jnp.where(kind == strategies.HOLD, h, new)
            ys[t] = jnp.where(kind == strategies.HOLD, 0.0, new)
        return jnp.stack(ys), (h,)

    (ys, last), pull = jax.vjp(layer, weights, x, carry)
    dweights, dx, dcarry = pull(cotangents)
    return named(ys, last, dweights, dx, dcarry)


def compare(found, wanted, bar):
    for name, a in wanted.items():
        error = jnp.linalg.norm((found[name].astype(jnp.float64) - a).ravel())
        assert error <= bar * jnp.linalg.norm(a.ravel()), name


@pytest.mark.parametrize(("name", "kind", "reverse"), RUNS)
def test_against_float64(name, kind, reverse, library, monkeypatch):
    c = CASES[name]
    arrays, mask = arrays_of(c), mask_of(kind, c.batch)
    wanted = expected(c, arrays, mask, reverse)
    device = emulated.Device(library, **c.options)
    found = run(c, device, monkeypatch, arrays, mask, reverse)
    if c.cell == RELU:
        # Its derivative jumps where rounding moves a sum across 0: count these, and compare with
        # the derivative of the branches that were taken.
        taken = found["ys"] > 0
        assert jnp.mean(taken != (wanted["ys"] > 0)) < 0.01
        wanted = expected_of_branches(taken, arrays, mask, reverse)
    compare(found, wanted, BARS[c.precision])
    assert not device.failed.any()


def test_a_cta_that_never_writes_ends_in_nan_and_a_flag(library, monkeypatch):
    c = CASES["lstm bf16"]
    device = emulated.Device(library, mute=1, patience=20, **c.options)
    found = run(c, device, monkeypatch, arrays_of(c), None, False)
    assert jnp.isnan(found["ys"]).any()
    assert device.failed.all()


def test_nan_in_an_input_spreads_and_nobody_waits(library, monkeypatch):
    c = CASES["gru float32"]
    weights, x, (h,), cotangents = arrays_of(c)
    ones = jnp.asarray(np.array(-1).astype(np.int64).view(np.float64))  # the pattern of the poison
    arrays = weights, x.at[2, 0].set(jnp.nan), (h.at[1].set(ones),), cotangents
    device = emulated.Device(library, **c.options)
    found = run(c, device, monkeypatch, arrays, None, False)
    wanted = expected(c, arrays, None, False)
    assert jnp.array_equal(jnp.isnan(found["ys"]), jnp.isnan(wanted["ys"]))
    assert not device.failed.any()
