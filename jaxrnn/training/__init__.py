"""Training of classifiers, for any `nnx.Module`: a step, an evaluation, runs that survive.

    steps         the loss, clipping, one step of training, an evaluation
    loop          `fit`: epochs of minibatches, early stopping, resumption
    run           where a run of `fit` stands, its next epoch, how it is saved and resumed
    state         a model's and an optimizer's arrays by name
    checkpoints   named arrays on disk, whole or absent, checked when they are read
    metrics       a run's lines of JSON, cut back to the checkpoint that it resumes from

A model is called as `model(inputs)`, or as `model(inputs, lengths=lengths)` where the batch has
lengths, and returns logits (B, C).

    >>> import jax.numpy as jnp
    >>> from jaxrnn import training
    >>> scores = training.Scores(loss=jnp.array(0.5), accuracy=jnp.array(0.75))
    >>> float(scores.accuracy)
    0.75
"""

from jaxrnn.training.loop import History, fit
from jaxrnn.training.steps import (
    Scores,
    accuracy,
    clip_grad_norm,
    cross_entropy,
    evaluate,
    predict,
    train_step,
)

__all__ = [
    "History",
    "Scores",
    "accuracy",
    "clip_grad_norm",
    "cross_entropy",
    "evaluate",
    "fit",
    "predict",
    "train_step",
]
