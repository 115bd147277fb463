"""Training of classifiers in PyTorch: counterparts of `jaxrnn.training`, with the same names.

A batch is a tuple (inputs, labels, lengths) of arrays; lengths of None stand for all steps.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

Batch = tuple[Any, Any, Any]
Score = Callable[[Tensor, Batch], Tensor]


def cross_entropy(logits: Tensor, batch: Batch, smoothing: float = 0.0) -> Tensor:
    """Mean softmax cross entropy in nats, of logits (B, C) and labels (B,)."""
    return functional.cross_entropy(logits, _labels(batch), label_smoothing=smoothing)


def accuracy(logits: Tensor, batch: Batch) -> Tensor:
    """Fraction of rows whose largest logit is that of the label."""
    return (logits.argmax(-1) == _labels(batch)).to(logits.dtype).mean()


def adamw(
    model: nn.Module, learning_rate: float, weight_decay: float, steps: int
) -> torch.optim.Optimizer:
    """AdamW with a learning rate that decays to 0 along a cosine, updated at each step.

    The counterpart of `optax.adamw(optax.cosine_decay_schedule(learning_rate, steps),
    weight_decay=...)`. Both decay every parameter by the learning rate times the weight decay, and
    add 1e-8 to the square root.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: (1 + math.cos(math.pi * min(step, steps) / steps)) / 2
    )
    optimizer.register_step_post_hook(lambda *_: schedule.step())
    return optimizer


def clip_grad_norm(optimizer: torch.optim.Optimizer, max_norm: float) -> torch.optim.Optimizer:
    """The same optimizer, with clipping of the global gradient norm added before each step."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def clip(*_: Any) -> None:
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)

    optimizer.register_step_pre_hook(clip)
    return optimizer


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    *,
    loss: Score = cross_entropy,
    metrics: Mapping[str, Score] | None = None,
) -> dict[str, Tensor]:
    """Run one training step; return the loss and metrics on the batch before the update."""
    logits = _logits(model, batch)
    value = loss(logits, batch)
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    scores = {name: metric(logits.detach(), batch) for name, metric in (metrics or {}).items()}
    return {"loss": value.detach(), **scores}


@torch.no_grad()
def predict(model: nn.Module, batches: Iterable[Batch]) -> np.ndarray:
    """Logits of every row of every batch, in order, in evaluation mode."""
    mode = model.training
    model.eval()
    logits = torch.cat([_logits(model, batch) for batch in batches])
    model.train(mode)
    return logits.numpy()


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    loss: Score = cross_entropy,
    metrics: Mapping[str, Score] | None = None,
) -> dict[str, float]:
    """Loss and metrics over all rows of all batches, in evaluation mode."""
    batches = list(batches)
    logits = torch.from_numpy(predict(model, batches))
    together = (None, torch.cat([_labels(batch) for batch in batches]), None)
    scores = {"loss": loss, **(metrics or {})}
    return {name: float(score(logits, together)) for name, score in scores.items()}


class History(NamedTuple):
    """Scores recorded by `train_model`, with one value for each epoch."""

    train_losses: list[float]
    val_losses: list[float]
    train_accs: list[float]
    val_accs: list[float]


def train_model(
    model: nn.Module,
    train: Batch,
    validation: Batch,
    *,
    epochs: int = 30,
    learning_rate: float = 1e-3,
    max_norm: float = 1.0,
    every: int = 5,
    tell: Callable[[str], object] = print,
) -> History:
    """Train as the notebook does: Adam on the whole training set, with clipped gradients.

    The training scores of an epoch are those before its step, with dropout. The validation scores
    are those after it, without dropout.

    Args:
        model: a model with its initial weights. It is trained in place, and left in training mode.
        train, validation: the complete data, one batch each.
        epochs: number of optimizer steps.
        learning_rate: learning rate of Adam.
        max_norm: largest global gradient norm; longer gradients are clipped to it.
        every: number of epochs between report lines.
        tell: called with each report line.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    clip_grad_norm(optimizer, max_norm)
    history = History([], [], [], [])
    for epoch in range(epochs):
        model.train()
        seen = train_step(model, optimizer, train, metrics={"accuracy": accuracy})
        held = evaluate(model, [validation], metrics={"accuracy": accuracy})
        scores = (
            float(seen["loss"]),
            held["loss"],
            _share(seen["accuracy"], len(train[1])),
            _share(held["accuracy"], len(validation[1])),
        )
        for values, score in zip(history, scores, strict=True):
            values.append(score)
        if epoch % every == 0:
            loss, val_loss, acc, val_acc = scores
            tell(
                f"Epoch {epoch:2d}: Train Loss: {loss:.4f}, Train Acc: {acc:.4f}, "
                f"Val Loss: {val_loss:.4f}, Val Acc: {val_acc:.4f}"
            )
    return history


def _share(accuracy: Tensor | float, count: int) -> float:
    """Fraction of `count` rows in float64; float32 could print a different last digit."""
    return round(float(accuracy) * count) / count


def _logits(model: nn.Module, batch: Batch) -> Tensor:
    inputs, _, lengths = batch
    if lengths is None:
        return model(torch.as_tensor(inputs))
    return model(torch.as_tensor(inputs), lengths=torch.as_tensor(lengths))


def _labels(batch: Batch) -> Tensor:
    return torch.as_tensor(batch[1], dtype=torch.int64)
