"""A character language model: truncated backpropagation, streaming, PyTorch from the same weights.

    python examples/char_lm.py                     # about two minutes on two cores
    python examples/char_lm.py --text book.txt     # any plain text

The text is Python's documentation, which every Python ships under the PSF License; it is not in the
public domain. No package that the examples install ships public-domain prose of this length. The
text is cut into rows that run side by side; each row is read in segments, the state carried over.
At the end the weights move into a PyTorch twin, and both read the held-out text.
"""

import dataclasses
import importlib.util
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxrnn
from jaxrnn import training
from support.options import launch, require_counts, require_rate
from support.output import make_folder, new_figure, print_written, save_figure


@dataclasses.dataclass
class Options:
    text: Path | None = None
    """A file of plain text; none for Python's documentation."""
    characters: int = 300_000
    """Of the text's beginning, the last tenth of them held out."""
    epochs: int = 3
    rows: int = 32
    steps: int = 64
    """In a segment: as far as gradients go back."""
    hidden_size: int = 192
    learning_rate: float = 4e-3
    sample: int = 300
    """Characters to generate."""
    seed: int = 0
    out: Path = Path("runs/char_lm")

    def check(self) -> None:
        require_counts(self, "characters", "epochs", "rows", "steps", "hidden_size", "sample")
        require_rate(self)
        make_folder(self.out)


class CharacterModel(nnx.Module):
    """Characters embedded, an LSTM over them, the next one predicted."""

    def __init__(self, vocabulary: int, hidden_size: int, *, rngs: nnx.Rngs):
        self.embedding = nnx.Embed(vocabulary, 32, rngs=rngs)
        self.rnn = jaxrnn.LSTM(32, hidden_size, batch_first=True, forget_bias=1.0, rngs=rngs)
        self.fc = nnx.Linear(hidden_size, vocabulary, rngs=rngs)

    def __call__(self, tokens: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        output, state = self.rnn(self.embedding(tokens), state)
        return self.fc(output), state

    def step(self, token: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        output, state = self.rnn.step(self.embedding(token), state)
        return self.fc(output), state


def torch_twin(vocabulary: int, hidden_size: int) -> Any:
    import torch
    from torch import nn

    class CharacterModel(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(vocabulary, 32)
            self.rnn = nn.LSTM(32, hidden_size, batch_first=True)
            self.fc = nn.Linear(hidden_size, vocabulary)

        @torch.no_grad()
        def bits(self, text: np.ndarray) -> float:
            """Bits per character of a text, each predicted from all before it."""
            tokens = torch.from_numpy(text.astype(np.int64))[None]
            output, _ = self.rnn(self.embedding(tokens[:, :-1]))
            loss = nn.functional.cross_entropy(self.fc(output)[0], tokens[0, 1:])
            return loss.item() / math.log(2)

    return CharacterModel()


def read(options: Options) -> str:
    if options.text is not None:
        return options.text.read_text()[: options.characters]
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))[: options.characters]


def segments(text: np.ndarray, rows: int, steps: int) -> Iterator[dict[str, np.ndarray]]:
    """The text in rows side by side, inputs and next characters, cut along time."""
    length = (len(text) - 1) // rows // steps * steps
    if not length:
        raise SystemExit(f"A text of {len(text)} characters has no {rows} rows of {steps} steps.")
    cut = [text[shift : shift + rows * length].reshape(rows, length) for shift in (0, 1)]
    return training.segments({"inputs": cut[0], "labels": cut[1]}, steps)


@nnx.jit
def bits_per_character(model: CharacterModel, text: jax.Array) -> jax.Array:
    logits, _ = model(text[None, :-1], model.rnn.initial_state(1))
    loss = optax.softmax_cross_entropy_with_integer_labels(logits[0], text[1:]).mean()
    return loss / jnp.log(2)


def generate(model: CharacterModel, start: int, count: int, seed: int) -> list[int]:
    """One character after the other, each from the state that the one before it left."""

    @jax.jit
    def step(token: jax.Array, state: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        logits, state = model.step(token, state)
        return jax.random.categorical(key, logits / 0.7), state

    token, state, found = jnp.asarray(start), model.rnn.initial_state(), []
    for key in jax.random.split(jax.random.key(seed), count):
        token, state = step(token, state, key)
        found.append(int(token))
    return found


def main(options: Options) -> None:
    text = read(options)
    letters = sorted(set(text))
    numbers = np.array([letters.index(c) for c in text], np.int32)
    known, held_out = np.split(numbers, [len(numbers) * 9 // 10])
    model = CharacterModel(len(letters), options.hidden_size, rngs=nnx.Rngs(options.seed))
    tx = optax.chain(training.clip_grad_norm(1.0), optax.adam(options.learning_rate))
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    print(f"{len(text):,} characters, {len(letters)} different ones")
    started, losses, scores_held_out = time.perf_counter(), [], []
    for epoch in range(options.epochs):
        state = model.rnn.initial_state(options.rows)
        parts = segments(known, options.rows, options.steps)
        run = [s["loss"] for s, _ in training.tbptt(model, optimizer, parts, state)]
        losses += [float(loss) / math.log(2) for loss in run]
        scores_held_out.append(float(bits_per_character(model, jnp.asarray(held_out))))
        print(
            f"epoch {epoch + 1}: {np.mean(losses[-len(run) :]):.3f} bits per character, "
            f"held out {scores_held_out[-1]:.3f}, {time.perf_counter() - started:.0f} s"
        )
    if importlib.util.find_spec("torch"):
        import torch

        theirs = torch_twin(len(letters), options.hidden_size)
        weights = {k: torch.from_numpy(v) for k, v in jaxrnn.state_dict(model).items()}
        theirs.load_state_dict(weights)
        bits = theirs.bits(held_out)
        print(f"PyTorch from the same weights: {bits:.6f}, JAX: {scores_held_out[-1]:.6f}")
    sample = generate(model, int(held_out[0]), options.sample, options.seed)
    print("-" * 72, "".join(letters[n] for n in sample), "-" * 72, sep="\n")

    guessing = math.log2(len(letters))
    title = f"{scores_held_out[-1]:.2f} bits per held-out character after {options.epochs} epochs"
    figure, axes = new_figure(1, title, size=(6.4, 4.4))
    per_epoch = len(losses) // options.epochs
    axes.plot(losses, color="tab:blue", lw=0.8, label="training, segment by segment")
    ends = [per_epoch * (k + 1) for k in range(options.epochs)]
    axes.plot(ends, scores_held_out, "o-", color="tab:orange", label="held out")
    axes.axhline(guessing, color="black", linestyle=":", label=f"guessing: {guessing:.2f}")
    axes.set(xlabel="segments", ylabel="bits per character", ylim=(0, None))
    axes.legend()
    save_figure(figure, options.out / "char_lm.png")
    print_written(options.out / "char_lm.png")


if __name__ == "__main__":
    launch(Options, main)
