"""Arrays of every kind, dtype and place, loaded and returned without sharing memory."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from flax import nnx

from jaxrnn.interchange import load_state_dict, state_dict

pytestmark = pytest.mark.core


VALUES = np.array([[1.5, -2.0, np.nan], [np.inf, 0.0, 3.0]])


class OnAnotherDevice:
    """A stand-in for a tensor on a GPU, with the methods that loading uses."""

    def __init__(self, tensor):
        self.tensor, self.shape, self.dtype = tensor, tensor.shape, tensor.dtype

    def detach(self):
        return self

    def cpu(self):
        return self.tensor


@pytest.mark.parametrize(
    "given",
    [
        VALUES,
        np.asfortranarray(VALUES),
        VALUES.astype(">f8"),
        VALUES.astype(ml_dtypes.bfloat16),
        jnp.asarray(VALUES, jnp.bfloat16),
        torch.from_numpy(VALUES.T.copy()).t(),
        torch.nn.Parameter(torch.from_numpy(VALUES)),
        torch.from_numpy(VALUES).bfloat16().requires_grad_(),
        torch.from_numpy(VALUES).half()[None].expand(2, -1, -1)[1],
        torch.complex(torch.zeros(2, 3), torch.from_numpy(-VALUES).float()).conj().imag,
        OnAnotherDevice(torch.from_numpy(VALUES)),
    ],
    ids=lambda given: f"{type(given).__name__}-{given.dtype}",
)
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16])
def test_arrays_of_all_kinds(given, dtype):
    ours = nnx.Linear(3, 2, use_bias=False, param_dtype=dtype, rngs=nnx.Rngs(0))
    load_state_dict(ours, {"weight": given})
    assert ours.kernel.dtype == dtype
    np.testing.assert_array_equal(ours.kernel[...].astype(jnp.float64), VALUES.T)


def test_casting():
    half, whole = (
        nnx.Dict(w=nnx.Param(jnp.ones(2, jnp.float16))),
        nnx.Dict(w=nnx.Param(jnp.arange(2))),
    )
    load_state_dict(half, {"w": np.array([1e300, 1])})
    assert half.w[...].tolist() == [np.inf, 1]
    load_state_dict(half, {"w": torch.tensor([True, False])})
    with pytest.raises(ValueError, match="`w` has dtype float64 in the given state but int64"):
        load_state_dict(whole, {"w": np.ones(2)})
    with pytest.raises(ValueError, match="`w` is a Tensor"):
        load_state_dict(half, {"w": torch.ones(2).to_sparse()})
    eight = torch.tensor([0.5, 448.0]).to(torch.float8_e4m3fn)
    load_state_dict(half, {"w": eight})
    assert half.w[...].tolist() == [0.5, 448.0]


def test_no_memory_is_shared():
    ours = nnx.Dict(a=nnx.Param(jnp.ones((64, 64))), b=nnx.Param(np.ones(64)))
    source = {"a": torch.ones(64, 64, dtype=torch.float64), "b": np.ones(64)}
    load_state_dict(ours, source)
    copies = state_dict(ours)
    for array in (*source.values(), *copies.values()):
        array[...] = 7
    assert (ours.a[...] == 1).all()
    assert (ours.b[...] == 1).all()


def test_shared_parameters():
    ours = nnx.Dict(a=nnx.Embed(4, 3, rngs=nnx.Rngs(0)), b=nnx.Embed(4, 3, rngs=nnx.Rngs(1)))
    ours.b.embedding = ours.a.embedding
    weight = np.arange(12.0).reshape(4, 3)
    load_state_dict(ours, {"a.weight": weight, "b.weight": weight})
    assert ours.a.embedding is ours.b.embedding
    load_state_dict(ours, {"b.weight": weight + 1})
    assert {k: v[0, 0] for k, v in state_dict(ours).items()} == {"a.weight": 1, "b.weight": 1}
    grads = nnx.grad(lambda m: m.a.embedding[...].sum() + m.b.embedding[...].sum())(ours)
    gradients = state_dict(grads, like=ours)
    assert {k: v[0, 0] for k, v in gradients.items()} == {"a.weight": 2, "b.weight": 2}
    with pytest.raises(ValueError, match=r"`a.weight` and `b.weight` are one parameter"):
        load_state_dict(ours, {"a.weight": weight, "b.weight": -weight})
    with pytest.raises(ValueError, match=r"`a.weight` is missing.*\n`b.weight` is missing"):
        load_state_dict(ours, {})
    assert ours.a.embedding[0, 0] == 1


def test_values_are_placed_like_the_parameter():
    ours = nnx.Dict(
        w=nnx.Param(jnp.ones(2)), v=nnx.Param(jax.device_put(jnp.ones(2), jax.devices()[0]))
    )
    load_state_dict(ours, {"w": np.ones(2), "v": np.ones(2)})
    assert (ours.w[...].committed, ours.v[...].committed) == (False, True)


def test_shapes_without_values():
    ours = nnx.eval_shape(lambda: nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="`bias` has a shape but no values"):
        state_dict(ours)
    load_state_dict(ours, {"weight": np.ones((2, 3)), "bias": np.ones(2)})
    assert (ours(jnp.ones((1, 3), jnp.float32)) == 4).all()


def test_traced_values():
    @jax.jit
    def run(state):
        ours = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        load_state_dict(ours, state)
        return ours(jnp.ones((1, 3), jnp.float32)), state_dict(ours)

    given = {"weight": np.arange(6.0).reshape(2, 3), "bias": np.zeros(2)}
    out, back = run(given)
    assert out.tolist() == [[3.0, 12.0]]
    assert back["weight"].tolist() == given["weight"].tolist()
