"""Parameters, dtypes, dropout and errors of the modules."""

import dataclasses
import inspect
import pydoc
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import jaxrnn
from jaxrnn import strategies

pytestmark = pytest.mark.unoptimised

F32 = jnp.float32
LAYERS = [jaxrnn.RNN, jaxrnn.GRU, jaxrnn.LSTM]
CELLS = [jaxrnn.RNNCell, jaxrnn.GRUCell, jaxrnn.LSTMCell]


def rngs(seed=0):
    return nnx.Rngs(seed)


@pytest.mark.parametrize("cls", LAYERS + CELLS)
@pytest.mark.parametrize("bias", [True, False])
def test_parameters_have_pytorchs_names_shapes_and_distribution(cls, bias):
    options = {"num_layers": 2, "bidirectional": True} if cls in LAYERS else {}
    if cls is jaxrnn.LSTM:
        options["proj_size"] = 7
    theirs = getattr(torch.nn, cls.__name__)(30, 40, bias=bias, **options)
    ours = cls(30, 40, bias=bias, **options, rngs=rngs())
    state = jaxrnn.state_dict(ours)
    assert {k: v.shape for k, v in state.items()} == {
        k: tuple(v.shape) for k, v in theirs.state_dict().items()
    }
    bound = 1 / np.sqrt(40)
    for value in state.values():
        assert value.dtype == np.float32
        assert np.abs(value).max() <= bound
        if value.size > 1000:  # uniform: its standard deviation is bound / sqrt(3)
            assert np.abs(value).max() > 0.98 * bound
            np.testing.assert_allclose(value.std(), bound / np.sqrt(3), rtol=0.1)
    for a, b in zip(state.values(), list(state.values())[1:], strict=False):
        assert a.shape != b.shape or (a != b).any()


@pytest.mark.parametrize("cls", LAYERS)
@pytest.mark.parametrize("low", [jnp.bfloat16, jnp.float16])
def test_low_precision_returns_low_outputs_and_wide_states(cls, low):
    module = cls(3, 5, num_layers=2, dtype=low, rngs=rngs())
    wide = cls(3, 5, num_layers=2, rngs=rngs())
    x = jax.random.normal(jax.random.key(0), (6, 4, 3), jnp.float32)
    output, state = module(x)
    assert output.dtype == low
    assert {s.dtype for s in jax.tree.leaves(state)} == {jnp.dtype(jnp.float32)}
    text = str(jax.make_jaxpr(module)(x))
    products = re.findall(
        r"(\w+)\[[^]]*\] = dot_general\[.*?preferred_element_type=(\w+)", text, re.S
    )
    assert {preferred for _, preferred in products} == {"float32"}
    wanted, _ = wide(x)
    np.testing.assert_allclose(output.astype(jnp.float32), wanted, atol=2e-2)
    # In chunks with the state carried over, a bfloat16 sequence is bit for bit the whole.
    first, between = module(x[:2])
    second, last = module(x[2:], between)
    np.testing.assert_array_equal(jnp.concatenate([first, second]), output)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), last, state))


@pytest.mark.parametrize("low", [jnp.bfloat16, jnp.float16])
def test_parameters_in_low_precision(low):
    module = jaxrnn.LSTM(3, 5, param_dtype=low, rngs=rngs())
    x = jnp.ones((6, 4, 3), low)
    output, (h, c) = jax.eval_shape(module, x)
    assert (output.dtype, h.dtype, c.dtype) == (low, jnp.float32, jnp.float32)
    cell = jaxrnn.GRUCell(3, 5, param_dtype=low, rngs=rngs())
    assert jax.eval_shape(cell, x[0]).dtype == jnp.float32
    grads = jax.eval_shape(jax.grad(lambda m: m(x)[0].astype(jnp.float32).sum()), module)
    assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype(low)}


@pytest.mark.parametrize("cls", CELLS)
def test_dtype_and_precision_of_the_cells(cls):
    cell = cls(3, 5, dtype=jnp.bfloat16, precision="highest", rngs=rngs())
    wide = cls(3, 5, rngs=rngs())
    x = jax.random.normal(jax.random.key(0), (4, 3), F32)
    text = str(jax.make_jaxpr(cell)(x))
    products = re.findall(r"dot_general\[(.*?)\] (\w+) ", text, re.S)
    assert len(products) == 2
    for options, _ in products:
        assert "HIGHEST" in options
        assert "preferred_element_type=float32" in options
    assert "bf16[4,3]" in text  # both operands are rounded
    assert "bf16[4,5]" in text
    for got, wanted in zip(jax.tree.leaves(cell(x)), jax.tree.leaves(wide(x)), strict=True):
        assert got.dtype == F32
        np.testing.assert_allclose(got, wanted, atol=2e-2)
        assert (got != wanted).any()


def test_precision_reaches_every_product():
    module = jaxrnn.LSTM(3, 5, proj_size=2, precision="highest", rngs=rngs())
    x = jnp.ones((6, 4, 3), jnp.float32)
    for strategy in (strategies.Scan(), strategies.Reference()):
        module.strategy = strategy
        grad = jax.grad(lambda m, x: m(x)[0].sum(), argnums=(0, 1))
        text = str(jax.make_jaxpr(grad)(module, x))
        found = re.findall(r"dot_general\[.*?precision=([^\n]*)", text, re.S)
        assert len(found) >= 6
        assert all("HIGHEST" in p for p in found)


@pytest.mark.parametrize("cls", LAYERS)
def test_dropout_is_elementwise_scaled_and_between_layers_only(cls):
    p, steps, batch, hidden = 0.3, 40, 16, 50
    seen = []

    def spy(cell, weights, x, carry, mask=None, **options):
        ys, last = strategies.Reference()(cell, weights, x, carry, mask, **options)
        seen.append((np.asarray(x), np.asarray(ys)))
        return ys, last

    module = cls(4, hidden, 2, dropout=p, strategy=spy, rngs=nnx.Rngs(0, dropout=1))
    output, _ = module(jnp.ones((steps, batch, 4), jnp.float32))
    (_, before), (after, _) = seen
    assert before.shape == (steps, batch, hidden)
    dropped = after == 0
    np.testing.assert_allclose(after[~dropped], before[~dropped] / (1 - p), 1e-6)
    spread = np.sqrt(p * (1 - p) / dropped.size)
    assert abs(dropped.mean() - p) < 5 * spread
    for axis in range(3):  # per step, per row and per unit: no axis shares its mask
        assert 0 < dropped.any(axis).mean() <= 1
        assert not dropped.all(axis).any()
    assert (output != 0).all()  # none after the last layer


@pytest.mark.parametrize("cls", LAYERS)
def test_eval_turns_dropout_off_and_train_on(cls):
    module = cls(4, 8, num_layers=2, dropout=0.5, rngs=rngs())
    twin = cls(4, 8, num_layers=2, rngs=rngs())
    jaxrnn.load_state_dict(twin, jaxrnn.state_dict(module))
    x = jnp.ones((5, 3, 4), jnp.float32)
    assert (module(x)[0] != twin(x)[0]).any()
    module.eval()
    np.testing.assert_array_equal(module(x)[0], twin(x)[0])
    module.train()
    assert (module(x)[0] != twin(x)[0]).any()


@dataclasses.dataclass(frozen=True)
class Spy:
    """A strategy of a user's own: `Reference`, and a note of each call."""

    calls: list = dataclasses.field(default_factory=list, compare=False)

    def __call__(self, cell, weights, x, carry, mask=None, *, precision=None, reverse=False):
        self.calls.append((cell.name, x.shape, mask is not None, precision))
        options = {"precision": precision, "reverse": reverse}
        return strategies.Reference()(cell, weights, x, carry, mask, **options)


@pytest.mark.parametrize("cls", LAYERS)
def test_the_strategy_that_is_named_is_the_one_that_runs(cls):
    spy = Spy()
    module = cls(3, 5, 2, bidirectional=True, strategy=spy, precision="highest", rngs=rngs())
    x, lengths = jnp.ones((7, 2, 3), F32), jnp.array([7, 2])
    jax.eval_shape(jax.grad(lambda m: m(x, lengths=lengths)[0].sum()), module)
    name = {"RNN": "rnn_tanh", "GRU": "gru", "LSTM": "lstm"}[cls.__name__]
    assert spy.calls == [(name, (7, 2, inputs), True, "highest") for inputs in (3, 3, 10, 10)]


def test_repr_shows_the_strategy_and_the_arguments():
    text = repr(jaxrnn.LSTM(3, 5, strategy=strategies.Scan(unroll=4), rngs=rngs()))
    for part in ("strategy=Scan(unroll=4)", "input_size=3", "hidden_size=5", "weight_hh_l0"):
        assert part in text


@pytest.mark.parametrize("layout", ["numpy", "jax", "list"])
def test_inputs_and_lengths_of_any_array_kind(layout):
    module = jaxrnn.GRU(3, 5, rngs=rngs())
    x = np.random.default_rng(0).standard_normal((4, 2, 3)).astype(np.float32)
    convert = {"numpy": np.asarray, "jax": jnp.asarray, "list": list}[layout]
    got = module(x if layout == "list" else convert(x), lengths=convert(np.array([4, 1])))
    wanted = module(jnp.asarray(x), lengths=jnp.asarray([4, 1]))
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), got, wanted))


X = jnp.zeros((5, 4, 3), F32)


W = jaxrnn.cells.Weights(jnp.zeros((18, 3), F32), jnp.zeros((18, 6), F32))


def lstm(**options):
    return jaxrnn.LSTM(3, 6, **options, rngs=rngs())


def with_weight(module, name, shape):
    setattr(module, name, nnx.Param(jnp.zeros(shape, F32)))
    return module


REFUSALS = {
    "input size": (
        lambda: lstm()(jnp.zeros((5, 2, 4), F32)),
        ValueError,
        "input.size(-1) must be equal to input_size. Expected 3, got 4. "
        "`LSTM(input_size=3)` needs inputs of shape (T, B, 3) or (T, 3), got (5, 2, 4).",
    ),
    "input rank": (
        lambda: jaxrnn.RNN(3, 6, batch_first=True, rngs=rngs())(jnp.zeros(3, F32)),
        ValueError,
        "RNN: Expected input to be 2D or 3D, got 1D tensor instead. "
        "`RNN(input_size=3)` needs inputs of shape (B, T, 3) or (T, 3), got (3,).",
    ),
    "input dtype": (
        lambda: lstm()(jnp.zeros((5, 4, 3), jnp.float64)),
        ValueError,
        "RNN input dtype (float64) does not match weight dtype (float32). Convert input: "
        "input.to(float32), or convert model: model.to(float64). In JAX: `x.astype('float32')`, or "
        "`LSTM(..., param_dtype='float64')`, or `LSTM(..., dtype=...)`, which converts both to the "
        "dtype that it names.",
    ),
    "integer inputs": (
        lambda: lstm()(jnp.zeros((5, 4, 3), jnp.int32)),
        ValueError,
        "RNN input dtype (int32) does not match weight dtype (float32). `LSTM` needs floating "
        "inputs: `x.astype('float32')`.",
    ),
    "boolean inputs of a cell": (
        lambda: jaxrnn.GRUCell(3, 6, rngs=rngs())(np.ones((4, 3), bool)),
        ValueError,
        "RNN input dtype (bool) does not match weight dtype (float32). `GRUCell` needs floating "
        "inputs: `x.astype('float32')`.",
    ),
    "complex inputs without dtype": (
        lambda: lstm()(jnp.zeros((5, 4, 3), complex)),
        ValueError,
        "RNN input dtype (complex128) does not match weight dtype (float32). `LSTM` needs "
        "floating inputs: `x.astype('float32')`.",
    ),
    "a packed sequence": (
        lambda: lstm()(torch.nn.utils.rnn.pack_sequence([torch.ones(3, 3), torch.ones(2, 3)])),
        TypeError,
        "`LSTM(input_size=3)` needs a padded array and its lengths, got a PackedSequence: "
        "`x, lengths = torch.nn.utils.rnn.pad_packed_sequence(packed)`, then pass "
        "`jnp.asarray(x)` and `lengths=jnp.asarray(lengths)`.",
    ),
    "inputs and lengths as a pair": (
        lambda: lstm()((X, np.array([5, 1, 2, 3]))),
        TypeError,
        "`LSTM(input_size=3)` needs one array as input, got a tuple of 2: pass lengths as "
        "`lengths=` and states as `hx=`.",
    ),
    "a list of sequences": (
        lambda: lstm()([np.ones((5, 3), np.float32), np.ones((2, 3), np.float32)]),
        TypeError,
        "`LSTM(input_size=3)` needs one array as input, got a ragged list: pad sequences "
        "of several lengths with `jaxrnn.data.pad` and pass their `lengths=`.",
    ),
    "no input": (
        lambda: lstm()(None),
        TypeError,
        "`LSTM(input_size=3)` needs one array as input, got NoneType.",
    ),
    "lengths by position": (
        lambda: lstm()(X, jnp.array([5, 1, 2, 3])),
        TypeError,
        "`LSTM(input_size=3)` got integers in place of h_0 and c_0: pass lengths by name, "
        "`lengths=`.",
    ),
    "lengths by position, two of them": (
        lambda: lstm()(X[:, :2], [5, 1]),
        TypeError,
        "`LSTM(input_size=3)` got integers in place of h_0 and c_0: pass lengths by name, "
        "`lengths=`.",
    ),
    "lengths by position of a GRU": (
        lambda: jaxrnn.GRU(3, 6, rngs=rngs())(X, [5, 1, 2, 3]),
        TypeError,
        "`GRU(input_size=3)` got integers in place of h_0: pass lengths by name, `lengths=`.",
    ),
    "lengths as the third argument": (
        lambda: lstm()(X, None, [5, 1, 2, 3]),
        TypeError,
        "`LSTM` takes its input and `hx`, and all else by name: too many positional arguments.",
    ),
    "a seed for rngs": (
        lambda: jaxrnn.GRU(3, 6, rngs=0),
        TypeError,
        "`GRU(rngs=...)` needs an `nnx.Rngs`, such as `rngs=nnx.Rngs(0)`, got 0.",
    ),
    "a seed for a cell's rngs": (
        lambda: jaxrnn.LSTMCell(3, 6, rngs=0),
        TypeError,
        "`LSTMCell(rngs=...)` needs an `nnx.Rngs`, such as `rngs=nnx.Rngs(0)`, got 0.",
    ),
    "a seed for dropout": (
        lambda: lstm(num_layers=2, dropout=0.5)(X, rngs=0),
        TypeError,
        "`LSTM(input_size=3)` with dropout needs `rngs` of an `nnx.Rngs`, a stream or a key, "
        "got 0.",
    ),
    "a weight of another shape": (
        lambda: with_weight(lstm(), "weight_hh_l0", (6, 24))(X),
        ValueError,
        "`LSTM(input_size=3)` needs weight_hh_l0 of shape (24, 6), got (6, 24).",
    ),
    "a bias of another shape": (
        lambda: with_weight(lstm(bidirectional=True), "bias_ih_l0_reverse", (1,))(X),
        ValueError,
        "`LSTM(input_size=3)` needs bias_ih_l0_reverse of shape (24,), got (1,).",
    ),
    "a cell's weight of another shape": (
        lambda: with_weight(jaxrnn.GRUCell(3, 6, rngs=rngs()), "weight_ih", (18, 4))(X[0]),
        ValueError,
        "`GRUCell(input_size=3)` needs weight_ih of shape (18, 3), got (18, 4).",
    ),
    "no pair of states": (
        lambda: lstm()(X, jnp.zeros((1, 4, 6), F32)),
        TypeError,
        "`LSTM(input_size=3)` needs the states (h_0, c_0), got ArrayImpl.",
    ),
    "no rate of zoneout": (
        lambda: lstm(zoneout=()),
        ValueError,
        "`LSTM(zoneout=...)` needs one number, for h, or one for each of the 2 states of the cell "
        "'lstm', got ().",
    ),
    "zoneout of None": (
        lambda: lstm(zoneout=None),
        ValueError,
        "`LSTM(zoneout=None)` needs a probability in [0, 1].",
    ),
    "no state at all": (
        lambda: lstm()(X, (None, None)),
        TypeError,
        "`LSTM(input_size=3)` needs an array as h_0, got NoneType; leave `hx` out for zeros.",
    ),
    "a string as a cell's state": (
        lambda: jaxrnn.GRUCell(3, 6, rngs=rngs())(X[0], "h"),
        TypeError,
        "`GRUCell` needs an array as h, got str; leave `hx` out for zeros.",
    ),
    "a pair of states": (
        lambda: jaxrnn.GRU(3, 6, rngs=rngs())(X, (jnp.zeros((1, 4, 6), F32),) * 2),
        TypeError,
        "`GRU(input_size=3)` needs one state, h_0, got a tuple.",
    ),
    "state rank": (
        lambda: lstm()(X, (jnp.zeros((1, 6), F32),) * 2),
        ValueError,
        "For batched 3-D input, hx and cx should also be 3-D but got (2-D, 2-D) tensors. "
        "`LSTM(input_size=3)` needs h_0 of shape (1, 4, 6) and c_0 of shape (1, 4, 6).",
    ),
    "state rank, unbatched": (
        lambda: jaxrnn.GRU(3, 6, rngs=rngs())(X[:, 0], jnp.zeros((1, 1, 6), F32)),
        ValueError,
        "For unbatched 2-D input, hx should also be 2-D but got 3-D tensor. "
        "`GRU(input_size=3)` needs h_0 of shape (1, 6).",
    ),
    "state shape": (
        lambda: lstm(proj_size=2)(X, (jnp.zeros((1, 4, 2), F32), jnp.zeros((1, 4, 2), F32))),
        ValueError,
        "Expected hidden[1] size (1, 4, 6), got [1, 4, 2]. "
        "`LSTM(input_size=3)` needs h_0 of shape (1, 4, 2) and c_0 of shape (1, 4, 6).",
    ),
    "a state of another dtype": (
        lambda: jaxrnn.GRU(3, 6, rngs=rngs())(X, jnp.zeros((1, 4, 6), jnp.float64)),
        ValueError,
        "`GRU(input_size=3)` needs h_0 of dtype float32, got float64.",
    ),
    "a complex state": (
        lambda: jaxrnn.GRUCell(3, 6, dtype=F32, rngs=rngs())(X[0], jnp.zeros((4, 6), complex)),
        TypeError,
        "`GRUCell` needs h of real numbers, got complex128.",
    ),
    "complex inputs": (
        lambda: lstm(dtype=F32)(jnp.zeros((5, 4, 3), complex)),
        TypeError,
        "`LSTM` needs inputs of real numbers, got complex128.",
    ),
    "a dtype of integers": (
        lambda: lstm(dtype=jnp.int32),
        TypeError,
        "`LSTM(dtype=...)` needs a floating dtype, got int32.",
    ),
    "parameters of integers": (
        lambda: jaxrnn.RNNCell(3, 6, param_dtype=int, rngs=rngs()),
        TypeError,
        "`RNNCell(param_dtype=...)` needs a floating dtype, got int64.",
    ),
    "a stack's carry": (
        lambda: jaxrnn.layers.stack(jaxrnn.cells.gru, [[W], [W]], X, (jnp.zeros((1, 4, 6)),)),
        ValueError,
        "`stack` needs a carry of arrays (L*D, B, ·), here (2, 4, ·), got (1, 4, 6).",
    ),
    "a stack of nothing": (
        lambda: jaxrnn.layers.stack(jaxrnn.cells.gru, [], X, (jnp.zeros((0, 4, 6)),)),
        ValueError,
        "`stack` needs the weights of one layer at least, got none.",
    ),
    "proj_size of an RNN": (
        lambda: jaxrnn.RNN(3, 6, proj_size=2, rngs=rngs()),
        ValueError,
        "proj_size argument is only supported for LSTM, not RNN or GRU: `RNN(proj_size=2)`.",
    ),
    "lengths of floats": (
        lambda: lstm()(X, lengths=jnp.zeros((4, 1), F32)),
        TypeError,
        "`lengths` must be integers of shape (B,) = (4,), got float32 of shape (4, 1).",
    ),
    "lengths of booleans": (
        lambda: lstm()(X, lengths=np.ones(4, bool)),
        TypeError,
        "`lengths` must be integers of shape (B,) = (4,), got bool of shape (4,).",
    ),
    "lengths of another shape": (
        lambda: lstm()(X, lengths=np.ones(5, int)),
        ValueError,
        "`lengths` must be integers of shape (B,) = (4,), got int64 of shape (5,).",
    ),
    "lengths of a single row": (
        lambda: lstm()(X[:, 0], lengths=np.ones(1, int)),
        ValueError,
        "`lengths` must be integers of shape () for unbatched input, got int64 of shape (1,).",
    ),
    "a length too long": (
        lambda: lstm()(X, lengths=[1, 2, 6, 0]),
        ValueError,
        "`lengths` must be in [0, T] = [0, 5], got 6 in row 2.",
    ),
    "a negative length": (
        lambda: lstm()(X, lengths=jnp.asarray([1, -2, 5, 0])),
        ValueError,
        "`lengths` must be in [0, T] = [0, 5], got -2 in row 1.",
    ),
    "num_layers": (
        lambda: lstm(num_layers=0),
        ValueError,
        "num_layers must be greater than zero: `LSTM(num_layers=0)`.",
    ),
    "num_layers of a float": (
        lambda: lstm(num_layers=2.0),
        TypeError,
        "num_layers should be of type int, got: float in `LSTM(num_layers=2.0)`.",
    ),
    "dropout": (
        lambda: lstm(dropout=1.5),
        ValueError,
        "dropout should be a number in range [0, 1] representing the probability of an element "
        "being zeroed: `LSTM(dropout=1.5)`.",
    ),
    "proj_size too large": (
        lambda: lstm(proj_size=6),
        ValueError,
        "proj_size has to be smaller than hidden_size: `LSTM(hidden_size=6, proj_size=6)`.",
    ),
    "proj_size negative": (
        lambda: lstm(proj_size=-1),
        ValueError,
        "proj_size should be a positive integer or zero to disable projections: "
        "`LSTM(proj_size=-1)`.",
    ),
    "proj_size of a GRU": (
        lambda: jaxrnn.GRU(3, 6, proj_size=2, rngs=rngs()),
        ValueError,
        "proj_size argument is only supported for LSTM, not RNN or GRU: `GRU(proj_size=2)`.",
    ),
    "nonlinearity": (
        lambda: jaxrnn.RNN(3, 6, nonlinearity="gelu", rngs=rngs()),
        ValueError,
        "Unknown nonlinearity 'gelu'. Select from 'tanh' or 'relu': `RNN(nonlinearity='gelu')`.",
    ),
    "a cell's input": (
        lambda: jaxrnn.GRUCell(3, 6, rngs=rngs())(jnp.zeros((2, 4), F32)),
        ValueError,
        "input has inconsistent input_size: got 4 expected 3. "
        "`GRUCell(input_size=3)` needs inputs of shape (B, 3) or (3,), got (2, 4).",
    ),
    "a cell's batch": (
        lambda: jaxrnn.LSTMCell(3, 6, rngs=rngs())(X[0], (jnp.zeros((5, 6), F32),) * 2),
        ValueError,
        "Input batch size 4 doesn't match hidden0 batch size 5: "
        "`LSTMCell` needs h of shape (4, 6) and c of shape (4, 6).",
    ),
    "a cell's state rank": (
        lambda: jaxrnn.RNNCell(3, 6, rngs=rngs())(X[0], jnp.zeros(6, F32)),
        ValueError,
        "`RNNCell` needs hidden of the input's rank: h of shape (4, 6), got (6,).",
    ),
}


@pytest.mark.core
@pytest.mark.parametrize("case", REFUSALS)
def test_bad_input_gets_one_sentence(case):
    call, kind, text = REFUSALS[case]
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value) == text


def test_wrong_shapes_are_both_kinds_of_error():
    """A ValueError to JAX's users and a RuntimeError to PyTorch's."""
    for kind in (ValueError, RuntimeError, jaxrnn.InputError):
        with pytest.raises(kind, match="needs inputs of shape"):
            lstm()(jnp.zeros((5, 2, 4), F32))


class Subclass(jaxrnn.GRU):
    """A user's own, with another constructor around ours."""

    def __init__(self, units, *, dropout=0.0, rngs):
        super().__init__(3, units, dropout=dropout, rngs=rngs)


@pytest.mark.parametrize(
    "make",
    [
        *(partial(cls, 3) for cls in LAYERS),
        Subclass,
    ],
    ids=["RNN", "GRU", "LSTM", "a subclass"],
)
def test_the_dropout_warning_points_to_the_line_that_makes_the_module(make):
    with pytest.warns(UserWarning, match="num_layers greater than 1") as caught:
        make(5, dropout=np.float32(0.5), rngs=rngs())
    assert caught[0].filename == __file__


def test_the_advice_for_a_packed_sequence_works():
    rows = [torch.ones(3, 3), torch.ones(2, 3)]
    packed = torch.nn.utils.rnn.pack_sequence(rows)
    x, lengths = torch.nn.utils.rnn.pad_packed_sequence(packed)
    output, _ = lstm()(jnp.asarray(x), lengths=jnp.asarray(lengths))
    assert output.shape == (3, 2, 6)
    assert (output[2, 1] == 0).all()
    assert (output[2, 0] != 0).any()


@pytest.mark.parametrize("kind", [bool, np.int32, complex])
def test_the_advice_for_other_dtypes_works(kind):
    x = np.ones((5, 4, 3), kind).real.astype("float32")
    assert lstm()(x)[0].dtype == F32


@pytest.mark.parametrize("cls", [*LAYERS, *CELLS, Subclass])
def test_signatures_show_the_arguments(cls):
    shown = str(inspect.signature(cls))
    first = "units" if cls is Subclass else "input_size: int, hidden_size: int"
    assert shown.startswith(f"({first}")
    assert "rngs" in shown
    assert "nonlinearity" in shown or cls not in (jaxrnn.RNN, jaxrnn.RNNCell)
    text = pydoc.render_doc(cls, renderer=pydoc.plaintext)
    unwrapped = re.sub(r"[\s|]", "", text)
    assert f"class{cls.__name__}(" in unwrapped
    assert f"|{cls.__name__}({first}".replace(" ", "")[1:] in unwrapped.split("Methodsdefined")[0]
    of_a_call = inspect.signature(
        cls(5, rngs=rngs()) if cls is Subclass else cls(3, 5, rngs=rngs())
    )
    assert list(of_a_call.parameters)[:2] == ["input", "hx"]


@pytest.mark.parametrize("cls", LAYERS + CELLS)
def test_a_forgotten_argument_names_the_class(cls):
    with pytest.raises(TypeError, match=rf"^{cls.__name__}\.__init__\(\) missing .* 'hidden_size'"):
        cls(3, rngs=rngs())
    with pytest.raises(TypeError, match=rf"^`{cls.__name__}` takes .* missing .* 'input'"):
        cls(3, 5, rngs=rngs())()


def test_a_table_of_a_layer_with_dropout():
    """Flax's table calls every submodule with positional arguments alone for this column."""
    module = jaxrnn.LSTM(3, 5, 2, dropout=0.5, rngs=rngs())
    x = jnp.ones((5, 4, 3), F32)
    assert "vjp_flops" in nnx.tabulate(module, x, compute_flops=True, compute_vjp_flops=True)
    assert module(x)[0].shape == (5, 4, 5)


def test_dropouts_masks_are_those_of_flax():
    module = jaxrnn.GRU(3, 5, 2, dropout=0.3, rngs=rngs())
    lower, upper = (jaxrnn.GRU(i, 5, rngs=rngs()) for i in (3, 5))
    state = jaxrnn.state_dict(module)
    for part, layer in ((lower, "l0"), (upper, "l1")):
        mine = {k.replace(layer, "l0"): v for k, v in state.items() if k.endswith(layer)}
        jaxrnn.load_state_dict(part, mine)
    x = jax.random.normal(jax.random.key(0), (5, 4, 3), F32)
    key = jax.random.key(7)
    between = nnx.Dropout(0.3)(lower(x)[0], rngs=key)
    np.testing.assert_allclose(module(x, rngs=key)[0], upper(between)[0], rtol=1e-5, atol=1e-6)


def test_a_key_is_split_among_the_gaps():
    seen = []

    def spy(cell, weights, x, carry, mask=None, **options):
        seen.append(np.asarray(x) == 0)
        return strategies.Reference()(cell, weights, x, carry, mask, **options)

    module = jaxrnn.GRU(8, 8, 3, dropout=0.5, strategy=spy, rngs=rngs())
    module(jnp.ones((5, 4, 8), F32), rngs=jax.random.key(0))
    assert seen[1].any()
    assert (seen[1] != seen[2]).any()


def test_no_rows_at_all():
    output, h_n = jaxrnn.GRU(3, 5, rngs=rngs())(jnp.zeros((4, 0, 3), F32), lengths=[])
    assert (output.shape, h_n.shape) == ((4, 0, 5), (1, 0, 5))


@pytest.mark.parametrize(
    ("lengths", "said"),
    [
        (np.ones(1, int), "`stack` needs lengths of shape (B,) = (4,), got (1,)."),
        (np.ones(4), "`stack` needs lengths that are integers, got float64."),
    ],
)
def test_a_stack_refuses_lengths_that_would_broadcast_or_truncate(lengths, said):
    stack = inspect.unwrap(jaxrnn.layers.stack)  # without the suite's own check of annotations
    with pytest.raises((ValueError, TypeError)) as caught:
        stack(jaxrnn.cells.gru, [[W]], X, (jnp.zeros((1, 4, 6)),), jnp.asarray(lengths))
    assert str(caught.value) == said


class Own(jaxrnn.GRU):
    """A subclass without a constructor of its own."""


@pytest.mark.parametrize("cls", [*LAYERS, *CELLS, Own])
def test_errors_about_arguments_name_the_class_that_was_called(cls):
    for options, told in (
        ({"rngs": nnx.Rngs(0), "batchfirst": True}, "unexpected keyword argument 'batchfirst'"),
        ({}, "missing 1 required keyword-only argument: 'rngs'"),
    ):
        with pytest.raises(TypeError, match=rf"^{cls.__name__}\.__init__\(\) .*{told}$"):
            cls(3, 4, **options)
