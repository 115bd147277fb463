"""Training of any `nnx.Module` on any task: a step, an evaluation, runs that survive.

    batches       a batch of any kind read as inputs, labels and lengths
    losses        losses and metrics that respect lengths
    steps         one step of training, an evaluation, predictions, clipping
    source        the batches of a run in order
    loop          `fit`: epochs of minibatches, early stopping, resumption
    run           where a run of `fit` stands, its next epoch, how it is saved and resumed
    restore       `load`: the weights of a run without its optimizer
    state         a model's and an optimizer's arrays by name
    checkpoints   named arrays on disk, whole or absent, checked when they are read
    metrics       a run's lines of JSON, cut back to the checkpoint that it resumes from
    lock          one run at a time in a folder
    signals       Ctrl-C and SIGTERM end a run between two steps

A model is called as `model(inputs)`, or as `model(inputs, lengths=lengths)` where the batch has
lengths, and may return any pytree; `forward=` calls it in another way. A loss and a metric are
functions of the outputs and the batch.

    >>> import jax.numpy as jnp
    >>> from jaxrnn import data, training
    >>> batch = data.Batch(jnp.zeros((2, 3)), jnp.array([1, 0]))
    >>> float(training.accuracy(jnp.array([[0.0, 1.0], [0.0, 1.0]]), batch))
    0.5
"""

from jaxrnn.training.loop import History, fit
from jaxrnn.training.losses import (
    accuracy,
    binary_cross_entropy,
    cross_entropy,
    ctc_loss,
    masked_mean,
    mean_squared_error,
)
from jaxrnn.training.restore import load
from jaxrnn.training.steps import clip_grad_norm, evaluate, forward, predict, train_step

__all__ = [
    "History",
    "accuracy",
    "binary_cross_entropy",
    "clip_grad_norm",
    "cross_entropy",
    "ctc_loss",
    "evaluate",
    "fit",
    "forward",
    "load",
    "masked_mean",
    "mean_squared_error",
    "predict",
    "train_step",
]
