"""Minibatches from sequences of different lengths, and three synthetic tasks, in NumPy alone.

    padding       `Batch`, and padding to a common length
    plans         the items of each minibatch, from a seed
    minibatches   minibatches of sequences in memory
    reading       minibatches of sequences that are read when they are needed
    synthetic     synthetic tasks

All random choices depend on a seed alone, so that two frameworks, or a run and its continuation,
see the same batches in the same order.

Letters: N sequences, B batch, T steps, I inputs.

    >>> from jaxrnn import data
    >>> data.batches([[1, 2], [3]], [0, 1], batch_size=2)[0].inputs.tolist()
    [[1, 2], [3, 0]]
"""

from jaxrnn.data.minibatches import batches
from jaxrnn.data.padding import Batch, pad
from jaxrnn.data.plans import Seed, bucket_edges, plan, split
from jaxrnn.data.reading import read_batches
from jaxrnn.data.synthetic import (
    create_memory_task,
    create_synthetic_sequences,
    create_variable_length_batch,
)

__all__ = [
    "Batch",
    "Seed",
    "batches",
    "bucket_edges",
    "create_memory_task",
    "create_synthetic_sequences",
    "create_variable_length_batch",
    "pad",
    "plan",
    "read_batches",
    "split",
]
