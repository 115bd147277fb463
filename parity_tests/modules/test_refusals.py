"""Wrong arguments and inputs: each raises one sentence, whose advice works."""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import jaxrnn
from kinds import rngs

F32 = jnp.float32
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
