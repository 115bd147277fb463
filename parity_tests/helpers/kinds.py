"""The layers and cells that tests of the modules take, and their random numbers."""

from flax import nnx

import jaxrnn

LAYERS = [jaxrnn.RNN, jaxrnn.GRU, jaxrnn.LSTM]
CELLS = [jaxrnn.RNNCell, jaxrnn.GRUCell, jaxrnn.LSTMCell]


def rngs(seed=0):
    return nnx.Rngs(seed)
