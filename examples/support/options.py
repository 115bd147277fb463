"""Command lines of the examples, with one clear error for an option that cannot run."""

import errno
import importlib.util
import sys
from collections.abc import Callable
from typing import Any

EXTRA = "`pip install 'jaxrnn[examples]'`"

try:
    import tyro
    from tqdm import tqdm as tqdm
except ImportError as error:
    sys.exit(f"The examples need {error.name}, which is not installed: {EXTRA}.")


def require(options: Any, holds: bool, name: str, what: str) -> None:
    """Raise ValueError unless an option holds what it must."""
    if not holds:
        flag = "--" + name.replace("_", "-")
        raise ValueError(f"{flag} must be {what}, got {getattr(options, name)}.")


def require_counts(options: Any, *names: str) -> None:
    for name in names:
        require(options, getattr(options, name) >= 1, name, "1 or more")


def require_rate(options: Any) -> None:
    """Require a finite, positive learning rate."""
    good = 0 < options.learning_rate < float("inf")
    require(options, good, "learning_rate", "more than 0")


def require_module(name: str, purpose: str, extra: str = EXTRA) -> None:
    """Raise ValueError where a package is missing."""
    try:
        found = importlib.util.find_spec(name) is not None
    except ImportError:
        found = False
    if not found:
        raise ValueError(f"{purpose} needs {name}, which is not installed: {extra}.")


def require_torch(purpose: str, instead: str = "") -> None:
    require_module("torch", purpose, f"`pip install 'jaxrnn[torch]'`{instead}")


def launch(options: type, main: Callable[[Any], None]) -> None:
    """Run `main` with the options of the command line, or print one error and exit with 1."""
    chosen = tyro.cli(options)
    try:
        require_module("matplotlib", "The figure")
        chosen.check()
    except ValueError as error:
        sys.exit(str(error))
    try:
        main(chosen)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        sys.exit(f"`{error.filename or chosen.out}` cannot be written: {error.strerror}.")
