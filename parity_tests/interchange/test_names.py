"""Names that differ from the module's: prefixes, renaming, parts, training checkpoints."""

import numpy as np
import pytest
import torch
from flax import nnx

import jaxrnn
from jaxrnn import interchange
from jaxrnn.interchange import load_state_dict, state_dict

pytestmark = pytest.mark.core


def found(classes=2):
    """A model with a typical checkpoint, and its PyTorch counterpart."""
    theirs = torch.nn.ModuleDict({"lstm": torch.nn.LSTM(3, 4), "head": torch.nn.Linear(4, classes)})
    rngs = nnx.Rngs(0)
    ours = nnx.Dict(lstm=jaxrnn.LSTM(3, 4, rngs=rngs), head=nnx.Linear(4, classes, rngs=rngs))
    return theirs, ours


def prefixed(prefix, mapping):
    return {prefix + name: value for name, value in mapping.items()}


def test_not_strict():
    theirs, ours = found()
    given = theirs.state_dict()
    bias = given.pop("head.bias")
    before = state_dict(ours)["head.bias"]
    keys = load_state_dict(ours, given | {"extra": bias, "epoch": 3}, strict=False)
    assert keys == interchange.IncompatibleKeys(["head.bias"], ["epoch", "extra"])
    expected = theirs.load_state_dict(given | {"extra": bias, "epoch": 3}, strict=False)
    assert keys.missing_keys == expected.missing_keys
    assert set(keys.unexpected_keys) == set(expected.unexpected_keys)
    back = state_dict(ours)
    np.testing.assert_array_equal(back.pop("head.bias"), before)
    for name, value in back.items():
        np.testing.assert_array_equal(value, given[name].numpy())
    assert load_state_dict(ours, theirs.state_dict()) == ([], [])
    # As in PyTorch, wrong shapes are refused even then.
    _, other = found(5)
    with pytest.raises(ValueError, match=r"`head.weight` has shape \(2, 4\) in the given"):
        load_state_dict(other, theirs.state_dict(), strict=False)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module.model."])
def test_prefixes(prefix):
    theirs, ours = found()
    given = prefixed(prefix, theirs.state_dict())
    with pytest.raises(ValueError, match=r'starts with `[\w.]+`\. Pass `prefix="') as error:
        load_state_dict(ours, given)
    assert str(error.value).endswith(f'Pass `prefix="{prefix}"`.')
    assert len(str(error.value).splitlines()) == 1
    keys = load_state_dict(ours, given | {"loss.weight": np.ones(2)}, prefix=prefix)
    assert keys == ([], [])
    for name, value in state_dict(ours).items():
        np.testing.assert_array_equal(value, given[prefix + name].numpy())
    extra = given | {prefix + "more": np.ones(2)}
    assert load_state_dict(ours, extra, prefix=prefix, strict=False) == ([], [prefix + "more"])
    with pytest.raises(ValueError, match=r"kept starts with `modle\.`; .* first name is `mod"):
        load_state_dict(ours, prefixed("module.", given), prefix="modle.")


def test_a_part_of_a_larger_model():
    theirs, ours = found()
    given = prefixed("net.", theirs.state_dict()) | {"loss.weight": np.ones(2)}
    with pytest.raises(ValueError, match=r'^Nothing .* after `net\.`\. Pass `prefix="net\."`\.$'):
        load_state_dict(ours, given)
    with pytest.raises(ValueError, match=r'^.*names start with `net\.`, those .* "net\." \+ name`'):
        load_state_dict(nnx.Dict(net=ours), theirs.state_dict())
    load_state_dict(nnx.Dict(net=ours), theirs.state_dict(), rename=lambda name: "net." + name)
    np.testing.assert_array_equal(ours.head.bias[...], theirs["head"].bias.detach().numpy())


def test_renaming():
    theirs, ours = found()
    given = {n.replace("head", "fc"): v for n, v in prefixed("m.", theirs.state_dict()).items()}
    new = {"fc.weight": "head.weight", "fc.bias": "head.bias"}
    keys = load_state_dict(
        ours,
        given | {"m.old": 1},
        prefix="m.",
        rename=lambda n: None if n == "old" else new.get(n, n),
    )
    assert keys == ([], [])
    np.testing.assert_array_equal(ours.head.bias[...], theirs["head"].bias.detach().numpy())
    with pytest.raises(
        ValueError, match=r"`m\.lstm\.weight_ih_l0` and `.*` would both be loaded as"
    ):
        load_state_dict(ours, given, rename=lambda name: "x")
    given["m.fc.bias"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"`m\.fc\.bias` has shape \(3,\)"):
        load_state_dict(ours, given, prefix="m.", rename=lambda n: new.get(n, n))


@pytest.mark.parametrize(("key", "prefix"), [("state_dict", "model."), ("model_state", "")])
@pytest.mark.parametrize("strict", [True, False])
def test_training_checkpoints_are_recognised(key, prefix, strict):
    theirs, ours = found()
    inner = prefixed(prefix, theirs.state_dict())
    checkpoint = {"epoch": 3, key: inner, "optimizer_states": [], "loss": torch.ones(())}
    with pytest.raises(ValueError, match="is a training checkpoint") as error:
        load_state_dict(ours, checkpoint, strict=strict)
    options = f', prefix="{prefix}"' if prefix else ""
    assert str(error.value).endswith(f'`load_state_dict(module, mapping["{key}"]{options})`.')
    assert len(str(error.value).splitlines()) == 1
    load_state_dict(ours, checkpoint[key], prefix=prefix)


def test_half_precision_checkpoints_lose_nothing():
    _, ours = found()
    for dtype in (torch.float16, torch.bfloat16):
        theirs = found()[0].to(dtype)
        load_state_dict(ours, theirs.state_dict())
        for name, value in state_dict(ours).items():
            assert value.dtype == np.float32
            np.testing.assert_array_equal(value, theirs.state_dict()[name].float().numpy())


def test_many_problems_and_hostile_names():
    _, ours = found()
    given = {f"t{i}\x1b[31m": np.ones(1) for i in range(100_000)}
    with pytest.raises(ValueError, match=r"\.\.\. and 99,996 more\.") as error:
        load_state_dict(ours, given)
    assert len(str(error.value).splitlines()) == 12
    with pytest.raises(ValueError, match=r"t0\\x1b\[31m") as error:
        load_state_dict(nnx.Dict(), {"t0\x1b[31m": np.ones(1), "a" * 10**6: np.ones(1)})
    assert "\x1b" not in str(error.value)
    assert len(str(error.value)) < 1000
