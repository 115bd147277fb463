"""The models that `jaxrnn` re-implements and their training in PyTorch: what parity is measured by.

models     the same classes as `jaxrnn.models`, by the same names
data       the tasks of the notebook that this project re-implements, number by number
training   the same functions as `jaxrnn.training`, by the same names

Nothing here imports jaxrnn.
"""
