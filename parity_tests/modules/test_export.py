"""A layer outside of JAX: serialized by `jax.export`, and converted to ONNX."""

import importlib.util
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxrnn
from jaxrnn import strategies

RNG = np.random.default_rng(0)
LAYERS = {
    "RNN": lambda **options: jaxrnn.RNN(3, 4, **options),
    "GRU": lambda **options: jaxrnn.GRU(3, 4, num_layers=2, **options),
    "LSTM": lambda **options: jaxrnn.LSTM(3, 4, bidirectional=True, batch_first=True, **options),
}


def need(*packages, extra):
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(
        bool(missing), reason=f"{missing} missing: pip install 'jaxrnn[{extra}]'"
    )


def test_the_extras_exist():
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    extras = tomllib.loads(text)["project"]["optional-dependencies"]
    for extra in ("export", "onnx"):
        assert extras[extra]
        assert f"'.[{extra}]'" in strategies.__doc__


@need("flatbuffers", extra="export")
def test_a_serialized_layer_for_any_batch():
    with jax.enable_x64(False):
        layer = jaxrnn.LSTM(3, 4, rngs=nnx.Rngs(0))
        (batch,) = jax.export.symbolic_shape("B")
        spec = jax.ShapeDtypeStruct((7, batch, 3), jnp.float32)
        exported = jax.export.export(jax.jit(lambda x: layer(x)[0]))(spec)
        again = jax.export.deserialize(exported.serialize())
        x = jnp.asarray(RNG.normal(size=(7, 5, 3)), jnp.float32)
        np.testing.assert_allclose(again.call(x), layer(x)[0], rtol=1e-6, atol=1e-6)


@need("jax2onnx", "onnxruntime", extra="onnx")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LAYERS)
def test_onnx_with_a_dynamic_batch(name):
    import onnxruntime
    from jax2onnx import to_onnx

    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        layer = LAYERS[name](strategy=strategies.Reference(), rngs=nnx.Rngs(0))
        shape = ("B", 7, 3) if layer.batch_first else (7, "B", 3)
        model = to_onnx(lambda x: layer(x)[0], [shape])
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        for batch in (1, 5):
            x = RNG.normal(size=[batch if n == "B" else n for n in shape]).astype(np.float32)
            (found,) = session.run(None, {session.get_inputs()[0].name: x})
            np.testing.assert_allclose(found, layer(jnp.asarray(x))[0], rtol=1e-5, atol=1e-6)
