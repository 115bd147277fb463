"""Exclusive lock on a run's folder, released by the system when the process ends."""

import errno
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where runs are not locked
    fcntl = None  # type: ignore[assignment]


class Lock:
    """Holds `folder/lock` until it is closed or the process ends.

    Raises:
        OSError: another run holds it, or the file cannot be opened.
    """

    def __init__(self, folder: Path):
        self._descriptor: int | None = None
        if fcntl is None:
            return
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(descriptor)
                raise BlockingIOError(error.errno, os.strerror(error.errno)) from None
            # The file system has no locks, so the run continues without one.
        self._descriptor = descriptor

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
