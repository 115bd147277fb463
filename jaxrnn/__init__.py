"""PyTorch's recurrent networks in JAX: RNN, LSTM, GRU and their cells as Flax modules.

cells         one step: pointwise cells, and the weights around them
strategies    one cell over time, in one direction: Reference, Scan
layers        directions, lengths and stacked layers: plain functions on plain pytrees
modules       RNN, LSTM, GRU, RNNCell, LSTMCell, GRUCell for `flax.nnx`
interchange   weights from and to PyTorch, by name and as files
testing       any PyTorch module compared with its twin: outputs, states, loss, gradients
"""

from jaxrnn import cells, layers, strategies
from jaxrnn.modules import GRU, RNN, GRUCell, LSTM, LSTMCell, RNNCell

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "cells",
    "layers",
    "strategies",
]
