"""Comparison of a PyTorch module with its JAX counterpart: outputs, loss and every gradient.

tolerances    `tolerance`, the largest errors that count as agreement
verdicts      `Row`, the comparison of one tensor, and its verdict
report        `Report`, the table of all rows
torch_side    the PyTorch module run on given inputs; PyTorch is imported in functions only
copies        copies of PyTorch modules
twins         copies of both modules with the same weights, and their parameter names
rounding      the floor of a tensor: the error that rounding alone explains
operations    the rounding of each PyTorch operation
suspects      settings that differ between two modules that disagree
jax_side      the Flax module run on the same inputs
jax_pairs     the comparison of two JAX modules
parity        `compare`, `compare_training`, `assert_parity`: both sides together

A parity test of a whole model, with its weights loaded by name:

    >>> import numpy as np, torch, jaxrnn
    >>> from flax import nnx
    >>> from jaxrnn.testing import assert_parity
    >>> ours = nnx.Sequential(nnx.Embed(9, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(1)))
    >>> theirs = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 2))
    >>> report = assert_parity(theirs, ours, np.arange(6).reshape(2, 3), dtype="float64")
    >>> print(str(report).splitlines()[-1])
    agree: all 5 rows within tolerance
"""

from jaxrnn.testing.parity import assert_parity, compare
from jaxrnn.testing.report import Report
from jaxrnn.testing.tolerances import tolerance
from jaxrnn.testing.training import compare_training
from jaxrnn.testing.verdicts import Row

__all__ = ["Report", "Row", "assert_parity", "compare", "compare_training", "tolerance"]
