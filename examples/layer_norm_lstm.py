"""A custom cell: written, compared with PyTorch, trained.

    python examples/layer_norm_lstm.py             # about half a minute on two cores

The cell is an LSTM with layer normalisation of its gates and of c (Ba, Kiros and Hinton, 2016).
`jaxrnn.Recurrent` makes it a layer, `jaxrnn.testing.compare` holds outputs and every gradient
against a loop in PyTorch, and both this layer and a plain LSTM learn to add two marked numbers of a
sequence (Hochreiter and Schmidhuber, 1997).
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxrnn
from jaxrnn import cells, training
from support.options import launch, require_counts, require_rate, require_torch
from support.output import make_folder, new_figure, print_written, save_figure


@dataclasses.dataclass
class Options:
    updates: int = 800
    rows: int = 32
    steps: int = 40
    hidden_size: int = 32
    learning_rate: float = 5e-3
    seed: int = 0
    out: Path = Path("runs/layer_norm_lstm")

    def check(self) -> None:
        require_counts(self, "updates", "rows", "steps", "hidden_size")
        require_rate(self)
        require_torch("The comparison")
        make_folder(self.out)


def norm(x: jax.Array, gain: jax.Array) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    scale = jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    return centred * scale * cells.spread(gain, x)


@cells.pure
def step(params: Any, carry: Any, gx: jax.Array, gh: jax.Array) -> Any:
    i, f, g, o = jnp.split(norm(gx + gh, params["gates"]), 4, axis=-1)
    c = jax.nn.sigmoid(f) * carry[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(norm(c, params["cell"])), c


def init(key: jax.Array, hidden_size: int, dtype: Any) -> dict[str, jax.Array]:
    return {"gates": jnp.ones(4 * hidden_size, dtype), "cell": jnp.ones(hidden_size, dtype)}


OURS = cells.Cell("layer_norm_lstm", gates=4, states=2, step=step, init=init, additive=True)


def torch_layer(inputs: int, hidden: int) -> Any:
    import torch
    from torch import nn
    from torch.nn.functional import layer_norm

    class Layer(nn.Module):
        """The same cell as a loop, its parameters named as jaxrnn names them."""

        def __init__(self):
            super().__init__()
            shapes = {"weight_ih": (4 * hidden, inputs), "weight_hh": (4 * hidden, hidden)}
            shapes |= {"bias_ih": (4 * hidden,), "bias_hh": (4 * hidden,)}
            shapes |= {"gates": (4 * hidden,), "cell": (hidden,)}
            for name, shape in shapes.items():
                self.register_parameter(f"{name}_l0", nn.Parameter(torch.rand(shape) - 0.5))

        def forward(self, x):
            h = c = x.new_zeros(x.shape[1], hidden)
            outputs = []
            for x_t in x:
                gates = x_t @ self.weight_ih_l0.T + self.bias_ih_l0
                gates = gates + h @ self.weight_hh_l0.T + self.bias_hh_l0
                i, f, g, o = layer_norm(gates, (4 * hidden,), self.gates_l0).chunk(4, -1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * layer_norm(c, (hidden,), self.cell_l0).tanh()
                outputs.append(h)
            return torch.stack(outputs), (h[None], c[None])

    return Layer()


def additions(rng: np.random.Generator, options: Options) -> dict[str, np.ndarray]:
    """Numbers (B, T) and two marks beside them; the label is the sum of the marked two."""
    numbers = rng.random((options.rows, options.steps))
    half = options.steps // 2
    marks = np.zeros_like(numbers)
    rows = np.arange(options.rows)
    marks[rows, rng.integers(0, half, options.rows)] = 1
    marks[rows, rng.integers(half, options.steps, options.rows)] = 1
    inputs = np.stack([numbers, marks], -1).astype(np.float32)
    return {"inputs": inputs, "labels": (numbers * marks).sum(1).astype(np.float32)}


class Adder(nnx.Module):
    def __init__(self, cell: cells.Cell, hidden_size: int, *, rngs: nnx.Rngs):
        self.rnn = jaxrnn.Recurrent(cell, 2, hidden_size, batch_first=True, rngs=rngs)
        self.fc = nnx.Linear(hidden_size, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc(self.rnn(x)[0][:, -1])[:, 0]


def squared_error(outputs: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    return ((outputs - batch["labels"]) ** 2).mean()


def train(cell: cells.Cell, options: Options) -> tuple[list[float], float]:
    model = Adder(cell, options.hidden_size, rngs=nnx.Rngs(options.seed))
    tx = optax.chain(training.clip_grad_norm(1.0), optax.adam(options.learning_rate))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    rng = np.random.default_rng(options.seed)
    losses = [
        training.train_step(model, optimizer, additions(rng, options), loss=squared_error)["loss"]
        for _ in range(options.updates)
    ]
    fresh = [additions(np.random.default_rng((options.seed, k)), options) for k in range(1, 9)]
    return [float(a) for a in losses], training.evaluate(model, fresh, loss=squared_error)["loss"]


def main(options: Options) -> None:
    theirs = torch_layer(3, 5)
    ours = jaxrnn.Recurrent(OURS, 3, 5, rngs=nnx.Rngs(0))
    x = np.random.default_rng(options.seed).normal(size=(7, 4, 3))
    report = jaxrnn.testing.assert_parity(theirs, ours, x, dtype="float64")
    print(report.verdict)
    results = {cell.name: train(cell, options) for cell in (OURS, cells.lstm)}
    for name, (_, final) in results.items():
        print(f"{name}: squared error {final:.5f} on new sequences")
    errors = ", ".join(f"{final:.4f} by {name}" for name, (_, final) in results.items())
    title = f"Adding two marked numbers:\nsquared error {errors}"
    figure, axes = new_figure(1, title, size=(6.4, 4.4))
    for (name, (losses, _)), colour in zip(
        results.items(), ("tab:blue", "tab:orange"), strict=True
    ):
        axes.semilogy(losses, color=colour, lw=0.8, label=name)
    axes.axhline(1 / 6, color="grey", ls=":", lw=0.9, label="error of always answering 1")
    axes.set(xlabel="updates", ylabel="squared error")
    axes.legend()
    save_figure(figure, options.out / "layer_norm_lstm.png")
    print_written(options.out / "layer_norm_lstm.png")


if __name__ == "__main__":
    launch(Options, main)
