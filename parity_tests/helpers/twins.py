"""Parallel training of a classifier and its PyTorch counterpart, for the tests and the table."""

import optax
import torch

import torch_ref.training
from jaxrnn import training
from jaxrnn.testing import compare_training

RATE = 0.1


def compare_classifiers(theirs, ours, batches, steps, *, lengths=None, clip, max_norm):
    """`compare_training` on batches (inputs, labels), with SGD and clipped gradients.

    The loss is the cross entropy of the logits, or of a sequence's last output.
    """

    def logits(module, inputs):
        output = module(inputs) if lengths is None else module(inputs, lengths)
        return output[0][:, -1] if isinstance(output, tuple) else output

    def their_loss(module, inputs, labels):
        return torch.nn.functional.cross_entropy(logits(module, inputs), labels)

    def our_loss(module, inputs, labels):
        return training.cross_entropy(logits(module, inputs), labels)

    def their_optimizer(parameters):
        sgd = torch.optim.SGD(parameters, lr=RATE)
        return torch_ref.training.clip_grad_norm(sgd, max_norm)

    return compare_training(
        theirs,
        ours,
        batches,
        their_optimizer,
        optax.chain(clip(max_norm), optax.sgd(RATE)),
        steps=steps,
        torch_call=their_loss,
        jax_call=our_loss,
    )
