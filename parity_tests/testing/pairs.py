"""Right twins of many kinds, in three sizes each, for `rates.py`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import jaxrnn

RNGS = nnx.Rngs(0)
tnn = torch.nn


class Size(NamedTuple):
    """Steps, rows, inputs, hidden units."""

    steps: int
    batch: int
    inputs: int
    hidden: int


SIZES = [Size(4, 3, 2, 4), Size(7, 4, 3, 8), Size(20, 8, 6, 16)]


class Pair(NamedTuple):
    """Two modules of the same function.

    Attributes:
        cancels: parameters whose exact gradient is 0 for all weights and inputs.
        train: whether batch normalisation uses the batch.
    """

    theirs: Callable[[Size], Any]
    ours: Callable[[Size], nnx.Module]
    inputs: Callable[[Size, np.random.Generator], Any] = lambda s, rng: rng.normal(
        size=(s.batch, s.steps, s.inputs)
    )
    cancels: tuple[str, ...] = ()
    train: bool = False
    lengths: bool = False


def rows(s: Size, rng: np.random.Generator) -> np.ndarray:
    return rng.normal(size=(s.steps * s.batch, s.inputs))


def tokens(s: Size, rng: np.random.Generator) -> np.ndarray:
    return np.random.default_rng(0).integers(0, s.inputs, (s.batch, s.steps))


def recurrent(kind: str, **options: Any) -> Pair:
    """One of our layers, on ragged rows."""

    def theirs(s: Size) -> Any:
        return getattr(tnn, kind)(s.inputs, s.hidden, batch_first=True, **options)

    def ours(s: Size) -> nnx.Module:
        return getattr(jaxrnn, kind)(s.inputs, s.hidden, batch_first=True, **options, rngs=RNGS)

    return Pair(theirs, ours, lengths=True)


def batch_norm(features: int) -> nnx.Module:
    return nnx.BatchNorm(features, momentum=0.9, epsilon=1e-5, rngs=RNGS)


def layer_norm(features: int) -> nnx.Module:
    return nnx.LayerNorm(features, epsilon=1e-5, rngs=RNGS)


def linear(inputs: int, outputs: int) -> nnx.Module:
    return nnx.Linear(inputs, outputs, rngs=RNGS)


def chained(theirs: Callable[[Size], list[Any]], ours: Callable[[Size], list[Any]]) -> Any:
    return lambda s: tnn.Sequential(*theirs(s)), lambda s: nnx.Sequential(*ours(s))


def deep_batch_norm(depth: int) -> Pair:
    """Linear layers, each followed by batch normalisation in training."""

    def theirs(s: Size) -> list[Any]:
        sizes = [s.inputs] + [s.hidden] * depth
        return [
            part
            for i in range(depth)
            for part in (tnn.Linear(*sizes[i : i + 2]), tnn.BatchNorm1d(s.hidden), tnn.Tanh())
        ]

    def ours(s: Size) -> list[Any]:
        sizes = [s.inputs] + [s.hidden] * depth
        return [
            part
            for i in range(depth)
            for part in (linear(*sizes[i : i + 2]), batch_norm(s.hidden), jnp.tanh)
        ]

    cancels = tuple(f"{3 * i}.bias" for i in range(depth))
    return Pair(*chained(theirs, ours), rows, cancels, train=True)


def deep_layer_norm(depth: int) -> Pair:
    """Linear layers with exact GELU and layer normalisation."""

    def theirs(s: Size) -> list[Any]:
        return [tnn.Linear(s.inputs, s.hidden)] + [
            part
            for _ in range(depth)
            for part in (tnn.LayerNorm(s.hidden), tnn.Linear(s.hidden, s.hidden), tnn.GELU())
        ]

    def ours(s: Size) -> list[Any]:
        return [linear(s.inputs, s.hidden)] + [
            part
            for _ in range(depth)
            for part in (
                layer_norm(s.hidden),
                linear(s.hidden, s.hidden),
                lambda x: nnx.gelu(x, approximate=False),
            )
        ]

    return Pair(*chained(theirs, ours), rows)


class TheirAttention(tnn.Module):
    def __init__(self, s: Size) -> None:
        super().__init__()
        self.embed = tnn.Linear(s.inputs, s.hidden)
        self.norm = tnn.LayerNorm(s.hidden)
        self.query = tnn.Linear(s.hidden, s.hidden)
        self.key = tnn.Linear(s.hidden, s.hidden)
        self.value = tnn.Linear(s.hidden, s.hidden)

    def forward(self, x: Any) -> Any:
        x = self.embed(x)
        y = self.norm(x)
        scores = self.query(y) @ self.key(y).transpose(-1, -2) / x.shape[-1] ** 0.5
        return x + scores.softmax(-1) @ self.value(y)


class OurAttention(nnx.Module):
    def __init__(self, s: Size) -> None:
        self.embed = linear(s.inputs, s.hidden)
        self.norm = layer_norm(s.hidden)
        self.query = linear(s.hidden, s.hidden)
        self.key = linear(s.hidden, s.hidden)
        self.value = linear(s.hidden, s.hidden)

    def __call__(self, x: Any) -> Any:
        x = self.embed(x)
        y = self.norm(x)
        scores = self.query(y) @ self.key(y).swapaxes(-1, -2) / x.shape[-1] ** 0.5
        return x + nnx.softmax(scores) @ self.value(y)


class TheirNet(tnn.Module):
    """A convolution with batch normalisation, halved in time, an LSTM, doubled again, a head."""

    def __init__(self, s: Size) -> None:
        super().__init__()
        self.conv = tnn.Conv1d(s.inputs, s.hidden, 3, padding="same")
        self.norm = tnn.BatchNorm1d(s.hidden)
        self.down = tnn.Conv1d(s.hidden, s.hidden, 3, padding="same")
        self.lstm = tnn.LSTM(s.hidden, s.hidden, batch_first=True)
        self.head = tnn.Linear(2 * s.hidden, 1)

    def forward(self, x: Any) -> Any:
        skip = torch.relu(self.norm(self.conv(x.transpose(1, 2))))
        even = skip[:, :, : skip.shape[2] // 2 * 2]
        low = torch.tanh(self.down(even.reshape(*even.shape[:2], -1, 2).mean(-1)))
        y = self.lstm(low.transpose(1, 2))[0].repeat_interleave(2, 1)
        return self.head(torch.cat([even.transpose(1, 2), y], -1))


class OurNet(nnx.Module):
    def __init__(self, s: Size) -> None:
        self.conv = nnx.Conv(s.inputs, s.hidden, 3, rngs=RNGS)
        self.norm = batch_norm(s.hidden)
        self.down = nnx.Conv(s.hidden, s.hidden, 3, rngs=RNGS)
        self.lstm = jaxrnn.LSTM(s.hidden, s.hidden, batch_first=True, rngs=RNGS)
        self.head = linear(2 * s.hidden, 1)

    def __call__(self, x: Any) -> Any:
        skip = nnx.relu(self.norm(self.conv(x)))
        even = skip[:, : skip.shape[1] // 2 * 2]
        low = jnp.tanh(self.down(even.reshape(len(x), -1, 2, even.shape[-1]).mean(2)))
        y = self.lstm(low)[0].repeat(2, 1)
        return self.head(jnp.concatenate([even, y], -1))


class TheirTagger(tnn.Module):
    def __init__(self, s: Size) -> None:
        super().__init__()
        self.embed = tnn.Embedding(s.inputs, s.hidden)
        self.gru = tnn.GRU(s.hidden, s.hidden, 2, batch_first=True)
        self.value = tnn.Linear(s.hidden, 1)

    def forward(self, x: Any) -> Any:
        return self.value(self.gru(self.embed(x))[0])


class OurTagger(nnx.Module):
    def __init__(self, s: Size) -> None:
        self.embed = nnx.Embed(s.inputs, s.hidden, rngs=RNGS)
        self.gru = jaxrnn.GRU(s.hidden, s.hidden, 2, batch_first=True, rngs=RNGS)
        self.value = linear(s.hidden, 1)

    def __call__(self, x: Any) -> Any:
        return self.value(self.gru(self.embed(x))[0])


PAIRS = {
    "RNN": recurrent("RNN"),
    "LSTM, bidirectional": recurrent("LSTM", bidirectional=True),
    "LSTM, projected": recurrent("LSTM", proj_size=2),
    "GRU, two layers": recurrent("GRU", num_layers=2),
    "linear": Pair(lambda s: tnn.Linear(s.inputs, 1), lambda s: linear(s.inputs, 1), rows),
    "batch norm": deep_batch_norm(1),
    "batch norm, deep": deep_batch_norm(5),
    "layer norm, deep": deep_layer_norm(5),
    "attention": Pair(TheirAttention, OurAttention, cancels=("key.bias",)),
    "U-Net with LSTM": Pair(TheirNet, OurNet, cancels=("conv.bias",), train=True),
    "U-Net, evaluation": Pair(TheirNet, OurNet),
    "value head": Pair(TheirTagger, OurTagger, tokens),
}
