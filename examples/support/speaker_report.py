"""Results of `spoken_vowels.py`: tables, the figure, and the weights read back."""

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.japanese_vowels import SPEAKERS, Task, Utterances
from jaxrnn import interchange, training
from support.curves import draw
from support.options import tqdm
from support.output import print_written
from support.runs import METRICS
from support.speakers import SHAPES, Run, held_back, new_model, new_twin

LINES = 10  # printed of each training


def tell(task: Task, runs: Sequence[Run], bar: tqdm) -> None:
    width = 20 // len(runs)
    titles = [
        f"{title:>22}" for title in ("training loss", "validation loss", "validation accuracy")
    ]
    names = "  " + "".join(f"{run.side.name:>{width}}" for run in runs)
    bar.write(
        f"\nTraining, seed {task.seed} (losses in nats; in training with noise and smoothed labels)"
    )
    bar.write("       " + "".join(titles))
    bar.write("  epoch" + names * 3)
    epochs = len(runs[0].steps)
    for number in range(epochs):
        if number + 1 == epochs or (number + 1) % -(-epochs // LINES) == 0:
            line = f"{number + 1:>7}"
            line += "  " + "".join(f"{run.steps[number][:, 0].mean():>{width}.4f}" for run in runs)
            line += "  " + "".join(f"{run.validation[number][0]:>{width}.4f}" for run in runs)
            line += "  " + "".join(f"{run.validation[number][1]:>{width}.1%}" for run in runs)
            bar.write(line)


def print_parity(options: Any, recordings: Utterances) -> None:
    """Compare outputs, loss and every gradient of the untrained models on recordings."""
    from jaxrnn.testing import compare

    model = new_model(options, seed=0)
    twin = new_twin(options, interchange.state_dict(model))
    batch = recordings.batches(options.batch_size, seed=0)[0]
    steps = batch.inputs.shape[1]
    for dtype in ("float64", "float32"):
        report = compare(twin, model, batch.inputs, lengths=batch.lengths, dtype=dtype, steps=steps)
        print(f"\n{report}")


def print_accuracy(results: Sequence[Sequence[Run]], tests: Utterances) -> None:
    print(f"\nAccuracy on the test set, {len(tests)} utterances")
    print("         " + "".join(f"{run.side.name:>10}" for run in results[0]))
    for seed, runs in enumerate(results):
        print(f"  seed {seed:<2}" + "".join(f"{run.accuracy:>10.2%}" for run in runs))
    if len(results) > 1:
        sides = zip(*results, strict=True)
        medians = [statistics.median(run.accuracy for run in runs) for runs in sides]
        print("  median " + "".join(f"{median:>10.2%}" for median in medians))


def print_agreement(results: Sequence[Sequence[Run]]) -> None:
    """The largest differences that rounding has caused, over all seeds."""
    apart = np.stack([losses_apart(*runs) for runs in results])
    ours, theirs = (np.stack([run.logits for run in side]) for side in zip(*results, strict=True))
    logits = np.abs(ours - theirs).max()
    decisions = (ours.argmax(-1) != theirs.argmax(-1)).sum()
    print("\nLargest differences of JAX and PyTorch after training in float32")
    for name, value in {
        "loss of a batch, first epoch": f"{apart[:, 0].max():.1e}",
        "loss of a batch, last epoch": f"{apart[:, -1].max():.1e}",
        "loss of a batch, any epoch": f"{apart.max():.1e}",
        "logits of the test set": f"{logits:.1e}, where the largest is {np.abs(theirs).max():.1f}",
        "speakers of the test set": f"{decisions} of {ours[..., 0].size} not the same",
    }.items():
        print(f"  {name:<30}{value}")
    print("  They come from rounding alone, which every step of training amplifies.")


def losses_apart(ours: Run, theirs: Run) -> np.ndarray:
    """The largest difference of a batch's loss in each epoch, (epochs,)."""
    losses = [np.stack(run.steps)[..., 0] for run in (ours, theirs)]
    return np.abs(losses[0] - losses[1]).max(axis=1)


def print_time(results: Sequence[Sequence[Run]], compilation: Any) -> None:
    print("\nTime")
    first = f"{compilation.seconds:.1f} s to compile once, then "
    for runs in zip(*results, strict=True):
        seconds = [second for run in runs for second in run.seconds]
        told = (
            f"{1000 * statistics.median(seconds):.0f} ms an epoch (median)"
            if seconds
            else ("no epoch was left to train")
        )
        print(f"  {runs[0].side.name:<9}{first}{told}")
        first = ""
    print(f"  {compilation.steps} compilations of JAX's training step, {SHAPES} at most")


def save(
    options: Any, tasks: Sequence[Task], results: Sequence[Sequence[Run]], folder: Path
) -> None:
    """Write weights and figure, and read the weights back into every framework there is."""
    written = []
    print("\nWeights in a file, read back")
    for task, runs in zip(tasks, results, strict=True):
        path = options.out / f"weights_seed{task.seed}.safetensors"
        interchange.save_safetensors(runs[0].side.model, path)
        print(read_back(options, path, task, runs))
        written += [folder / f"seed{task.seed}" / METRICS, path]
    path = options.out / "curves.png"
    runs = results[0]
    accuracies = " and ".join(f"{run.accuracy:.1%} in {run.side.name}" for run in runs)
    draw(
        path,
        f"The same training in {' and '.join(run.side.name for run in runs)}: of {SPEAKERS} "
        f"speakers' test utterances {accuracies} are right (seed {tasks[0].seed})",
        {
            run.side.name: {
                "training (noise added)": np.stack(run.steps).mean(axis=1),
                "validation": np.stack(run.validation),
            }
            for run in runs
        },
        losses_apart(*runs) if options.torch else None,
    )
    print_written(*written, path)


def read_back(options: Any, path: Path, task: Task, runs: Sequence[Run]) -> str:
    """Check what the weights in the file predict in new models; raise where it differs."""
    tests, logits = held_back(task.tests), runs[0].logits
    model = new_model(options, seed=task.seed + 1)
    interchange.load_safetensors(model, path)
    if not np.array_equal(training.predict(model, tests), logits):
        raise RuntimeError(f"{path} read back into JAX predicts something else.")
    told = f"  seed {task.seed}, into JAX      the same test logits, bit for bit"
    if options.torch:
        import safetensors.torch

        twin = new_twin(options, safetensors.torch.load_file(path))
        theirs = dataclasses.replace(runs[1].side, model=twin).predict(tests)
        if not np.array_equal(theirs.argmax(-1), logits.argmax(-1)):
            raise RuntimeError(f"{path} read into PyTorch predicts other speakers.")
        told += (
            f"\n  seed {task.seed}, into PyTorch  the same speakers, "
            f"test logits within {np.abs(theirs - logits).max():.1e}"
        )
    return told
