"""Flax's layers and their PyTorch counterparts: weights in both directions, and every gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from jaxrnn.interchange import load_state_dict, state_dict
from jaxrnn.testing import assert_parity

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning"),
]

RNG = np.random.default_rng(0)
PARAM = {"scale_init": lambda key, shape: nnx.Param(jnp.ones(shape)), "epsilon": 0.0}


def channels_last(module, x):
    return jnp.moveaxis(module(jnp.moveaxis(x, 1, -1)), -1, 1)


def attend(module, *inputs):
    return module(*inputs)[0]


def conv_transpose(options, **ours):
    def make(rngs):
        theirs = torch.nn.ConvTranspose2d(3, 2, (3, 2), **options)
        return theirs, nnx.ConvTranspose(3, 2, (3, 2), rngs=rngs, **ours)

    return make, [(2, 3, 4, 5)], {"jax_call": channels_last}


def exact_attention(query, key, value, **options):
    """Attention in the inputs' dtype; Flax's own function sums in float32."""
    logits = jnp.einsum("...qhd,...khd->...hqk", query, key) / query.shape[-1] ** 0.5
    return jnp.einsum("...hqk,...khd->...qhd", jax.nn.softmax(logits), value)


def attention(theirs, ours, inputs=((2, 5, 6),) * 3):
    ours = {"attention_fn": exact_attention} | ours

    def make(rngs):
        module = nnx.MultiHeadAttention(2, 6, decode=False, rngs=rngs, **ours)
        return torch.nn.MultiheadAttention(6, 2, batch_first=True, **theirs), module

    return make, list(inputs), {"torch_call": attend}


def weight_norm(norm, theirs, ours, shape, **options):
    call = options.pop("jax_call", None)
    dim = options.pop("dim", 0)

    def make(rngs):
        normed = nnx.WeightNorm(ours(rngs), rngs=rngs, **(PARAM | options))
        return norm(theirs(), "weight", dim), normed

    return make, [shape], {"jax_call": call}


old, new = torch.nn.utils.weight_norm, torch.nn.utils.parametrizations.weight_norm
LINEAR = (lambda: torch.nn.Linear(4, 3), lambda r: nnx.Linear(4, 3, rngs=r), (5, 4))
CONV = (
    lambda: torch.nn.Conv1d(4, 2, 3, groups=2),
    lambda r: nnx.Conv(4, 2, 3, padding="VALID", feature_group_count=2, rngs=r),
    (2, 4, 6),
)
TWINS = {
    "ConvTranspose": conv_transpose({"stride": 2}, strides=2, padding="VALID"),
    "ConvTranspose, transpose_kernel, pads": conv_transpose(
        {"stride": (2, 3), "padding": 1, "output_padding": (1, 2), "dilation": (2, 3)},
        strides=(2, 3),
        padding=((3, 4), (2, 4)),
        kernel_dilation=(2, 3),
        transpose_kernel=True,
    ),
    "ConvTranspose, short kernel, no bias": conv_transpose(
        {"stride": 4, "output_padding": (1, 2), "bias": False},
        strides=4,
        padding="VALID",
        use_bias=False,
    ),
    "MultiHeadAttention": attention({}, {}),
    "MultiHeadAttention, other keys": attention(
        {"kdim": 4, "vdim": 4}, {"in_kv_features": 4}, ((2, 5, 6), (2, 3, 4), (2, 3, 4))
    ),
    "MultiHeadAttention, no bias": attention({"bias": False}, {"use_bias": False}),
    "Einsum": (
        lambda r: (torch.nn.Linear(4, 3), nnx.Einsum("...a,ab->...b", (4, 3), (3,), rngs=r)),
        [(2, 5, 4)],
        {},
    ),
    "Einsum, kernel transposed": (
        lambda r: (torch.nn.Linear(4, 3, bias=False), nnx.Einsum("nti, oi -> nto", (3, 4), rngs=r)),
        [(2, 5, 4)],
        {},
    ),
    "PReLU": (lambda r: (torch.nn.PReLU(), nnx.PReLU()), [(3, 4)], {}),
    "PReLU, one for each channel": (
        lambda r: (torch.nn.PReLU(4), nnx.PReLU(jnp.full(4, 0.1))),
        [(3, 4)],
        {},
    ),
    "InstanceNorm": (
        lambda r: (
            torch.nn.InstanceNorm1d(3, affine=True),
            nnx.InstanceNorm(3, epsilon=1e-5, use_fast_variance=False, rngs=r),
        ),
        [(2, 3, 6)],
        {"jax_call": channels_last},
    ),
    "weight_norm, new": weight_norm(new, *LINEAR),
    "weight_norm, new, dim=1": weight_norm(new, *LINEAR, dim=1, feature_axes=0),
    "weight_norm, new, dim=None": weight_norm(new, *LINEAR, dim=None, feature_axes=None),
    "weight_norm, new, Conv": weight_norm(new, *CONV, jax_call=channels_last),
}


@pytest.mark.parametrize("name", TWINS)
def test_twins_agree(name):
    """Outputs and all gradients from the same weights, and a round trip of the weights."""
    make, shapes, options = TWINS[name]
    theirs, ours = make(nnx.Rngs(0))
    inputs = [RNG.normal(size=shape) for shape in shapes]
    # Flax's layers rely on promotion.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert_parity(theirs, ours, *inputs, noise=0.5, **options)
    given = {k: torch.randn(v.shape) for k, v in theirs.state_dict().items()}
    assert load_state_dict(ours, given) == ([], [])
    back = {k: torch.from_numpy(v) for k, v in state_dict(ours).items()}
    theirs.load_state_dict(back, strict=True)
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(value, given[key], rtol=0, atol=0)


@pytest.mark.parametrize("layer", [LINEAR, CONV], ids=["Linear", "Conv"])
def test_weight_norm_of_the_older_style(layer):
    """The names agree, and so do outputs after a round trip of the weights."""
    theirs, ours = old(layer[0]()), nnx.WeightNorm(layer[1](nnx.Rngs(0)), rngs=nnx.Rngs(1))
    given = {k: torch.randn(v.shape) for k, v in theirs.state_dict().items()}
    assert load_state_dict(ours, given) == ([], [])
    back = state_dict(ours)
    assert {k: v.shape for k, v in back.items()} == {k: tuple(v.shape) for k, v in given.items()}
    theirs.load_state_dict({k: torch.from_numpy(v) for k, v in back.items()}, strict=True)
    x = RNG.normal(size=layer[2]).astype(np.float32)
    expected = theirs(torch.from_numpy(x)).detach().numpy()
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = ours(jnp.asarray(x)) if x.ndim == 2 else channels_last(ours, jnp.asarray(x))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_constant_scales_of_weight_norm_are_exported_and_have_no_gradient():
    ours = nnx.Dict(x=nnx.WeightNorm(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1)))
    assert set(state_dict(ours)) == {"x.weight_g", "x.weight_v", "x.bias"}
    grads = nnx.grad(lambda m: m.x.layer_instance.kernel[...].sum())(ours)
    assert set(state_dict(grads, like=ours)) == {"x.weight_v", "x.bias"}


def test_attention_as_flax_computes_it():
    theirs = torch.nn.MultiheadAttention(6, 2, batch_first=True)
    ours = nnx.MultiHeadAttention(2, 6, decode=False, rngs=nnx.Rngs(0))
    inputs = [RNG.normal(size=(2, 5, 6))] * 3
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        assert_parity(theirs, ours, *inputs, dtype="float32", torch_call=attend)


def test_shared_attention_and_parts_of_a_gradient():
    attention = nnx.MultiHeadAttention(2, 4, rngs=nnx.Rngs(0))
    ours = nnx.Dict(a=attention, b=attention)
    weights = state_dict(ours)
    load_state_dict(ours, {k: v + 1 for k, v in weights.items() if k.startswith("b.")})
    np.testing.assert_array_equal(
        state_dict(ours)["a.in_proj_weight"], weights["a.in_proj_weight"] + 1
    )
    with pytest.raises(ValueError, match=r"`a\.in_proj_weight` and `b\.in_proj_weight` are one"):
        load_state_dict(ours, weights | {"b.in_proj_weight": weights["a.in_proj_weight"] * 2})
    part = nnx.state(attention, nnx.PathContains("query"))
    with pytest.raises(ValueError, match="holds 1 of the 3 parameters that make `in_proj_weight`"):
        state_dict(part, like=attention)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda r: nnx.ConvTranspose(2, 2, 2, rngs=r),
            r"`x` is an `nnx.ConvTranspose` with padding='SAME', to which no padding and .* crop",
        ),
        (
            lambda r: nnx.ConvTranspose(2, 2, 3, strides=2, padding=((0, 2),), rngs=r),
            r"with padding=\(\(0, 2\),\), to which no padding and output_padding",
        ),
        (
            lambda r: nnx.ConvTranspose(2, 2, 3, padding="CIRCULAR", rngs=r),
            "`x` is an `nnx.ConvTranspose` with padding='CIRCULAR'",
        ),
        (
            lambda r: nnx.ConvTranspose(2, 2, 3, mask=jnp.ones((3, 2, 2)), rngs=r),
            "`nnx.ConvTranspose` with a mask, which PyTorch lacks",
        ),
        (lambda r: nnx.Conv(2, 2, 3, mask=jnp.ones((3, 2, 2)), rngs=r), "`nnx.Conv` with a mask"),
        (
            lambda r: nnx.MultiHeadAttention(2, 4, 8, rngs=r),
            "`x` is an `nnx.MultiHeadAttention` that PyTorch lacks: `torch.nn.Multihead",
        ),
        (lambda r: nnx.MultiHeadAttention(2, 4, num_kv_heads=1, rngs=r), "num_kv_heads=num_heads"),
        (lambda r: nnx.MultiHeadAttention(2, 4, normalize_qk=True, rngs=r), "normalize_qk=False"),
        (
            lambda r: nnx.Einsum("nta,hab->nthb", (8, 2, 4), (8, 4), rngs=r),
            r'`nnx.Einsum` with "nta,hab->nthb", which is not a `torch.nn.Linear`: only',
        ),
        (lambda r: nnx.Einsum("ab,bc->ca", (2, 3), rngs=r), r'with "ab,bc->ca", which is not a'),
        (lambda r: nnx.Einsum("ba,ab->bb", (2, 2), rngs=r), r'with "ba,ab->bb", which is not a'),
        (
            lambda r: nnx.SpectralNorm(nnx.Linear(2, 2, rngs=r), rngs=r),
            "`x` is an `nnx.SpectralNorm`, which updates its estimate at every call",
        ),
        (
            lambda r: nnx.WeightNorm(nnx.Linear(2, 2, rngs=r), use_scale=False, rngs=r),
            "`x` is an `nnx.WeightNorm` of `x.weight` that PyTorch lacks",
        ),
        (
            lambda r: nnx.WeightNorm(nnx.Conv(2, 2, 3, rngs=r), feature_axes=(0, 2), rngs=r),
            "one axis in feature_axes",
        ),
    ],
)
def test_settings_without_an_equivalent_are_refused(make, words):
    with pytest.raises(ValueError, match=words) as error:
        state_dict(nnx.Dict(x=make(nnx.Rngs(0))))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("norm", "words"),
    [
        (old, r"`0\.weight` is held in parts by PyTorch's weight_norm\. Wrap the layer in `nnx\.W"),
        (new, r"`0\.weight` is held in parts by PyTorch's weight_norm\. Wrap the layer in `nnx\.W"),
        (torch.nn.utils.spectral_norm, r"by PyTorch's spectral_norm\. Fold .*remove_spectral_norm"),
        (torch.nn.utils.parametrizations.spectral_norm, r"by PyTorch's spectral_norm\. Fold"),
    ],
    ids=["old weight", "new weight", "old spectral", "new spectral"],
)
def test_normed_weights_for_a_plain_layer_are_recognised(norm, words):
    theirs = torch.nn.Sequential(norm(torch.nn.Linear(3, 2)))
    with pytest.raises(ValueError, match=words):
        load_state_dict(nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0))), theirs.state_dict())
