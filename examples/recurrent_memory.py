"""Episodes in a row: a GRU that is told where they begin, and one that is not.

    python examples/recurrent_memory.py            # about half a minute on two cores

Each row of a batch holds episodes of random lengths, one after the other, as the rollouts of a
reinforcement learner do. At every step the task is to tell how many ones the episode has shown so
far, modulo 3. No observation says where an episode begins. With `resets` the state is reset there.
Without them the model cannot subtract the counts of earlier episodes; chance is one in three.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxrnn
from jaxrnn import training
from support.options import launch, require_counts, require_rate
from support.output import make_folder, new_figure, print_written, save_figure

CLASSES = 3


@dataclasses.dataclass
class Options:
    updates: int = 600
    rows: int = 32
    steps: int = 48
    episode: int = 12
    """Mean length of an episode."""
    hidden_size: int = 48
    learning_rate: float = 5e-3
    seed: int = 0
    out: Path = Path("runs/recurrent_memory")

    def check(self) -> None:
        require_counts(self, "updates", "rows", "steps", "episode", "hidden_size")
        require_rate(self)
        make_folder(self.out)


def rollout(rng: np.random.Generator, options: Options) -> dict[str, np.ndarray]:
    """Observations (B, T, 1), where episodes begin (B, T), and the counts (B, T)."""
    shape = options.rows, options.steps
    ones = rng.integers(0, 2, shape)
    starts = rng.random(shape) < 1 / options.episode
    starts[:, 0] = True
    total = ones.cumsum(1)
    before = np.where(starts, total - ones, 0)  # what the episodes before have shown
    labels = (total - np.maximum.accumulate(before, 1)) % CLASSES
    return {"inputs": ones[..., None].astype(np.float32), "resets": starts, "labels": labels}


class Counter(nnx.Module):
    def __init__(self, hidden_size: int, told: bool, *, rngs: nnx.Rngs):
        self.told = told
        self.rnn = jaxrnn.GRU(1, hidden_size, batch_first=True, rngs=rngs)
        self.fc = nnx.Linear(hidden_size, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array, resets: jax.Array) -> jax.Array:
        return self.fc(self.rnn(x, resets=resets if self.told else None)[0])


def forward(model: Counter, batch: dict[str, jax.Array]) -> jax.Array:
    return model(batch["inputs"], batch["resets"])


def right(logits: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    return (logits.argmax(-1) == batch["labels"]).mean()


def train(told: bool, options: Options) -> tuple[list[float], float]:
    """The shares of right answers in training, and on new rollouts after it."""
    model = Counter(options.hidden_size, told, rngs=nnx.Rngs(options.seed))
    tx = optax.chain(training.clip_grad_norm(1.0), optax.adam(options.learning_rate))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    rng = np.random.default_rng(options.seed)
    shares = []
    for _ in range(options.updates):
        scores = training.train_step(
            model, optimizer, rollout(rng, options), metrics={"right": right}, forward=forward
        )
        shares.append(scores["right"])
    fresh = [rollout(np.random.default_rng((options.seed, k)), options) for k in range(1, 9)]
    final = training.evaluate(model, fresh, metrics={"right": right}, forward=forward)
    return [float(share) for share in jnp.stack(shares)], final["right"]


def main(options: Options) -> None:
    results = {label: train(label == "with", options) for label in ("with", "without")}
    for label, (_, final) in results.items():
        print(f"{label} resets: {final:.1%} right on new rollouts")
    found = ", ".join(f"{final:.0%} right {label} resets" for label, (_, final) in results.items())
    figure, axes = new_figure(1, f"Counting within an episode: {found}", size=(6.4, 4.4))
    for (label, (shares, _)), colour in zip(
        results.items(), ("tab:blue", "tab:orange"), strict=True
    ):
        axes.plot(shares, color=colour, lw=0.9, label=f"{label} resets")
    axes.axhline(1 / CLASSES, color="grey", ls=":", lw=0.9, label="a guess")
    axes.set(xlabel="updates", ylabel="share of right answers", ylim=(0, 1.02))
    axes.legend()
    save_figure(figure, options.out / "recurrent_memory.png")
    print_written(options.out / "recurrent_memory.png")


if __name__ == "__main__":
    launch(Options, main)
