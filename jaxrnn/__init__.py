"""PyTorch's recurrent networks in JAX: RNN, LSTM, GRU and their cells as Flax modules.

    cells         one step: pointwise cells, and the weights around them
    closures      arrays that a cell closes over, turned into parameters
    derivative    one derivative rule for every strategy
    strategies    one cell over time, in one direction
    native        kernels of Native: C++ for a CPU, CUDA for a GPU
    steps         values of a mask: no step, a step, a step after a reset
    sharding      the types of arrays that several devices share
    rows          arrays whose rows are independent, and `vmap` as more rows
    layers        directions, lengths and stacked layers: plain functions on plain pytrees
    modules       Recurrent, RNN, LSTM, GRU, RNNCell, LSTMCell, GRUCell for `flax.nnx`
    checks        argument checks and their errors

    interchange   weights from and to PyTorch, in memory and in files, and other libraries
    files         safetensors files, whole or not at all
    testing       two modules compared: outputs, states, loss and every gradient

    models        networks made of the modules, and recurrences written by hand
    data          padding, batching, splitting, synthetic tasks, in NumPy
    training      loss, clipping, train step, evaluation, fit: runs that survive

Imports point one way:
cells <- checks <- closures <- derivative <- strategies <- layers <- modules <- models.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxrnn import cells, layers, strategies
from jaxrnn.checks import InputError
from jaxrnn.interchange import load_safetensors, load_state_dict, save_safetensors, state_dict
from jaxrnn.modules import GRU, LSTM, RNN, GRUCell, LSTMCell, Masks, Recurrent, RNNCell

if TYPE_CHECKING:
    from jaxrnn import data as data
    from jaxrnn import models as models
    from jaxrnn import testing as testing
    from jaxrnn import training as training

__version__ = "0.1.0"

_ON_DEMAND = ("data", "models", "testing", "training")
"""Parts that are imported when they are first named, so that `import jaxrnn` need not wait."""

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "InputError",
    "LSTMCell",
    "Masks",
    "RNNCell",
    "Recurrent",
    "cells",
    "layers",
    "load_safetensors",
    "load_state_dict",
    "save_safetensors",
    "state_dict",
    "strategies",
]


def __getattr__(name: str) -> Any:
    if name in _ON_DEMAND:
        return importlib.import_module(f"jaxrnn.{name}")
    raise AttributeError(f"module 'jaxrnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_DEMAND})
