"""PyTorch reference for parity: the models that `jaxrnn` re-implements, and their training.

cells      PyTorch counterparts of `jaxrnn.cells`, with the same names, and a layer for any cell
models     PyTorch counterparts of `jaxrnn.models`, with the same names
data       the tasks of the re-implemented notebook, with identical random numbers
training   PyTorch counterparts of `jaxrnn.training`, with the same names

Nothing here imports jaxrnn.
"""
