"""Weights of other libraries, against their own outputs, or against equations for ONNX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax.experimental import rnn as jax_rnn_api

import jaxrnn
from jaxrnn import cells
from jaxrnn.interchange import equinox, flax_cells, haiku, jax_rnn, keras, onnx

I, H, T, B = 3, 4, 5, 2
X = np.random.default_rng(0).standard_normal((B, T, I))


def ours(kind, **options):
    options = {"batch_first": True, "param_dtype": jnp.float64, "rngs": nnx.Rngs(0)} | options
    if hasattr(jaxrnn, kind):
        return getattr(jaxrnn, kind)(I, H, **options)
    return jaxrnn.Recurrent(getattr(cells, kind), I, H, **options)


def loaded(module, state):
    """The outputs from weights that are given, every one of which has a place."""
    missing = {k: np.zeros_like(v) for k, v in jaxrnn.state_dict(module).items() if "bias" in k}
    jaxrnn.load_state_dict(module, missing | state)
    return module(jnp.asarray(X))[0]


def random_like(tree, seed=1):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: 0.5 * rng.standard_normal(a.shape), tree)


def same(got, wanted, tolerance=1e-13):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(g, w, rtol=tolerance, atol=tolerance)


KERAS = {
    "RNN": ("SimpleRNN", {}),
    "LSTM": ("LSTM", {}),
    "GRU": ("GRU", {}),
    "reset_before_gru": ("GRU", {"reset_after": False}),
}


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KERAS)
def test_keras(kind, bidirectional):
    pytest.importorskip("keras")
    import keras as api

    name, options = KERAS[kind]
    x = jnp.asarray(X, jnp.float32)
    # Keras relies on the promotions that the tests forbid.
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        layer = getattr(api.layers, name)(H, return_sequences=True, dtype="float32", **options)
        if bidirectional:
            layer = api.layers.Bidirectional(layer, dtype="float32")
        layer(x)
        weights = random_like([w.value for w in layer.weights])
        for variable, value in zip(layer.weights, weights, strict=True):
            variable.assign(value)
        wanted = layer(x)
    per, state = len(weights) // (1 + bidirectional), {}
    for k, suffix in enumerate(("_l0", "_l0_reverse")[: 1 + bidirectional]):
        one = keras.to_torch(kind, weights[k * per : (k + 1) * per], suffix=suffix)
        state |= one
        back = keras.from_torch(kind, one, suffix=suffix)
        same(back, weights[k * per : (k + 1) * per])
    got = loaded(ours(kind, bidirectional=bidirectional), state)
    same(got, wanted, 1e-6)


def nnx_outputs(cell):
    return nnx.RNN(cell)(jnp.asarray(X))


@pytest.mark.parametrize("kind", flax_cells.NNX)
def test_nnx_cells(kind):
    cell = getattr(nnx, kind)(I, H, param_dtype=jnp.float64, dtype=jnp.float64, rngs=nnx.Rngs(0))
    params = random_like(nnx.to_pure_dict(nnx.state(cell, nnx.Param)))
    nnx.update(cell, jax.tree.map(jnp.asarray, params))
    state = flax_cells.to_torch(kind, params)
    module = ours({"L": "LSTM", "O": "LSTM", "G": "GRU", "S": "RNN"}[kind[0]])
    same(loaded(module, state), nnx_outputs(cell))
    same(flax_cells.from_torch(kind, state), params)


@pytest.mark.parametrize("kind", flax_cells.LINEN)
def test_linen_cells(kind):
    cls = getattr(linen, kind.removeprefix("linen."))
    cell = linen.RNN(cls(H, param_dtype=jnp.float64, dtype=jnp.float64))
    x = jnp.asarray(X)
    params = random_like(cell.init(jax.random.key(0), x)["params"]["cell"])
    state = flax_cells.to_torch(kind, params)
    module = ours({"L": "LSTM", "O": "LSTM", "G": "GRU", "S": "RNN"}[kind[6]])
    wanted = cell.apply({"params": {"cell": jax.tree.map(jnp.asarray, params)}}, x)
    same(loaded(module, state), wanted)
    same(flax_cells.from_torch(kind, state), params)


def test_what_flaxs_cells_cannot_represent():
    state = jaxrnn.state_dict(ours("GRU"))
    with pytest.raises(ValueError, match="has no b_hn, and this GRU's is not 0"):
        flax_cells.from_torch("GRUCell", state)
    with pytest.raises(ValueError, match="MGUCell computes"):
        flax_cells.to_torch("linen.MGUCell", {})
    with pytest.raises(ValueError, match="There is no `weight_ih_l1` among weight_ih_l0"):
        flax_cells.from_torch("SimpleCell", state, suffix="_l1")


def test_jax_rnn():
    sizes = {"input_size": I, "hidden_size": H, "num_layers": 2, "bidirectional": True}
    count = jax_rnn_api.get_num_params_in_lstm(*sizes.values())
    flat = np.random.default_rng(0).standard_normal(count)
    state = jax_rnn.to_torch("LSTM", flat, **sizes)
    theirs = jax_rnn_api.unpack_lstm_weights(jnp.asarray(flat), *sizes.values())
    for name, parts in zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), theirs, strict=True):
        for k, suffix in enumerate(("_l0", "_l0_reverse", "_l1", "_l1_reverse")):
            np.testing.assert_array_equal(state[name + suffix], parts[k])
    np.testing.assert_array_equal(jax_rnn.from_torch("LSTM", state, **sizes), flat)
    with pytest.raises(ValueError, match="These sizes need"):
        jax_rnn.to_torch("LSTM", flat[:-1], **sizes)
    with pytest.raises(ValueError, match="knows LSTM, not 'GRU'"):
        jax_rnn.to_torch("GRU", flat, **sizes)


# One step of a row: by the library, or by the equations of ONNX's specification.


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def run(step, states):
    """A step (x, states) -> states over all rows, the outputs (B, T, H)."""
    rows = []
    for row in X:
        state, outputs = tuple(np.zeros(H) for _ in range(states)), []
        for x in row:
            state = step(x, state)
            outputs.append(state[0])
        rows.append(outputs)
    return jnp.asarray(rows)


def haiku_step(name, paths):
    """A Haiku core's step; `paths` has the module's name for each part of its parameters."""

    def make(p):
        hk = pytest.importorskip("haiku")
        params = {path: p[key] if key else p for key, path in paths.items()}

        def call(x, state):
            return getattr(hk, name)(H)(x, state)[1]

        core = hk.without_apply_rng(hk.transform(call))

        def step(x, state):
            given = hk.LSTMState(*state) if name == "LSTM" else state[0]
            new = core.apply(params, x, given)
            return tuple(new) if name == "LSTM" else (new,)

        return step

    return make


def equinox_step(name):
    def make(p):
        eqx = pytest.importorskip("equinox")
        cell = getattr(eqx.nn, name)(I, H, key=jax.random.key(0))
        cell = eqx.tree_at(lambda c: [getattr(c, key) for key in p], cell, list(p.values()))

        def step(x, state):
            new = cell(x, state if len(state) > 1 else state[0])
            return new if len(state) > 1 else (new,)

        return step

    return make


def onnx_rnn(p):
    def step(x, state):
        wb, rb = np.split(p["B"][0], 2)
        return (np.tanh(p["W"][0] @ x + p["R"][0] @ state[0] + wb + rb),)

    return step


def onnx_lstm(p):
    def step(x, state):
        h, c = state
        wb, rb = np.split(p["B"][0], 2)
        pi, po, pf = np.split(p["P"][0], 3) if "P" in p else (np.zeros(H),) * 3
        i, o, f, g = np.split(p["W"][0] @ x + p["R"][0] @ h + wb + rb, 4)
        i, f = sigmoid(i + pi * c), sigmoid(f + pf * c)
        c = f * c + i * np.tanh(g)
        return sigmoid(o + po * c) * np.tanh(c), c

    return step


def onnx_gru(before):
    def make(p):
        def step(x, state):
            (h,) = state
            (wz, wr, wh), (rz, rr, rh) = (np.split(p[k][0], 3) for k in "WR")
            wbz, wbr, wbh, rbz, rbr, rbh = np.split(p["B"][0], 6)
            z = sigmoid(wz @ x + rz @ h + wbz + rbz)
            r = sigmoid(wr @ x + rr @ h + wbr + rbr)
            inner = r * (rh @ h + rbh) if before else rh @ (r * h) + rbh
            return ((1 - z) * np.tanh(wh @ x + inner + wbh) + z * h,)

        return step

    return make


def shaped(**shapes):
    return random_like({k: np.zeros(s) for k, s in shapes.items()})


def linear(inputs):
    return {"w": np.zeros((inputs, H)), "b": np.zeros(H)}


HAIKU_RNN = {"linear": linear(I), "linear_1": linear(H)}
STEPS = {
    "haiku LSTM": (
        haiku,
        "LSTM",
        "LSTM",
        haiku_step("LSTM", {"": "lstm/linear"}),
        shaped(w=(I + H, 4 * H), b=(4 * H,)),
    ),
    "haiku GRU": (
        haiku,
        "GRU",
        "reset_before_gru",
        haiku_step("GRU", {"": "gru"}),
        shaped(w_i=(I, 3 * H), w_h=(H, 3 * H), b=(3 * H,)),
    ),
    "haiku VanillaRNN": (
        haiku,
        "VanillaRNN",
        "rnn_relu",
        haiku_step("VanillaRNN", {k: f"vanilla_rnn/{k}" for k in HAIKU_RNN}),
        random_like(HAIKU_RNN),
    ),
    "equinox LSTMCell": (
        equinox,
        "LSTMCell",
        "LSTM",
        equinox_step("LSTMCell"),
        shaped(weight_ih=(4 * H, I), weight_hh=(4 * H, H), bias=(4 * H,)),
    ),
    "equinox GRUCell": (
        equinox,
        "GRUCell",
        "GRU",
        equinox_step("GRUCell"),
        shaped(weight_ih=(3 * H, I), weight_hh=(3 * H, H), bias=(3 * H,), bias_n=(H,)),
    ),
    "onnx RNN": (onnx, "RNN", "RNN", onnx_rnn, shaped(W=(1, H, I), R=(1, H, H), B=(1, 2 * H))),
    "onnx LSTM": (
        onnx,
        "LSTM",
        "LSTM",
        onnx_lstm,
        shaped(W=(1, 4 * H, I), R=(1, 4 * H, H), B=(1, 8 * H)),
    ),
    "onnx LSTM with peepholes": (
        onnx,
        "peephole_lstm",
        "peephole_lstm",
        onnx_lstm,
        shaped(W=(1, 4 * H, I), R=(1, 4 * H, H), B=(1, 8 * H), P=(1, 3 * H)),
    ),
    "onnx GRU": (
        onnx,
        "GRU",
        "GRU",
        onnx_gru(True),
        shaped(W=(1, 3 * H, I), R=(1, 3 * H, H), B=(1, 6 * H)),
    ),
    "onnx GRU, linear_before_reset=0": (
        onnx,
        "reset_before_gru",
        "reset_before_gru",
        onnx_gru(False),
        shaped(W=(1, 3 * H, I), R=(1, 3 * H, H), B=(1, 6 * H)),
    ),
}


@pytest.mark.parametrize("case", STEPS)
def test_the_steps_of(case):
    library, kind, name, step, params = STEPS[case]
    state = library.to_torch(kind, params)
    module = ours(name)
    states = module.cell.states
    wanted = run(step(params), states)
    same(loaded(module, state), wanted)
    # And back: the same function, if not the same split of two biases that are added.
    back = library.from_torch(kind, state)
    same(run(step(back), states), wanted)
    assert jax.tree.structure(back) == jax.tree.structure(params)


@pytest.mark.parametrize("library", [keras, flax_cells, equinox, haiku, onnx])
def test_an_unknown_kind_is_told(library):
    with pytest.raises(ValueError, match="not 'Transformer'"):
        library.to_torch("Transformer", {})
    with pytest.raises(ValueError, match="not 'Transformer'"):
        library.from_torch("Transformer", {})


def test_the_second_direction_of_onnx():
    shapes = {"W": (2, 4 * H, I), "R": (2, 4 * H, H), "B": (2, 8 * H), "P": (2, 3 * H)}
    both = random_like({name: np.zeros(shape) for name, shape in shapes.items()})
    second = {name: tensor[1:] for name, tensor in both.items()}
    same(
        onnx.to_torch("peephole_lstm", both, direction=1, suffix="_l0_reverse"),
        onnx.to_torch("peephole_lstm", second, suffix="_l0_reverse"),
    )


def test_a_keras_gru_with_one_bias_is_told_which_kind_it_is():
    with pytest.raises(ValueError, match='its kind is "reset_before_gru"'):
        keras.to_torch("GRU", [np.zeros((I, 3 * H)), np.zeros((H, 3 * H)), np.zeros(3 * H)])


def test_a_haiku_rnn_with_one_bias():
    params = random_like({"linear": linear(I), "linear_1": {"w": np.zeros((H, H))}})
    state = haiku.to_torch("VanillaRNN", params)
    np.testing.assert_array_equal(state["bias_hh_l0"], np.zeros(H))
    np.testing.assert_array_equal(state["bias_ih_l0"], params["linear"]["b"])
