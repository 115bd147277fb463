"""One step of a recurrent network: pointwise cells, and the weights around them.

    base          `Cell`, `Weights`, projections: what a cell is
    torch         rnn_tanh, rnn_relu, lstm, gru: PyTorch's
    gated         peephole_lstm, coupled_lstm, janet, mgu, light_gru, reset_before_gru
    normalised    layer_norm_lstm, layer_norm_gru
    diagonal      ind_rnn, min_gru, min_lstm: no product with h
    exponential   slstm
    zoneout       any cell, with states kept at random

Each cell runs in every strategy, as a module by `jaxrnn.Recurrent(cell, input_size, hidden_size)`:

    >>> import jax.numpy as jnp, jaxrnn
    >>> from flax import nnx
    >>> from jaxrnn import cells
    >>> layer = jaxrnn.Recurrent(cells.peephole_lstm, 3, 5, bidirectional=True, rngs=nnx.Rngs(0))
    >>> output, (h_n, c_n) = layer(jnp.ones((7, 4, 3)), lengths=jnp.array([7, 2, 0, 5]))
    >>> output.shape, layer.peephole_f_l0_reverse.shape
    ((7, 4, 10), (5,))
"""

from jaxrnn.cells import diagonal, exponential, gated, normalised, torch, zoneout
from jaxrnn.cells.base import Carry as Carry
from jaxrnn.cells.base import (
    Cell,
    Weights,
    advance,
    is_pure,
    linear_step,
    project,
    project_inputs,
    pure,
    recurrent_input,
    spread,
    step,
)
from jaxrnn.cells.base import Size as Size
from jaxrnn.cells.diagonal import *  # noqa: F403
from jaxrnn.cells.exponential import *  # noqa: F403
from jaxrnn.cells.gated import *  # noqa: F403
from jaxrnn.cells.normalised import *  # noqa: F403
from jaxrnn.cells.torch import *  # noqa: F403

READY: tuple[str, ...] = tuple(
    name for module in (torch, gated, normalised, diagonal, exponential) for name in module.__all__
)
"""The names of all cells of this package."""

__all__ = [
    "READY",
    "Cell",
    "Weights",
    "advance",
    "is_pure",
    "linear_step",
    "project",
    "project_inputs",
    "pure",
    "recurrent_input",
    "spread",
    "step",
    "zoneout",
    *READY,
]
