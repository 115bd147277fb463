"""The metrics of a run as JSON lines: each written at once, none lost and none doubled."""

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

Record = dict[str, Any]


class Mark(NamedTuple):
    """A place in the file: so many bytes, and their SHA-256."""

    size: int
    digest: str


START = Mark(0, hashlib.sha256().hexdigest())


class Metrics:
    """The records of a run, in memory and, with a path, in a file.

    Args:
        path: of the file; None for none. It is made if it is not there.
        mark: where to go on. What the file has after it is cut off.

    Raises:
        ValueError: the file is not the one that `mark` was made of; it is not changed.
        OSError: as the system says.
    """

    def __init__(self, path: Path | None = None, mark: Mark = START):
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
        # No buffer: what was written is with the system, and so outlives the process.
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.truncate(self._descriptor, mark.size)
        except BaseException:
            self.close()
            raise

    def write(self, record: Record) -> None:
        """Adds a record."""
        self.records.append(record)
        if self._descriptor is None:
            return
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        if os.write(self._descriptor, line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size += len(line)
        self._hash.update(line)

    def mark(self) -> Mark:
        """The end of what was written."""
        return Mark(self._size, self._hash.hexdigest())

    def sync(self) -> None:
        """Makes what was written outlive the machine's power, too."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
