"""PyTorch's `nn.RNN`, `nn.LSTM`, `nn.GRU`, their cells and `Recurrent` as `flax.nnx` modules.

Constructor arguments, defaults, shapes, parameter names and layouts are PyTorch's; the keyword-only
arguments after them are Flax's. The parameters are plain `nnx.Param` attributes named as PyTorch
names them, so weights move across by copying.
"""

from jaxrnn.modules.noise import Masks
from jaxrnn.modules.recurrent import Recurrent
from jaxrnn.modules.sequence import GRU, LSTM, RNN
from jaxrnn.modules.step import GRUCell, LSTMCell, RNNCell

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "Masks", "RNNCell", "Recurrent"]
