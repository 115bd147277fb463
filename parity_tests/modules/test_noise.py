"""Dropout of several kinds, weight dropout and zoneout: fixed masks, rates, independence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import cells, strategies
from jaxrnn.modules.noise import Masks
from jaxrnn.testing import compare

T, B, I, H = 6, 3, 4, 5
X = np.random.default_rng(0).standard_normal((T, B, I))
KINDS = {
    "between": {"dropout": 0.3},
    "input": {"input_dropout": 0.3, "variational": True},
    "recurrent": {"recurrent_dropout": 0.3},
    "weight": {"weight_dropout": 0.3},
    "zoneout": {"zoneout": (0.1, 0.4)},
    "all": {
        "dropout": 0.3,
        "input_dropout": 0.2,
        "recurrent_dropout": 0.4,
        "weight_dropout": 0.5,
        "zoneout": (0.2, 0.0),
        "variational": True,
    },
}


def lstm(options, *, layers=2, hidden=H, **more):
    more = {"rngs": nnx.Rngs(0, dropout=1), "bidirectional": True} | more
    return jaxrnn.LSTM(I, hidden, layers, **options, **more)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_with_fixed_masks_agrees_with_pytorch(kind):
    """Outputs, states and all gradients, against a loop in PyTorch with the same masks."""
    torch_cells = pytest.importorskip("torch_ref.cells")
    import torch

    options = KINDS[kind]
    ours = lstm(options)
    masks = ours.draw_masks(T, B)
    theirs = torch_cells.Recurrent(torch_cells.CELLS["lstm"], I, H, 2, bidirectional=True)
    held = jax.tree.map(lambda m: torch.from_numpy(np.array(m)), masks)
    theirs.noise = torch_cells.Noise(
        *held,
        rates={
            "between": options.get("dropout", 0),
            "input": options.get("input_dropout", 0),
            "recurrent": options.get("recurrent_dropout", 0),
            "weight": options.get("weight_dropout", 0),
        },
    )

    def jax_call(module, x):
        module.train()
        return module(x, masks=masks)

    report = compare(theirs, ours, X, torch_call=lambda module, x: module(x), jax_call=jax_call)
    assert report.ok, report


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "zoneout" and k != "all"])
def test_evaluation_has_no_dropout_and_each_call_draws_new_masks(kind):
    module, plain = lstm(KINDS[kind]), lstm({})
    jaxrnn.load_state_dict(plain, jaxrnn.state_dict(module))
    x = jnp.asarray(X, jnp.float32)
    first, second = module(x)[0], module(x)[0]
    assert (first != second).any()
    assert (module(x, rngs=nnx.Rngs(5))[0] == module(x, rngs=nnx.Rngs(5))[0]).all()
    module.eval()
    np.testing.assert_array_equal(module(x)[0], plain(x)[0])
    with pytest.raises(ValueError, match="takes masks in training"):
        module(x, masks=Masks())


def test_zoneout_keeps_states_and_uses_the_mean_in_evaluation():
    x = jnp.asarray(X, jnp.float32)
    kept = lstm({"zoneout": (1.0, 1.0)}, bidirectional=False)
    assert (kept(x)[0] == 0).all()
    module = lstm({"zoneout": (0.25, 0.5)}, bidirectional=False, layers=1)
    module.eval()
    h = c = jnp.zeros((B, H), jnp.float32)
    w = module._weights("_l0", I)
    for x_t in x:
        gx, gh = x_t @ w.ih.T + w.b_ih[None], h @ w.hh.T + w.b_hh[None]
        new_h, new_c = cells.lstm.step((h, c), gx, gh)
        h, c = 0.25 * h + 0.75 * new_h, 0.5 * c + 0.5 * new_c
    np.testing.assert_allclose(module(x)[1][0][0], h, atol=1e-6)


def test_rates_and_independence_of_the_masks():
    options = KINDS["all"] | {"zoneout": (0.2, 0.6), "variational": False}
    module = lstm(options, hidden=40)
    masks = module.draw_masks(50, 30)
    keep = {"between": 0.7, "input": 0.8, "recurrent": 0.6, "weight": 0.5}
    found = {k: getattr(masks, k) for k in keep} | dict(zip("hc", masks.zoneout, strict=True))
    for kind, rate in (keep | {"h": 0.2, "c": 0.6}).items():
        mask = np.asarray(found[kind])
        assert abs(mask.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / mask.size)
        for axis in range(mask.ndim):  # no axis shares one mask
            if mask.shape[axis] > 1:
                assert (np.diff(mask.astype(int), axis=axis) != 0).any()
    once = lstm(KINDS["all"]).draw_masks(50, 30)
    assert once.between.shape[1] == once.input.shape[0] == 1


def test_the_masks_of_a_call():
    """A custom strategy records the weights, masks and inputs that the layer passes to it."""
    seen = []

    def spy(cell, weights, x, carry, mask=None, **options):
        seen.append((weights.hh, weights.mask, x))
        return strategies.Scan()(cell, weights, x, carry, mask, **options)

    options = {"recurrent_dropout": 0.5, "weight_dropout": 0.5, "input_dropout": 0.5}
    module = lstm(options | {"variational": True}, strategy=spy, layers=1, bidirectional=False)
    module(jnp.ones((T, B, I), jnp.float32))
    ((hh, mask, x),) = seen
    whole = module.weight_hh_l0[...]
    assert ((hh == 0) | (abs(hh - 2 * whole) < 1e-6)).all()
    assert 0.2 < float((hh == 0).mean()) < 0.8
    assert set(np.unique(mask)) == {0.0, 2.0}
    assert (mask[0] != mask[1]).any()
    assert (x == x[:1]).all()
    assert set(np.unique(x)) == {0.0, 2.0}


def test_native_runs_weight_dropout_and_refuses_recurrent_dropout():
    x = jnp.asarray(X, jnp.float32)
    if not jaxrnn.native.load():
        pytest.skip("jaxrnn was installed without a C++ compiler: there is no CPU kernel")
    native = {"strategy": strategies.Native()}
    lstm({"weight_dropout": 0.5}, **native)(x)
    with pytest.raises(jaxrnn.InputError, match=r"has no recurrent dropout; strategies\.Scan has"):
        lstm({"recurrent_dropout": 0.5}, **native)(x)
    with pytest.raises(jaxrnn.InputError, match="not lstm with zoneout"):
        lstm({"zoneout": 0.5}, **native)(x)


def test_zoneout_is_not_linear_in_the_state():
    parallel = {"strategy": strategies.AssociativeScan(), "rngs": nnx.Rngs(0)}
    module = jaxrnn.Recurrent(cells.min_gru, I, H, zoneout=0.5, **parallel)
    for mode in (module.train, module.eval):
        mode()
        with pytest.raises(jaxrnn.InputError, match="zoneout is not; strategies"):
            module(jnp.asarray(X, jnp.float32))


@pytest.mark.parametrize(
    ("cell", "options", "said"),
    [
        (cells.lstm, {"zoneout": (0.1, 0.1, 0.1)}, "one for each of the 2 states"),
        (cells.lstm, {"recurrent_dropout": 1.5}, "needs a probability in"),
        (cells.lstm, {"zoneout": True}, "needs a probability in"),
        (cells.min_gru, {"weight_dropout": 0.5}, "needs W_hh"),
        (cells.lstm, {"zoneout": 0.5, "proj_size": 2}, "zoneout of h must be 0"),
        (cells.lstm, {"variational": 1}, "needs a bool"),
    ],
)
def test_invalid_options_are_refused(cell, options, said):
    with pytest.raises((ValueError, TypeError), match=said):
        jaxrnn.Recurrent(cell, I, H, **options, rngs=nnx.Rngs(0))


def test_masks_of_another_shape_are_refused():
    module = lstm(KINDS["recurrent"])
    with pytest.raises(ValueError, match=r"needs masks as `draw_masks\(6, 3\)` makes them"):
        module(jnp.asarray(X, jnp.float32), masks=module.draw_masks(T, B + 1))
