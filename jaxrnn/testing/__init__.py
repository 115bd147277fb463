"""Any PyTorch module compared with its JAX twin: outputs, states, loss and every gradient.

tolerances    `tolerance`, the one table of what agreement means
rows, report  `Row`, one tensor and its judgement; `Report`, the table of them
torch_side    a PyTorch module run on given inputs; PyTorch is imported in functions only
copies        a copy of a PyTorch module
twins         two modules with the same weights, and the names that they share
rounding      the floor of a tensor: how far rounding alone moves it
operations    the rounding in each of PyTorch's operations
suspects      settings in which two modules that disagree differ
jax_side      a Flax module run on the same inputs
parity        `compare`, `compare_training`, `assert_parity`: the two sides together

A parity test of a whole model, its weights moved by name:

    >>> import numpy as np, torch, jaxrnn
    >>> from flax import nnx
    >>> from jaxrnn.testing import assert_parity
    >>> ours = nnx.Sequential(nnx.Embed(9, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(1)))
    >>> theirs = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 2))
    >>> report = assert_parity(theirs, ours, np.arange(6).reshape(2, 3), dtype="float64")
    >>> print(str(report).splitlines()[-1])
    agree: all 5 rows within tolerance
"""

from jaxrnn.testing.parity import assert_parity, compare, compare_training
from jaxrnn.testing.report import Report
from jaxrnn.testing.rows import Row
from jaxrnn.testing.tolerances import tolerance

__all__ = ["Report", "Row", "assert_parity", "compare", "compare_training", "tolerance"]
