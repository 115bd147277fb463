"""Deferred Ctrl-C and SIGTERM, so that a run ends between two steps with a checkpoint."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import jax


class Signals:
    """A context that records SIGINT and SIGTERM where they would have ended the process.

    The caller's own handlers stay in place. A second Ctrl-C ends the run at once, except while a
    checkpoint is being written.

    Args:
        active: False leaves all signals alone.
    """

    def __init__(self, *, active: bool = True) -> None:
        self._active = active
        self.caught: int | None = None
        self._saving = False
        self._watched: list[tuple[int, object]] = []

    def __enter__(self) -> "Signals":
        if self._active and threading.current_thread() is threading.main_thread():
            ends = ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL))
            for number, default in ends:
                if signal.getsignal(number) is default:
                    self._watched.append((number, default))
                    signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, default in self._watched:
            signal.signal(number, default)  # type: ignore[arg-type]
        self._watched.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == self.caught == signal.SIGINT and not self._saving:
            raise KeyboardInterrupt
        self.caught = number

    @contextlib.contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """A context in which a second Ctrl-C is deferred too."""
        self._saving = True
        try:
            yield
        finally:
            self._saving = False


def end(number: int, sentence: str) -> None:
    """End the process or the call in the way that a signal would have; 0 is no signal."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt(sentence)
    if number == signal.SIGTERM:
        print(sentence, file=sys.stderr, flush=True)
        sys.stdout.flush()
        if jax.distributed.is_initialized():
            jax.distributed.shutdown()  # or the others would report that this process is gone
        signal.raise_signal(signal.SIGTERM)
