"""Runs of `jaxrnn.training.fit` as the examples keep them: begun anew, or resumed with --resume."""

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from jaxrnn import training

METRICS = "metrics.jsonl"


def begin(options: Any) -> Path:
    """The folder for the runs of one command, empty unless `options.resume`.

    A resumed command must have the options that it was begun with.
    """
    folder = options.out / "runs"
    note = folder / "options.json"
    chosen = json.loads(json.dumps(dataclasses.asdict(options), default=str))
    del chosen["out"], chosen["resume"]
    if options.resume and note.exists():
        begun = json.loads(note.read_text())
        for name, value in chosen.items():
            if begun.get(name) != value:
                flag = "--" + name.replace("_", "-")
                sys.exit(
                    f"--resume: `{folder}` was begun with {flag} {begun.get(name)}, not {value}."
                )
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    partial = note.with_suffix(".partial")
    partial.write_text(json.dumps(chosen))
    os.replace(partial, note)
    return folder


def fit(folder: Path, resumed: bool, *arguments: Any, **settings: Any) -> training.History:
    """`training.fit`, from where the folder has it.

    What it cannot go on with, or cannot write, ends the program with its sentence.
    """
    # Where nothing was there, a ValueError is a mistake in a program, to be shown in full.
    told = (OSError, FloatingPointError, *([ValueError] if resumed else []))
    try:
        return training.fit(*arguments, folder=folder, resume=True, **settings)
    except told as error:
        sys.exit(str(error))
