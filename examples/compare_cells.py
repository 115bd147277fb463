"""Compare RNN, LSTM and GRU: sizes, gradients through time, and memory after training.

    python examples/compare_cells.py

First the notebook's comparison, in both frameworks from the same weights. Its gradient cell builds
models for 32 inputs and feeds them 1, which raises an error; here they are built for 1. Then two
questions that the notebook discusses without measuring. How far back does the gradient of the loss
reach? How long is the first input remembered after training? Both are also measured with gates that
are open at first (`support/memory.py`): PyTorch's initial biases are near 0, so gates are half
closed, and a state shrinks by a third to a half in each step. Last, the notebook's rules of thumb
are compared with the results.

All cells get the same data, number of steps and learning rate. The results hold for this task and
these sizes; more steps may change them.
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from jaxrnn import interchange, training
from jaxrnn.models import RNNComparison
from support import memory
from support.memory import VARIANTS, Results, Variant
from support.options import launch, require, require_counts, require_rate, require_torch, tqdm
from support.output import make_folder, new_figure, print_written, save_figure, write_whole
from support.runs import begin

CELLS = ("RNN", "LSTM", "GRU")
COLOURS = {"RNN": "tab:green", "LSTM": "tab:blue", "GRU": "tab:orange"}
HIDDEN = 64
STEPS = 50  # of the notebook's memory task


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare RNN, LSTM and GRU: sizes, gradients, and memory after training."""

    seeds: int = 4
    """Models of each kind, trained together. A verdict takes 4 or more."""
    lengths: tuple[int, ...] = (10, 20, 50, 100, 200)
    """Lengths of the sequences whose first input is to be remembered."""
    steps: int = 400
    """Of training, at most. A verdict takes 400 or more."""
    batch_size: int = 32
    """New sequences for each model in each step."""
    hidden_size: int = 32
    """Hidden units of the models that are trained."""
    learning_rate: float = 1e-2
    """Of Adam."""
    resume: bool = False
    """Continue a killed run with the same options. Without it a new run replaces the old one."""
    out: Path = Path("runs/compare_cells")
    """Folder for the figure and the results."""

    def check(self) -> None:
        """Raise ValueError for options that cannot run. Make the folder."""
        require_counts(self, "seeds", "steps", "batch_size", "hidden_size")
        rising = sorted({1, *self.lengths}) == [1, *self.lengths]
        rising = rising and len(self.lengths) > 0
        require(self, rising, "lengths", "rising, from 2 or more")
        require_rate(self)
        require_torch("The comparison")
        make_folder(self.out)


def main(options: Options) -> None:
    import torch

    folder = begin(options, "compare_cells")  # first, as it may refuse the folder
    # The products are too small to be worth several threads, and on a busy machine threads that
    # wait for each other take a hundred times as long.
    torch.set_num_threads(1)
    torch.manual_seed(42)
    print_sizes()
    gradients = compare_gradients()
    results = train(options, folder)
    print_results(options, results)
    print_rules(options, results)
    path = options.out / "compare_cells.png"
    draw(path, options, gradients, results)
    print_written(path)


def pair(cell: str, inputs: int) -> tuple[Any, RNNComparison]:
    """A new PyTorch model, and ours with the same weights."""
    import torch_ref.models

    theirs = torch_ref.models.RNNComparison(inputs, HIDDEN, 2, cell)
    ours = RNNComparison(inputs, HIDDEN, 2, cell, rngs=nnx.Rngs(0))
    interchange.load_state_dict(ours, theirs.state_dict())
    return theirs, ours


def print_sizes() -> None:
    import torch

    x = torch.randn(16, 100, 32)
    print(f"Models of 32 inputs, {HIDDEN} hidden units, 2 outputs, on input {tuple(x.shape)}")
    print(f"  {'':<6}{'parameters':>22}{'shape of output':>22}{'apart, at most':>17}")
    print(f"  {'':<6}{'PyTorch':>12}{'JAX':>10}{'PyTorch':>12}{'JAX':>10}")
    for cell in CELLS:
        theirs, ours = pair(cell, 32)
        counts = [
            sum(parameter.numel() for parameter in theirs.parameters()),
            sum(array.size for array in interchange.state_dict(ours).values()),
        ]
        outputs = [theirs(x).detach().numpy(), np.asarray(ours(x.numpy()))]
        print(
            f"  {cell:<6}{counts[0]:>12,}{counts[1]:>10,}{outputs[0].shape!s:>12}"
            f"{outputs[1].shape!s:>10}{np.abs(outputs[0] - outputs[1]).max():>17.1e}"
        )


def compare_gradients() -> dict[str, dict[Any, np.ndarray]]:
    """Print losses and gradients; return framework -> cell or variant -> (T,) norms by step."""
    import torch

    import torch_ref.data

    pairs = {cell: pair(cell, 1) for cell in CELLS}
    x, labels = (tensor.numpy() for tensor in torch_ref.data.create_memory_task(STEPS, 32))
    print(f"\nThe memory task untrained: T = {STEPS}, batch {len(x)}")
    print(f"  {'':<6}{'loss (nats)':>24}{'norm of all gradients':>24}")
    print(f"  {'':<6}" + f"{'PyTorch':>12}{'JAX':>12}" * 2)
    norms: dict[str, dict[Any, np.ndarray]] = {"PyTorch": {}, "JAX": {}}
    for cell, (theirs, ours) in pairs.items():
        inputs = torch.tensor(x, requires_grad=True)
        loss = torch.nn.functional.cross_entropy(theirs(inputs), torch.tensor(labels))
        loss.backward()
        their_total = np.sqrt(sum(float((p.grad**2).sum()) for p in theirs.parameters()))
        our_loss, our_total, our_gradient = jax_gradients(ours, x, labels)
        numbers = (loss.item(), our_loss, their_total, our_total)
        print(f"  {cell:<6}" + "".join(f"{number:>12.6f}" for number in numbers))
        for name, gradient in (("PyTorch", inputs.grad.numpy()), ("JAX", our_gradient)):
            norms[name][Variant(cell)] = by_step(gradient)
        if cell != "RNN":
            memory.open_gates(ours, STEPS)
            _, _, opened = jax_gradients(ours, x, labels)
            norms["JAX"][Variant(cell, open_gates=True)] = by_step(opened)

    print("\nNorm of the gradient of the loss with respect to the input of one step")
    print(f"  {'':<18}{'first step':>12}{'last step':>12}{'a step back':>14}")
    for variant in VARIANTS:
        first, last = norms["JAX"][variant][[0, -1]]
        rate = (first / last) ** (1 / (STEPS - 1))
        print(f"  {variant!s:<18}{first:>12.1e}{last:>12.1e}{f'times {rate:.2f}':>14}")
    apart = max(
        np.abs(ours / theirs - 1).max()
        for ours, theirs in ((norms["JAX"][v], n) for v, n in norms["PyTorch"].items())
    )
    print(f"  JAX and PyTorch apart, of any step's norm, at most: {apart:.1e} of it")
    return norms


@nnx.jit
def gradients(model: RNNComparison, x: jax.Array, labels: jax.Array) -> Any:
    def objective(model: RNNComparison, x: jax.Array) -> jax.Array:
        return training.cross_entropy(model(x), labels)

    return nnx.value_and_grad(objective, argnums=(0, 1))(model, x)


def jax_gradients(
    model: RNNComparison, x: np.ndarray, labels: np.ndarray
) -> tuple[float, float, np.ndarray]:
    """The loss, the norm of the parameters' gradients, and the input's gradient (B, T, 1)."""

    loss, (by_weights, by_input) = gradients(model, jnp.asarray(x), jnp.asarray(labels))
    total = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(by_weights)))
    return float(loss), total, np.asarray(by_input)


def by_step(gradient: np.ndarray) -> np.ndarray:
    """(T,) norms over batch and inputs of a gradient (B, T, I), in float64: they get tiny."""
    return np.sqrt((gradient.astype(np.float64) ** 2).sum(axis=(0, 2)))


def train(options: Options, folder: Path) -> Results:
    chosen = ("seeds", "steps", "batch_size", "hidden_size")
    settings = {name: getattr(options, name) for name in chosen}
    tx = optax.chain(training.clip_grad_norm(1.0), optax.adam(options.learning_rate))
    start = time.perf_counter()
    kept = folder / "results.json"
    trained = json.loads(kept.read_text()) if kept.exists() else {}
    resumed = len(trained)
    results: dict[Variant, list[memory.Result]] = {variant: [] for variant in VARIANTS}
    with tqdm(total=len(VARIANTS) * len(options.lengths), unit="training", disable=None) as bar:
        for length in options.lengths:
            for variant in VARIANTS:
                name = f"{variant}, T = {length}"
                bar.set_description(name)
                if name not in trained:
                    result = memory.learn(variant, length, tx=tx, **settings)
                    trained[name] = [result.accuracies.tolist(), result.steps]
                    write_whole(kept, json.dumps(trained).encode())
                accuracies, steps = trained[name]
                results[variant].append(
                    memory.Result(variant, length, np.array(accuracies, np.float32), steps)
                )
                bar.update()
    seconds = time.perf_counter() - start
    print(
        f"\nTrained on the memory task: {options.hidden_size} hidden units, Adam at "
        f"{options.learning_rate}, {options.steps} steps at most of {options.batch_size} new "
        f"sequences,\n{options.seeds} seeds at once; {seconds:.0f} s with compilation"
        + (f", {resumed} of {len(trained)} trained before" if resumed else "")
    )
    return results


def print_results(options: Options, results: Results) -> None:
    print(f"  accuracy on {memory.TESTS} new sequences, median of seeds (lowest to highest)")
    heading = f"  {'T':<18}" + "".join(f"{length:>17}" for length in options.lengths)
    print(heading)
    for variant, row in results.items():
        print(f"  {variant!s:<18}" + "".join(f"{result!s:>17}" for result in row))
    count, needed = memory.ENOUGH
    print(f"  steps of training, until every seed had {needed:.0%} right over {count} of them")
    print(heading)
    for variant, row in results.items():
        print(f"  {variant!s:<18}" + "".join(f"{result.steps:>17}" for result in row))


def print_rules(options: Options, results: Results) -> None:
    """The notebook's rules of thumb, where there are enough seeds and steps to judge them."""
    if options.seeds < memory.LEAST_SEEDS or options.steps < memory.LEAST_STEPS:
        print(
            f"\nNo verdict on the notebook's rules of thumb: it takes --seeds {memory.LEAST_SEEDS} "
            f"and --steps {memory.LEAST_STEPS} or more."
        )
        return
    print(
        "\nThe notebook's rules of thumb, judged by these results; learnt means a median of "
        f"{memory.LEARNT:.0%} or more\nwithin {options.steps} steps of training"
    )
    print("\n".join(f"  {line}" for line in memory.rules(results)))


def finding(norms: dict[Any, np.ndarray]) -> str:
    """The share of a gradient's norm that is left one step further back."""
    kept = {v: (n[0] / n[-1]) ** (1 / (STEPS - 1)) for v, n in norms.items()}
    ranges = []
    for opened in (False, True):
        rates = [rate for variant, rate in kept.items() if variant.open_gates == opened]
        ranges.append(f"{min(rates):.2f} to {max(rates):.2f}")
    return (
        f"Untrained, each step back leaves {ranges[0]} of the gradient; "
        f"with gates open at first {ranges[1]}"
    )


def draw(
    path: Path,
    options: Options,
    gradients: dict[str, dict[Any, np.ndarray]],
    results: Results,
) -> None:
    figure, (left, right) = new_figure(2, finding(gradients["JAX"]))
    steps = np.arange(1, STEPS + 1)
    for variant, norms in gradients["PyTorch"].items():
        look = {"color": COLOURS[variant.cell], "linewidth": 6, "alpha": 0.3}
        left.plot(steps, norms, label=f"{variant}, PyTorch", **look)
    for variant, norms in gradients["JAX"].items():
        style = ":" if variant.open_gates else "-"
        name = variant if variant.open_gates else f"{variant}, JAX"
        left.plot(steps, norms, style, color=COLOURS[variant.cell], linewidth=1.6, label=name)
    left.set(
        title=f"Untrained, memory task, T = {STEPS}",
        xlabel="time step of the input (the last is read out)",
        ylabel="norm of d loss / d input (nats)",
        yscale="log",
    )
    for place, (variant, row) in enumerate(results.items()):
        middle, low, high = 100 * spread(row)
        right.errorbar(
            # Shifted sideways, so that no marker hides another.
            np.array(options.lengths) * 1.04 ** (place - (len(results) - 1) / 2),
            middle,
            [middle - low, high - middle],
            marker="o",
            markersize=4,
            capsize=3,
            linestyle=":" if variant.open_gates else "-",
            color=COLOURS[variant.cell],
            label=str(variant),
        )
    right.axhline(50, color="black", linewidth=1, linestyle="--", label="guessing")
    right.set(
        title=f"Trained, at most {options.steps} steps",
        xlabel="T, steps to remember the first input over",
        ylabel="sequences classified correctly (%)\nmedian and range of seeds",
        xscale="log",
        ylim=(0, 104),
    )
    right.set_xticks(options.lengths, map(str, options.lengths))
    right.minorticks_off()
    left.legend(loc="lower right", fontsize=8)
    right.legend(loc="lower left", ncols=2, fontsize=8)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    save_figure(figure, path)


def spread(row: Sequence[memory.Result]) -> np.ndarray:
    """Median, lowest and highest accuracy for each length, (3, lengths)."""
    accuracies = np.stack([result.accuracies for result in row])
    return np.stack([np.median(accuracies, axis=1), accuracies.min(axis=1), accuracies.max(axis=1)])


if __name__ == "__main__":
    launch(Options, main)
