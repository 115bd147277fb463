"""The folder of a run: who may write to it, and errors of the files in it."""

import errno
from pathlib import Path

from jaxrnn.training import checkpoints
from jaxrnn.training.lock import Lock


def claim(folder: Path, resume: bool) -> tuple[Lock, int]:
    """Locks a folder, and returns the step of its newest checkpoint too; -1 if there is none.

    Raises:
        ValueError: the folder holds a run, and `resume` is False; or it holds another thing.
        OSError: another run holds the lock, or the folder cannot be made or written to.
    """
    saved = folder / "checkpoints"
    try:
        saved.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise restate(f"The folder `{folder}` cannot be made", error) from error
    _find(folder, resume)  # refuse before the lock's file is created
    lock = _lock(folder)
    try:
        found = _find(folder, resume)
    except ValueError:
        lock.close()
        raise
    checkpoints.tidy(saved)
    return lock, found[-1] if found else -1


def _lock(folder: Path) -> Lock:
    try:
        return Lock(folder)
    except BlockingIOError as error:
        failure = OSError(
            f"Another run of `fit` is training in `{folder}`: wait for it to end, or pass "
            "another `folder`. Nothing was changed."
        )
        failure.errno = error.errno
        raise failure from None
    except OSError as error:
        raise restate(f"The run in `{folder}` cannot be opened", error) from error


def _find(folder: Path, resume: bool) -> list[int]:
    """Checkpoints of the run in a folder; empty if there is no run."""
    found = checkpoints.steps(folder / "checkpoints")
    if found and not resume:
        raise ValueError(
            f"`{folder}` holds a run of {found[-1]} steps. Pass `resume=True` to continue it, or "
            "another `folder`."
        )
    if not found and (folder / "metrics.jsonl").exists():
        raise ValueError(
            f"`{folder}` holds a `metrics.jsonl` but no checkpoint to resume from. Pass another "
            "`folder`."
        )
    return found


def restate(what: str, error: OSError) -> OSError:
    """An error that says in one sentence what failed."""
    failure = OSError(f"{what}: {error.strerror}. What was there before is untouched.")
    failure.errno = error.errno or errno.EIO
    return failure
