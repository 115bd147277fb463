"""Training of any `nnx.Module` on any task: steps, evaluation, and runs that resume exactly.

    batches       inputs, labels and lengths of a batch of any kind
    losses        losses and metrics that respect lengths
    steps         one training step, evaluation, predictions, gradient clipping
    truncated     truncated backpropagation through time
    source        the batches of a run in order
    loop          `fit`: epochs of minibatches, early stopping, resumption
    run           state of a run of `fit`: its progress, next epoch, saving and resuming
    restore       `load`: the weights of a run without its optimizer
    scoring       loss, metrics and watched score of a run
    folder        who may write to the folder of a run
    state         arrays of a model and an optimizer by name
    checkpoints   named arrays on disk, written atomically and verified when read
    metrics       metrics of a run as JSON lines, truncated to the checkpoint on resumption
    lock          exclusive lock on the folder of a run
    placement     batches, models and optimizers on several devices
    processes     agreement between the processes of a run
    signals       Ctrl-C and SIGTERM, which end a run between two steps

A model is called as `model(inputs)`, or as `model(inputs, lengths=lengths)` if the batch has
lengths, and may return any pytree. Pass `forward=` to call it in another way. Losses and metrics
are functions of the outputs and the batch.

    >>> import jax.numpy as jnp
    >>> from jaxrnn import data, training
    >>> batch = data.Batch(jnp.zeros((2, 3)), jnp.array([1, 0]))
    >>> float(training.accuracy(jnp.array([[0.0, 1.0], [0.0, 1.0]]), batch))
    0.5
"""

from jaxrnn.training.clipping import clip_grad_norm
from jaxrnn.training.evaluation import evaluate, predict
from jaxrnn.training.loop import History, fit
from jaxrnn.training.losses import (
    accuracy,
    binary_cross_entropy,
    cross_entropy,
    ctc_loss,
    masked_mean,
    mean_squared_error,
)
from jaxrnn.training.placement import join_rows
from jaxrnn.training.restore import load
from jaxrnn.training.steps import forward, train_step
from jaxrnn.training.truncated import carry_forward, segments, tbptt

__all__ = [
    "History",
    "accuracy",
    "binary_cross_entropy",
    "carry_forward",
    "clip_grad_norm",
    "cross_entropy",
    "ctc_loss",
    "evaluate",
    "fit",
    "forward",
    "join_rows",
    "load",
    "masked_mean",
    "mean_squared_error",
    "predict",
    "segments",
    "tbptt",
    "train_step",
]
