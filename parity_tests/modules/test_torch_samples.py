"""PyTorch's own samples and negative cases for its six recurrent classes, run on jaxrnn."""

import inspect
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

import jaxrnn
from jaxrnn.testing import assert_parity

with warnings.catch_warnings():  # on a GPU it imports numba, which uses what NumPy deprecates
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_modules import ModuleErrorEnum, module_db

pytestmark = pytest.mark.gpu

CLASSES = ["RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"]
INFOS = {
    info.module_cls.__name__: info
    for info in module_db
    if info.module_cls in [getattr(torch.nn, name) for name in CLASSES]
}


def samples(name, training):
    info = INFOS[name]
    torch.manual_seed(0)
    packed = {} if name == "LSTM" or name.endswith("Cell") else {"with_packed_sequence": True}
    yield from info.module_inputs_func(
        info, device="cpu", dtype=torch.float64, requires_grad=False, training=training, **packed
    )


def case_list(make):
    return [(name, index) for name in CLASSES for index, _ in enumerate(make(name))]


def construct(name, given, **ours):
    """Both modules from the same arguments; `device` and `dtype` go to PyTorch alone."""
    kwargs = {k: v for k, v in given.kwargs.items() if k not in ("device", "dtype")}
    return getattr(jaxrnn, name)(*given.args, **kwargs, **ours, rngs=nnx.Rngs(0))


def to_numpy(tree):
    return jax.tree.map(lambda t: t.detach().numpy() if isinstance(t, torch.Tensor) else t, tree)


SAMPLES = case_list(lambda name: samples(name, True))


def test_pytorch_still_has_its_samples():
    assert set(INFOS) == set(CLASSES)
    assert len(SAMPLES) >= 130


@pytest.mark.parametrize(("name", "index"), SAMPLES)
def test_sample(name, index):
    """Training mode with every gradient; the outputs in evaluation mode."""
    for training in (True, False):
        sample = list(samples(name, training))[index]
        given, forward = sample.constructor_input, sample.forward_input
        theirs = getattr(torch.nn, name)(*given.args, **given.kwargs).double()
        ours = construct(name, given, param_dtype=jnp.float64)
        x, *hx = forward.args
        lengths = None
        if isinstance(x, PackedSequence):
            x, lengths = pad_packed_sequence(x, batch_first=theirs.batch_first)
            lengths = lengths.numpy()
        x, hx = to_numpy(x), to_numpy(hx[0]) if hx else None
        if training:
            assert_parity(theirs, ours, x, hx=hx, lengths=lengths, dtype="float64", train=True)
            continue
        theirs.eval()
        ours.eval()
        jaxrnn.load_state_dict(ours, theirs.state_dict())
        got = jax.jit(lambda m, *a, n=lengths: m(*a) if n is None else m(*a, lengths=n))(
            ours, x, *([] if hx is None else [hx])
        )
        wanted = theirs(*forward.args)
        if lengths is not None:
            wanted = pad_packed_sequence(wanted[0], batch_first=theirs.batch_first)[0], wanted[1]
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(to_numpy(wanted)), strict=True):
            np.testing.assert_allclose(g, w, rtol=0, atol=1e-14)


def error_samples(name, dtype=torch.float32):
    info = INFOS[name]
    return info.module_error_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=False, training=False
    )


ERRORS = case_list(error_samples)


def test_pytorch_still_has_its_error_inputs():
    assert len(ERRORS) >= 40


@pytest.mark.parametrize(("name", "index"), ERRORS)
def test_error_input(name, index):
    """The exception has PyTorch's type and message, as PyTorch's own test requires."""
    case = error_samples(name)[index]
    given, forward = (
        case.module_error_input.constructor_input,
        (case.module_error_input.forward_input),
    )
    pattern = case.error_regex
    if case.error_on == ModuleErrorEnum.CONSTRUCTION_ERROR:
        with pytest.raises(case.error_type, match=pattern) as caught:
            construct(name, given)
    else:
        ours = construct(name, given)
        args = [jax.tree.map(jnp.asarray, a) for a in to_numpy(forward.args)]
        with pytest.raises(case.error_type, match=pattern) as caught:
            ours(*args)
    assert "`" in str(caught.value)  # followed by our own sentence


@pytest.mark.parametrize("name", CLASSES)
def test_signatures_begin_like_pytorchs(name):
    """Names, order and defaults agree; the rest is keyword-only."""
    ours = inspect.signature(getattr(jaxrnn, name).__init__).parameters
    positional = [p for p in list(ours.values())[1:] if p.kind is p.POSITIONAL_OR_KEYWORD]
    source = inspect.getsource(getattr(torch.nn, name))
    overload = re.findall(r"def __init__\(\s*self,(.*?)\) -> None", source, re.S)[0]
    theirs = re.findall(r"(\w+): \w+(?: = ([\w.\"']+))?", overload)
    theirs = [(n, d.strip("\"'")) for n, d in theirs if n not in ("device", "dtype")]
    defaults = ["" if p.default is p.empty else str(p.default) for p in positional]
    got = list(zip([p.name for p in positional], defaults, strict=True))
    if name in ("RNN", "GRU"):
        assert got.pop() == ("proj_size", "0")  # PyTorch accepts the keyword, then rejects it
    assert got == theirs
