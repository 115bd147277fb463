"""The command that measures the comparer's error rates, on a small share of its pairs."""

import jax.numpy as jnp
import numpy as np

import mutations
import pairs
import rates

NAMES = list(mutations.parameters(pairs.PAIRS["LSTM, projected"].ours(pairs.SIZES[0])))


def test_a_small_share_of_the_rates():
    found = rates.judge("linear", 0, "float32", seeds=3, verbose=False)
    assert (found.right, found.alarms, found.misses) == (3, 0, 0)
    assert found.wrong >= 5
    assert found.largest < 1 < found.smallest


def test_alarms_are_counted(monkeypatch):
    monkeypatch.setattr(mutations, "call_ours", lambda module, x, edits: 2 * module(x))
    found = rates.judge("linear", 0, "float64", seeds=2, verbose=False)
    assert (found.right, found.alarms, found.misses) == (2, 2, 0)


def test_misses_are_counted(monkeypatch):
    monkeypatch.setattr(mutations, "call_ours", lambda module, x, edits: module(x))
    found = rates.judge("linear", 0, "float64", seeds=1, verbose=False)
    assert found.alarms == 0
    assert found.misses == found.wrong >= 5
    assert found.marked == 0


def test_every_edit_changes_one_place():
    for pair in pairs.PAIRS.values():
        names = list(mutations.parameters(pair.ours(pairs.SIZES[0])))
        assert set(pair.cancels) <= set(names)
        for name, edits in mutations.wrong(pair, names, "float64", 8):
            assert name in names
            right = mutations.no_edits(len(names))
            assert sum((a != b).sum() for a, b in zip(edits, right, strict=True)) == 1


def test_edits_scale_drop_and_exchange_what_they_name():
    s = pairs.SIZES[0]
    pair = pairs.PAIRS["LSTM, projected"]
    x = pair.inputs(s, np.random.default_rng(0))
    for dtype, swapped in (
        ("float64", {"weight_hh_l0"}),
        ("bfloat16", {"weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"}),
    ):
        for name, edits in mutations.wrong(pair, NAMES, dtype, s.hidden):
            module = pair.ours(s)
            before = {k: np.asarray(p[...]) for k, p in mutations.parameters(module).items()}
            mutations.call_ours(module, jnp.asarray(x, jnp.float32), edits)
            for key, parameter in mutations.parameters(module).items():
                wanted = before[key] * edits.keep[NAMES.index(key)]
                if edits.swap.any() and key in swapped:
                    i, f, *rest = np.split(wanted, 4)
                    wanted = np.concatenate([f, i, *rest])
                np.testing.assert_array_equal(parameter[...], wanted, err_msg=f"{name}: {key}")
