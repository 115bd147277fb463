"""An LSTM trained on one sequence of 131,072 steps, without truncating the gradient.

    python examples/long_sequence.py

The sequence is synthetic: a solution of the Mackey-Glass equation, whose next value depends on a
value 17 steps before, with noise. The model predicts its value some steps later. The gradient is
that of the whole sequence. `strategies.Shooting` runs chunks of it side by side until their
boundaries agree. Segments bound the memory: each runs under `jax.checkpoint` and starts from the
final state of the one before, so the gradient is the same and only one segment's intermediates are
kept. The default strategy takes the same steps sequentially on the same segments, and the two are
timed in turns. The loss is compared with persistence, the forecast that nothing changes.

Source: Mackey and Glass, "Oscillation and chaos in physiological control systems", 1977.
"""

import dataclasses
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxrnn
from jaxrnn import cells, strategies
from support.options import launch, require, require_counts, require_rate, tqdm
from support.output import make_folder, new_figure, print_written, save_figure

DELAY = 17
NOISE = 0.05


@dataclasses.dataclass(frozen=True)
class Options:
    """Train on one very long sequence by shooting, and time it against the sequential run."""

    steps: int = 131_072
    """Length of the sequence; a multiple of the segments."""
    segments: int = 4
    """Pieces of the sequence; intermediates are kept for one at a time."""
    hidden_size: int = 64
    """Hidden units of the LSTM."""
    ahead: int = 6
    """Steps from an input to the value that is predicted."""
    updates: int = 50
    """Steps of Adam."""
    learning_rate: float = 0.01
    """Of Adam."""
    chunks: int = 0
    """Chunks of a segment that run side by side; 0 lets the strategy choose."""
    repeats: int = 3
    """Timed steps of each kind; the median is shown."""
    seed: int = 0
    """Of the noise and the weights."""
    out: Path = Path("runs/long_sequence")
    """Folder for the figure."""

    def check(self) -> None:
        """Raise ValueError for options that cannot run. Make the folder."""
        require_counts(self, "steps", "segments", "hidden_size", "ahead", "updates", "repeats")
        whole = self.steps % self.segments == 0
        require(self, whole, "steps", f"a multiple of {self.segments}")
        require(self, self.chunks >= 0, "chunks", "0 or more")
        require_rate(self)
        make_folder(self.out)


def mackey_glass(steps: int, seed: int) -> np.ndarray:
    """x' = 0.2 x(t - 17) / (1 + x(t - 17)^10) - 0.1 x by Euler's method with step 1, less 0.9."""
    rng = np.random.default_rng(seed)
    x = [1.2 + 0.1 * value for value in rng.standard_normal(DELAY + 1)]
    for _ in range(steps + 100):
        late = x[-1 - DELAY]
        x.append(0.9 * x[-1] + 0.2 * late / (1 + late**10))
    return np.asarray(x[-steps:], np.float32) - np.float32(0.9)


class Model(nnx.Module):
    """An LSTM over one sequence, and a linear layer: (T, 1, 1) -> (T, 1, 1), and the state."""

    def __init__(self, hidden_size: int, strategy: strategies.Strategy | None, seed: int) -> None:
        rngs = nnx.Rngs(seed)
        self.lstm = jaxrnn.LSTM(1, hidden_size, strategy=strategy, rngs=rngs)
        self.head = nnx.Linear(hidden_size, 1, rngs=rngs)

    def __call__(self, x: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        output, state = self.lstm(x, state)
        return self.head(output), state

    @property
    def start(self) -> Any:
        zero = jnp.zeros((1, 1, self.lstm.hidden_size))
        return zero, zero


def loss(model: Model, x: jax.Array, y: jax.Array) -> jax.Array:
    """Mean squared error over all steps of x and y, (segments, T, 1, 1)."""

    @jax.checkpoint
    def segment(state: Any, both: Any) -> tuple[Any, jax.Array]:
        predicted, state = model(both[0], state)
        return state, jnp.mean((predicted - both[1]) ** 2)

    return jnp.mean(jax.lax.scan(segment, model.start, (x, y))[1])


def sweeps(model: Model, strategy: strategies.Shooting, x: jax.Array) -> tuple[str, str]:
    """The sweeps that shooting needs for the first segment, forwards and backwards."""
    lstm = model.lstm
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    weights = cells.Weights(*(getattr(lstm, name)[...] for name in names))
    carry = tuple(state[0] for state in model.start)
    ys, last, info = strategy.run(cells.lstm, weights, x, carry)
    ct = (jnp.ones_like(ys), jax.tree.map(jnp.zeros_like, last))
    _, back = strategy.run_adjoint(cells.lstm, weights, x, carry, None, ct)

    def told(info: Any) -> str:
        end = ", then sequentially" if info.fell_back else ""
        return f"{int(info.sweeps)} (residual {float(info.residual):.0e}){end}"

    return told(info), told(back)


def main(options: Options) -> None:
    series = mackey_glass(options.steps + options.ahead, options.seed)
    noise = np.random.default_rng(options.seed + 1).standard_normal(options.steps)
    shape = (options.segments, options.steps // options.segments, 1, 1)
    clean, later = series[: options.steps], series[options.ahead :]
    x = jnp.asarray((clean + NOISE * noise).astype(np.float32).reshape(shape))
    y = jnp.asarray(later.reshape(shape))
    stays = float(np.mean((later - clean) ** 2))

    shooting = strategies.Shooting(chunks=options.chunks or None)
    tx = optax.adam(options.learning_rate)

    @nnx.jit
    def update(model: Model, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array) -> jax.Array:
        value, gradients = nnx.value_and_grad(loss)(model, x, y)
        optimizer.update(model, gradients)
        return value

    def new(strategy: strategies.Strategy | None) -> tuple[Model, nnx.Optimizer]:
        model = Model(options.hidden_size, strategy, options.seed)
        return model, nnx.Optimizer(model, tx, wrt=nnx.Param)

    ways = {"shooting": new(shooting), "sequential": new(None)}
    print(f"One synthetic sequence of {options.steps:,} steps, in {options.segments} segments")
    first = {name: float(update(*way, x, y)) for name, way in ways.items()}  # compiles, too
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, way in ways.items():
            began = time.perf_counter()
            float(update(*way, x, y))
            seconds[name].append(time.perf_counter() - began)

    model, optimizer = new(shooting)
    before = sweeps(model, shooting, x[0])
    losses = []
    for _ in tqdm(range(options.updates), "training", disable=None):
        losses.append(float(update(model, optimizer, x, y)))
    after = sweeps(model, shooting, x[0])

    gradient = jax.jit(jax.grad(loss))
    sizes = []
    for pieces in (x, x.reshape(1, -1, 1, 1)):
        compiled = gradient.lower(model, pieces, y.reshape(pieces.shape)).compile()
        sizes.append(compiled.memory_analysis().temp_size_in_bytes / 2**20)
    times = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"  memory of a gradient: {sizes[0]:,.0f} MiB; in one segment {sizes[1]:,.0f} MiB")
    print(f"  a step by shooting   {times['shooting']:.2f} s")
    print(f"  a step sequentially  {times['sequential']:.2f} s")
    print(f"  shooting is          {times['sequential'] / times['shooting']:.2f} times as fast")
    print(f"  difference of losses {abs(first['shooting'] - first['sequential']):.1e}")
    for name, (forwards, backwards) in (("before", before), ("after", after)):
        print(f"  sweeps {name} training: {forwards}; backwards {backwards}")
    print(f"  loss                 {losses[0]:.5f} at first, {losses[-1]:.5f} at last")
    print(f"  persistence          {stays:.5f}: the value {options.ahead} steps ahead is today's")
    print(f"  The model is {compared(losses[-1], stays)}.")
    path = options.out / "long_sequence.png"
    draw(path, losses, stays, times)
    print_written(path)


def compared(loss: float, persistence: float) -> str:
    """A model's error beside that of a forecast that stays at the last clean value."""
    if loss < persistence:
        return f"better than persistence: its error is {loss / persistence:.2f} times as large"
    return (
        f"worse than persistence: its error is {loss / persistence:.2f} times as large; "
        "more --updates train it longer"
    )


def draw(path: Path, losses: Sequence[float], stays: float, times: dict[str, float]) -> None:
    faster = times["sequential"] / times["shooting"]
    title = (
        f"Shooting takes a training step {faster:.1f} times as fast; the error is "
        f"{losses[-1] / stays:.2f} times that of persistence"
    )
    figure, (left, right) = new_figure(2, title)
    left.plot(np.arange(1, len(losses) + 1), losses, ".-", color="tab:blue", label="LSTM")
    left.axhline(stays, color="tab:gray", linestyle="--", label="persistence")
    left.set(title="Loss", xlabel="steps of Adam", ylabel="mean squared error", yscale="log")
    left.legend()
    right.bar(list(times), list(times.values()), color=["tab:blue", "tab:orange"], width=0.5)
    right.set(title="A training step", ylabel="seconds (median)", ylim=(0, None))
    for axis in (left, right):
        axis.grid(alpha=0.3, axis="y")
    save_figure(figure, path)


if __name__ == "__main__":
    launch(Options, main)
