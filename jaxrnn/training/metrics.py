"""Metrics of a run as JSON lines: each is written at once, so none is lost or duplicated."""

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

Record = dict[str, Any]


class Mark(NamedTuple):
    """A position in the file: its number of bytes and their SHA-256."""

    size: int
    digest: str


START = Mark(0, hashlib.sha256().hexdigest())


class Metrics:
    """Records of a run, in memory and, with a path, in a file.

    Args:
        path: path of the file, which is created if absent; None for no file.
        mark: position to continue from. Everything after it is cut off.
        write: False only reads, in a process that leaves the file to another one.

    Raises:
        ValueError: the file is not the one that `mark` describes; it is unchanged.
        OSError: the file cannot be read or written.
    """

    def __init__(self, path: Path | None = None, mark: Mark = START, *, write: bool = True):
        self.records: list[Record] = []
        self._descriptor: int | None = None
        self._size, self._hash = 0, hashlib.sha256()
        if path is None:
            return
        if mark.size:
            kept = path.read_bytes()[: mark.size] if path.exists() else b""
            self._size, self._hash = len(kept), hashlib.sha256(kept)
            if self.mark() != mark:
                raise ValueError(
                    f"`{path}` is not as it was when the checkpoint was written, so the run cannot "
                    "be resumed. Nothing was loaded, and nothing was changed."
                )
            self.records = [json.loads(line) for line in kept.splitlines()]
        if not write:
            return
        # No buffer: written data is with the system, and so outlives the process.
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.truncate(self._descriptor, mark.size)
        except BaseException:
            self.close()
            raise

    def write(self, record: Record) -> None:
        """Append a record."""
        self.records.append(record)
        if self._descriptor is None:
            return
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        if os.write(self._descriptor, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size += len(line)
        self._hash.update(line)

    def mark(self) -> Mark:
        """Mark of the end of the written data."""
        return Mark(self._size, self._hash.hexdigest())

    def sync(self) -> None:
        """Make the written data survive a loss of power."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
