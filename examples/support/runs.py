"""Folders of runs of `jaxrnn.training.fit`: new ones, or resumed with --resume."""

import dataclasses
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import jax

from jaxrnn import training

METRICS = "metrics.jsonl"
RESUMED = "Resumed: seconds and compilations are of this process, not of those before it."


def begin(options: Any, example: str) -> Path:
    """The folder for the runs of one command, empty unless `options.resume`.

    A resumed command must have the options that it was begun with. Nothing is deleted but an
    earlier run of the same example.
    """
    folder = options.out / f"{example}_runs"
    note = folder / "options.json"
    chosen = json.loads(json.dumps(dataclasses.asdict(options), default=str))
    del chosen["out"], chosen["resume"]
    chosen["example"] = example
    partial = note.with_suffix(".partial")
    begun = _read(note)
    # A run that was killed before its note was complete leaves only the partial one.
    empty = folder.is_dir() and {*folder.iterdir()} <= {partial}
    if os.path.lexists(folder) and not empty and begun.get("example") != example:
        sys.exit(
            f"`{folder}` is no folder of runs of {example}: move it away, or choose another --out."
        )
    if options.resume and begun:
        for name, value in chosen.items():
            if begun.get(name) != value:
                flag = "--" + name.replace("_", "-")
                sys.exit(
                    f"--resume: `{folder}` was begun with {flag} {begun.get(name)}, not {value}."
                )
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    partial.write_text(json.dumps(chosen))
    os.replace(partial, note)
    return folder


def _read(note: Path) -> dict[str, Any]:
    """The options in the note, or none."""
    try:
        begun = json.loads(note.read_text())
    except (OSError, ValueError):
        return {}
    return begun if isinstance(begun, dict) else {}


def fit(folder: Path, resumed: bool, *arguments: Any, **settings: Any) -> training.History:
    """Call `training.fit` with the run in a folder.

    What it cannot go on with, or cannot write, ends the program with its sentence; Ctrl-C ends it
    as it ends any program, after a checkpoint.
    """
    # Where nothing was there, a ValueError is a mistake in a program, to be shown in full.
    told = (OSError, FloatingPointError, *([ValueError] if resumed else []))
    try:
        return training.fit(*arguments, folder=folder, resume=True, **settings)
    except told as error:
        sys.exit(str(error))
    except KeyboardInterrupt as error:
        if str(error):  # there is none after a second Ctrl-C
            sentence = str(error).replace("`fit(..., resume=True)`", "--resume")
            print(sentence, file=sys.stderr, flush=True)
        if jax.distributed.is_initialized():
            jax.distributed.shutdown()  # or the others would report that this process is gone
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
        raise  # where the signal does not end a process
