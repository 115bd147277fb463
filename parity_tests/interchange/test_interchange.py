"""Weights and gradients by PyTorch's names: comparison with PyTorch, and errors."""

import copy
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import jaxrnn
from jaxrnn import interchange
from jaxrnn.interchange import load_state_dict, state_dict

pytestmark = pytest.mark.core


class TorchNet(torch.nn.Module):
    """Every translated layer; the linear ones are square, so shapes reveal no transposition."""

    def __init__(self):
        super().__init__()
        nn = torch.nn
        self.embed = nn.Embedding(10, 6)
        self.conv1 = nn.Conv1d(6, 6, 3, groups=2)
        self.bn = nn.BatchNorm1d(6)
        self.conv2 = nn.Conv2d(1, 4, (3, 2), bias=False)
        self.group = nn.GroupNorm(2, 4)
        self.head = nn.Sequential(
            nn.Linear(6, 6), nn.ReLU(), nn.Sequential(nn.Linear(6, 6, bias=False), nn.LayerNorm(6))
        )
        self.layers = nn.ModuleList([nn.Linear(6, 6), nn.RMSNorm(6, eps=1e-5)])
        self.by_name = nn.ModuleDict({"out": nn.Linear(6, 6)})
        self.conv3 = nn.Conv3d(1, 2, (2, 2, 2))
        self.offset = nn.Parameter(torch.zeros(6))

    def forward(self, tokens):
        x = self.bn(self.conv1(self.embed(tokens).mT))
        y = self.group(self.conv2(x[:, None]))
        z = self.conv3(x[:, None, :, :, None].expand(-1, -1, -1, -1, 2))
        h = self.layers[1](self.layers[0](self.head(x.mT)))
        return (self.by_name["out"](h) + self.offset).sum((1, 2)) + y.sum((1, 2, 3)) * z.mean()


class Net(nnx.Module):
    def __init__(self, rngs):
        options = {"param_dtype": jnp.float64, "rngs": rngs}

        def linear(**more):
            return nnx.Linear(6, 6, **more, **options)

        self.embed = nnx.Embed(10, 6, **options)
        self.conv1 = nnx.Conv(6, 6, 3, padding="VALID", feature_group_count=2, **options)
        self.bn = nnx.BatchNorm(6, momentum=0.9, use_running_average=True, **options)
        self.bn.mean, self.bn.var = nnx.BatchStat(jnp.zeros(6)), nnx.BatchStat(jnp.ones(6))
        self.conv2 = nnx.Conv(1, 4, (3, 2), padding="VALID", use_bias=False, **options)
        self.group = nnx.GroupNorm(4, num_groups=2, epsilon=1e-5, **options)
        tail = nnx.Sequential(linear(use_bias=False), nnx.LayerNorm(6, epsilon=1e-5, **options))
        self.head = nnx.Sequential(linear(), nnx.relu, tail)
        self.layers = nnx.List([linear(), nnx.RMSNorm(6, epsilon=1e-5, **options)])
        self.by_name = nnx.Dict(out=linear())
        self.conv3 = nnx.Conv(1, 2, (2, 2, 2), padding="VALID", **options)
        self.offset = nnx.Param(jnp.zeros(6))
        self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.table = nnx.data(jnp.arange(3))

    @jax.numpy_dtype_promotion("standard")  # Flax's norms need it in float64.
    def __call__(self, tokens):
        x = self.bn(self.conv1(self.embed(tokens)))
        y = self.group(self.conv2(x.mT[..., None])).sum((1, 2, 3))
        z = self.conv3(jnp.repeat(x.mT[..., None], 2, axis=-1)[..., None])
        h = self.by_name["out"](self.layers[1](self.layers[0](self.head(x))))
        return (h + jnp.broadcast_to(self.offset[...], h.shape)).sum((1, 2)) + y * z.mean()


TOKENS = np.random.default_rng(0).integers(10, size=(3, 7))


@pytest.fixture(scope="module")
def built():
    """Both nets with the same random weights and statistics."""
    torch.manual_seed(0)
    theirs, ours = TorchNet().double().eval(), Net(nnx.Rngs(0))
    noise = {k: torch.rand_like(v) + 0.2 for k, v in theirs.state_dict().items() if v.dim()}
    theirs.load_state_dict(theirs.state_dict() | noise)
    load_state_dict(ours, theirs.state_dict())
    return theirs, ours


@pytest.fixture
def pair(built):
    return tuple(map(copy.deepcopy, built))


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12 * np.abs(theirs).max())


@jax.jit
def loss(model):
    return (model(jnp.asarray(TOKENS)) ** 2).sum()


def test_outputs_after_loading(pair):
    theirs, ours = pair
    close(ours(jnp.asarray(TOKENS)), theirs(torch.from_numpy(TOKENS)).detach().numpy())


def test_export_is_strict_and_exact(pair):
    theirs, ours = pair
    back = {name: torch.from_numpy(array) for name, array in state_dict(ours).items()}
    assert back.keys() == theirs.state_dict().keys()
    other = TorchNet().double()
    other.load_state_dict(back, strict=True)
    assert all(array.flags.c_contiguous for array in state_dict(ours).values())
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_gradients_in_every_form(pair):
    theirs, ours = pair
    (theirs(torch.from_numpy(TOKENS)) ** 2).sum().backward()
    expected = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    graphdef, params, rest = nnx.split(ours, nnx.Param, ...)
    grads = jax.grad(lambda params: loss(nnx.merge(graphdef, params, rest)))(params)
    forms = {
        "nnx.grad": state_dict(nnx.grad(loss)(ours), like=ours),
        "module": state_dict(jax.grad(loss, allow_int=True)(ours)),
        "state": state_dict(grads, like=ours),
        "without variables": state_dict(nnx.State(nnx.to_pure_dict(grads)), like=ours),
        "traced": jax.jit(lambda m: state_dict(jax.grad(loss, allow_int=True)(m)))(ours),
    }
    statistics = {"bn.running_mean", "bn.running_var", "bn.num_batches_tracked"}
    for form, found in forms.items():
        extra = found.keys() - expected.keys()
        assert extra == (statistics if form in ("module", "traced") else set())
        assert expected.keys() <= found.keys()
        for name, gradient in expected.items():
            close(found[name], gradient)


def test_names_of_a_state_are_guessed_without_its_module(pair):
    _, ours = pair
    del ours.head
    grads = nnx.state(ours)
    guessed, typed = state_dict(grads), state_dict(grads, like=ours)
    assert guessed.keys() == typed.keys()
    for name, array in typed.items():
        np.testing.assert_array_equal(guessed[name], array)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda r: nnx.Sequential(nnx.Linear(2, 2, rngs=r)), "may be an nnx.Sequential"),
        (
            lambda r: nnx.MultiHeadAttention(2, 4, rngs=r),
            "to which layer the `kernel` under `key` belongs",
        ),
        (lambda r: nnx.Dict(w=nnx.Dict(kernel=nnx.Param(jnp.ones(3)))), "`kernel` under `w`"),
    ],
)
def test_an_ambiguous_state(model, words):
    with pytest.raises(ValueError, match=words):
        state_dict(nnx.state(model(nnx.Rngs(0)), nnx.Param))


def test_a_state_of_another_module():
    model, conv = nnx.Embed(2, 2, rngs=nnx.Rngs(0)), nnx.Conv(2, 2, 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="The state holds `bias`, which the module"):
        state_dict(nnx.state(conv), like=model)
    with pytest.raises(ValueError, match=r"`weight` is the kernel of an nnx\.Conv with 3 dim"):
        state_dict(jax.tree.map(lambda a: a[None], nnx.state(conv)), like=conv)
    linear = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    stacked = jax.tree.map(lambda a: a[None], nnx.state(linear))
    assert state_dict(stacked, like=linear)["weight"].shape == (1, 3, 2)


def test_users_modules_keep_their_names():
    class User(nnx.Module):
        def __init__(self):
            self.kernel = nnx.Param(jnp.ones((2, 3)))
            self.scale = nnx.Param(jnp.ones(()))
            self.sown = nnx.Intermediate(jnp.ones(2))
            self.absent = nnx.Param(None)
            self.pair = nnx.data(({"a": nnx.Param(jnp.ones(1))}, nnx.Variable(jnp.ones(2))))

    shapes = {name: array.shape for name, array in state_dict(User()).items()}
    assert shapes == {"kernel": (2, 3), "scale": (), "pair.0.a": (1,), "pair.1": (2,)}
    assert state_dict(nnx.state(User()), like=User()).keys() == shapes.keys()


def test_recurrent_layers_are_copied_unchanged():
    theirs = torch.nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2)
    ours = jaxrnn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2, rngs=nnx.Rngs(0))
    load_state_dict(ours, theirs.state_dict())
    assert list(state_dict(ours)) == list(theirs.state_dict())
    for name, tensor in theirs.state_dict().items():
        np.testing.assert_array_equal(getattr(ours, name)[...], tensor.numpy())


X = jnp.ones(1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda r: nnx.LinearGeneral(2, (2, 2), rngs=r), "`x` is an `nnx.LinearGeneral`"),
        (lambda r: nnx.GRUCell(2, 2, rngs=r), "`nnx.GRUCell`.* Use jaxrnn's own"),
        (lambda r: nnx.LoRALinear(2, 2, lora_rank=1, rngs=r), "`x` is an `nnx.LoRALinear`"),
        (lambda r: nnx.Param({"a": jnp.ones(2)}), "`x` holds a dict, not an array"),
        (
            lambda r: nnx.Dict({"a.b": nnx.Param(X), "a": nnx.Dict(b=nnx.Param(X))}),
            "`x.a.b` would name two",
        ),
        (
            lambda r: jax.tree.map(lambda a: a[None], nnx.Conv(2, 2, 3, rngs=r)),
            "`x.kernel` is the kernel of an nnx.Conv with 3 dimensions, got 4",
        ),
    ],
)
def test_untranslatable_layers_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        state_dict(nnx.Dict(x=make(nnx.Rngs(0))))


def test_a_module_that_holds_itself():
    ours = nnx.Dict(a=nnx.Dict())
    ours.a.b = ours
    with pytest.raises(ValueError, match="contains itself"):
        state_dict(ours)


def test_all_problems_are_reported_and_nothing_changes(pair):
    theirs, ours = pair
    before = state_dict(ours)
    bad = {name: tensor + 1 for name, tensor in theirs.state_dict().items()}
    del bad["head.0.bias"]
    bad |= {
        "conv3.weight": np.ones((2, 2, 2, 1, 2)),
        "bn.bias": np.zeros((1, 6)),
        "offset": torch.zeros(6, dtype=torch.complex64),
        "embed.weight": "text",
        "by_name.out.bias": torch.zeros(6, device="meta"),
        "layers.0.bias": np.array(["a"] * 6),
        "extra": torch.zeros(1),
    }
    with pytest.raises(ValueError, match=r"^Nothing was loaded:\n") as error:
        load_state_dict(ours, bad)
    assert set(str(error.value).splitlines()[1:]) == {
        "`head.0.bias` is missing from the given state.",
        "`conv3.weight` has shape (2, 2, 2, 1, 2) in the given state but (2, 1, 2, 2, 2) "
        "in the model.",
        "`bn.bias` has shape (1, 6) in the given state but (6,) in the model.",
        "`offset` has dtype complex64 in the given state but float64 in the model.",
        "`embed.weight` is a str in the given state, not an array to be read.",
        "`by_name.out.bias` is a Tensor in the given state, not an array to be read.",
        "`layers.0.bias` has dtype <U1 in the given state but float64 in the model.",
        "`extra` is in the given state but not in the model.",
    }
    for name, array in before.items():
        np.testing.assert_array_equal(state_dict(ours)[name], array)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, t: load_state_dict(m, t), "of names to arrays, got Linear. Pass its `state_d"),
        (lambda m, t: load_state_dict(m, m), r"got Linear\. Pass `jaxrnn\.state_dict` of it"),
        (lambda m, t: load_state_dict(m, nnx.state(m)), r"`nnx\.update\(module, state\)` loads it"),
        (lambda m, t: load_state_dict(m, "a/m.pt"), r"got str\. Pass what `torch\.load\(path, w"),
        (lambda m, t: load_state_dict(m, pathlib.Path("m.safetensors")), "by `load_safetensors"),
        (lambda m, t: load_state_dict(m, [1]), r"got list\. A model's mapping is its `state_dict"),
        (lambda m, t: load_state_dict(t.state_dict(), m), "swapped, the module comes first"),
        (lambda m, t: load_state_dict(t, {}), "got Linear. A module of PyTorch has a `state_dict`"),
        (lambda m, t: load_state_dict({}, {}), r"An nnx\.Module is needed"),
        (lambda m, t: state_dict(3), r"An nnx\.Module is needed"),
        (lambda m, t: interchange.save_safetensors({}, "x"), r"An nnx\.Module is needed"),
        (lambda m, t: interchange.save_safetensors("x", m), "swapped, the module comes first"),
        (lambda m, t: interchange.load_safetensors("x", m), "swapped, the module comes first"),
        (lambda m, t: interchange.load_safetensors(m, {}), "got dict. Arrays by name are loaded"),
        (lambda m, t: interchange.load_safetensors(m, 3), r"`load_safetensors\(module, path\)` ne"),
    ],
)
def test_errors_for_wrong_arguments_name_the_right_ones(call, words):
    model, theirs = nnx.Linear(2, 2, rngs=nnx.Rngs(0)), torch.nn.Linear(2, 2)
    with pytest.raises(TypeError, match=words) as error:
        call(model, theirs)
    assert len(str(error.value).splitlines()) == 1


def test_torch_is_not_imported():
    code = "import sys, jaxrnn.interchange; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
