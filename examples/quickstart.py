"""A GRU that tells rising from falling sequences of 5 to 30 steps, trained in a minute."""

import dataclasses
from pathlib import Path

import numpy as np
import optax
from flax import nnx

import jaxrnn
from jaxrnn import data, training
from support import options, output


@dataclasses.dataclass(frozen=True)
class Options:
    epochs: int = 10
    out: Path = Path("runs")

    def check(self) -> None:
        options.require_counts(self, "epochs")
        output.make_folder(self.out)


class Classifier(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.gru = jaxrnn.GRU(1, 16, batch_first=True, rngs=rngs)
        self.head = nnx.Linear(16, 2, rngs=rngs)

    def __call__(self, x, lengths):
        _, h_n = self.gru(x, lengths=lengths)
        return self.head(h_n[-1])


def main(chosen: Options) -> None:
    rng = np.random.default_rng(0)
    rising = rng.integers(0, 2, 600)
    slopes, steps = np.where(rising, 0.03, -0.03), rng.integers(5, 31, 600)
    lines = [s * np.arange(n)[:, None] for s, n in zip(slopes, steps, strict=True)]
    sequences = [(a + rng.normal(0, 0.2, a.shape)).astype(np.float32) for a in lines]
    epoch = lambda n: data.batches(sequences[100:], rising[100:], 50, seed=(0, n))  # noqa: E731
    held_out = data.batches(sequences[:100], rising[:100], 50)
    model = Classifier(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    settings = {"metrics": {"accuracy": training.accuracy}, "validation": held_out}
    history = training.fit(model, optimizer, epoch, epochs=chosen.epochs, **settings)
    accuracy = history["validation_accuracy"]
    title = f"{accuracy[-1]:.0%} of 100 held-out sequences are right after {chosen.epochs} epochs"
    figure, axes = output.new_figure(1, title)
    axes.plot(np.arange(1, len(accuracy) + 1), accuracy, marker="o")
    axes.set(xlabel="epoch", ylabel="held-out accuracy (guessing: 0.5)", ylim=(0, 1.02))
    written = [chosen.out / f"quickstart.{kind}" for kind in ("png", "safetensors")]
    output.save_figure(figure, written[0])
    jaxrnn.save_safetensors(model, written[1])
    print(title)
    output.print_written(*written)


if __name__ == "__main__":
    options.launch(Options, main)
