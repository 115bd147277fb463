"""Checkpoints of named arrays and notes, written by Orbax, atomic and verified when read.

A checkpoint is a folder named by its number of steps. `state` holds Orbax's files; `manifest.json`
lists the dtype and shape of each array and the SHA-256 of each file, because Orbax itself reads
most files with a flipped bit without an error. A checkpoint gets its name after all of it is on
disk, and loses its name before any of it is removed, so that no name ever refers to a partial
checkpoint.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from jax.sharding import Sharding

from jaxrnn.files import sync_directory
from jaxrnn.training.processes import ALONE, Processes

_FORMAT = 2
_PARTIAL = ".partial-"
_OVERHEAD = 1 << 16  # bytes in addition to the arrays: about ten files smaller than a block each


def save(
    folder: Path,
    step: int,
    arrays: Mapping[str, Any],
    notes: Mapping[str, Any],
    keep: int,
    processes: Processes = ALONE,
) -> None:
    """Write `folder/<step>`, then remove all but the newest `keep` checkpoints.

    Each process writes its own parts of arrays that are divided over processes, and the first one
    writes everything else. The notes are those of the first process.

    Raises:
        OSError: the checkpoint could not be written, for any reason. Existing files are unchanged.
    """
    what = f"Writing the checkpoint of step {step}"
    # The first process chooses the name, whose digits are as good as random.
    token = processes.largest(secrets.randbits(31) if processes.first else -1)
    partial = folder / f"{_PARTIAL}{token:08x}"
    try:
        try:
            with processes.all_or_none(what):
                if processes.first:
                    partial.mkdir(parents=True)
                    _check_space(partial, arrays)
            with _quiet(), processes.all_or_none(what):
                _write_state(partial / "state", arrays)
            with processes.all_or_none(what):
                if processes.first:
                    _finish(partial, folder / str(step), layout(arrays), notes)
        except BaseException:
            if processes.first:
                shutil.rmtree(partial, ignore_errors=True)
            raise
    except Exception as error:  # Orbax and TensorStore raise several types, ValueError among them
        code = _error_code(error)
        failure = OSError(
            f"The checkpoint of step {step} could not be written to `{folder}`: "
            f"{os.strerror(code) if code else _short(error)}. What was there before is untouched."
        )
        failure.errno = code
        raise failure from error
    if processes.first:
        for old in steps(folder)[:-keep]:
            _remove(folder / str(old))


def _finish(
    partial: Path, target: Path, arrays: dict[str, list[Any]], notes: Mapping[str, Any]
) -> None:
    """Write the manifest, make everything durable and give the checkpoint its name."""
    manifest = {
        "format": _FORMAT,
        "arrays": arrays,
        "files": {name: _digest(path, sync=True) for name, path in _files(partial)},
        "notes": dict(notes),
    }
    text = json.dumps(manifest, allow_nan=False)
    (partial / "manifest.json").write_text(f"{text}\n{_sha256(text.encode())}\n")
    _digest(partial / "manifest.json", sync=True)
    for directory, _, _ in os.walk(partial):
        sync_directory(directory)
    os.rename(partial, target)
    sync_directory(target.parent)


def steps(folder: Path) -> list[int]:
    """Step numbers of the checkpoints in a folder, ascending."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def tidy(folder: Path) -> None:
    """Remove files that a killed process left half written or half removed."""
    for path in folder.glob(f"{_PARTIAL}*"):
        shutil.rmtree(path, ignore_errors=True)


def load(
    folder: Path,
    step: int,
    accept: Callable[[dict[str, Any], dict[str, list[Any]]], dict[str, Sharding] | None],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arrays and notes of `folder/<step>`, in NumPy.

    `accept` is called with the notes and with each array's dtype and shape before any array is
    read. It raises to reject the checkpoint, and may return the placements of arrays of which each
    process reads its own parts.

    Raises:
        ValueError: for anything but a complete checkpoint, with one sentence that names the
            problem.
    """
    path = folder / str(step)

    def refuse(reason: str) -> NoReturn:
        older = [n for n in steps(folder) if n < step]
        advice = f" Remove it to resume from step {older[-1]}." if older else ""
        raise ValueError(
            f"The checkpoint `{path}` cannot be resumed from: {reason}. Nothing was loaded.{advice}"
        ) from None

    if not path.is_dir():
        refuse("it is not a folder")
    try:
        text, digest = (path / "manifest.json").read_bytes().split(b"\n")[:2]
    except FileNotFoundError:
        refuse("it has no `manifest.json`, so it was not written by `fit`")
    except (OSError, ValueError):
        refuse("it is damaged: its `manifest.json` cannot be read")
    if digest.decode("ascii", "replace") != _sha256(text):
        refuse("it is damaged: `manifest.json` does not match its digest")
    manifest = json.loads(text)
    if manifest["format"] != _FORMAT:
        refuse(f"it has format {manifest['format']}, and this version reads {_FORMAT}")
    found = {name: file for name, file in _files(path) if name != "manifest.json"}
    for name in sorted(manifest["files"].keys() | found.keys()):
        if name not in found:
            refuse(f"it is damaged: `{name}` is missing")
        if name not in manifest["files"]:
            refuse(f"it is damaged: `{name}` does not belong to it")
        if not found[name].is_file():
            refuse(f"it is damaged: `{name}` is not a regular file")
        try:
            same = _digest(found[name]) == manifest["files"][name]
        except OSError as error:
            refuse(f"`{name}` cannot be read: {error.strerror}")
        if not same:
            refuse(f"it is damaged: `{name}` does not match its digest")
    placements = accept(manifest["notes"], manifest["arrays"]) or {}
    try:
        return _read_state(path / "state", manifest["arrays"], placements), manifest["notes"]
    except Exception as error:
        refuse(_short(error))


def layout(arrays: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Dtype and shape of each array, as in the manifest."""
    return {name: [str(a.dtype), *map(int, a.shape)] for name, a in arrays.items()}


def _check_space(folder: Path, arrays: Mapping[str, Any]) -> None:
    """Raise before a full disk makes TensorStore's threads print errors of their own."""
    needed = sum(array.nbytes for array in arrays.values()) + _OVERHEAD
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _write_state(path: Path, arrays: Mapping[str, Any]) -> None:
    import orbax.checkpoint as ocp

    # Orbax rejects empty arrays; their shape in the manifest is enough to restore them.
    full = {name: array for name, array in arrays.items() if array.size}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(path.absolute(), full)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences errors that Orbax's threads log, because the same errors are raised later."""

    def keep(record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR

    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    for logger in loggers:
        logger.addFilter(keep)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(keep)


def _read_state(
    path: Path, arrays: Mapping[str, list[Any]], placements: Mapping[str, Sharding]
) -> dict[str, Any]:
    import orbax.checkpoint as ocp

    full = [name for name, (_, *shape) in arrays.items() if 0 not in shape]
    kinds: dict[str, Any] = dict.fromkeys(full, ocp.RestoreArgs(restore_type=np.ndarray))
    kinds |= {name: ocp.ArrayRestoreArgs(sharding=place) for name, place in placements.items()}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        result = checkpointer.restore(
            path.absolute(),
            args=ocp.args.PyTreeRestore(item=dict.fromkeys(full, 0), restore_args=kinds),
        )
    for name, (dtype, *shape) in arrays.items():
        if 0 in shape:
            result[name] = np.zeros(shape, np.dtype(dtype))
    if layout(result) != dict(arrays):
        raise ValueError("its arrays are not those that its manifest lists")
    return result


def _error_code(error: Exception) -> int | None:
    """Error code of the system, which TensorStore gives only as a part of its message."""
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return int(found[1]) if found else getattr(error, "errno", None)


def _short(error: Exception) -> str:
    return str(error).partition("\n")[0][:200] or type(error).__name__


def _files(folder: Path) -> list[tuple[str, Path]]:
    """All files below a folder, by their relative path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return [(path.relative_to(folder).as_posix(), path) for path in paths]


def _digest(path: Path, *, sync: bool = False) -> str:
    with open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _remove(path: Path) -> None:
    """Remove an old checkpoint, or leave it if that fails: the new one is already written."""
    doomed = path.with_name(f"{_PARTIAL}{secrets.token_hex(8)}")
    with contextlib.suppress(OSError):
        os.rename(path, doomed)
        shutil.rmtree(doomed)
