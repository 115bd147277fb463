"""Runs in processes that may be killed, forked from a server that has imported JAX.

The server starts no backend, because JAX's threads would not survive the fork.
"""

import json
import os
import re
import signal
import subprocess
import sys
import traceback
from pathlib import Path

KILLED = -signal.SIGKILL


class Server:
    """A script of this folder as a server that imports JAX once and forks for each run."""

    def __init__(self, script, cache):
        self.cache = str(cache)
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name(script))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"},
        )

    def start(self, folder, **job):
        self.process.stdin.write(
            json.dumps({"folder": str(folder), "cache": self.cache, **job}) + "\n"
        )
        self.process.stdin.flush()
        return int(self.line())

    def line(self):
        line = self.process.stdout.readline().strip()
        assert line, "the server has died"
        return line

    def finish(self):
        """Exit code of the run. Other lines are of the run itself, or of libraries."""
        while not re.fullmatch(r"-?\d+", line := self.line()):
            pass
        return int(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def die_at(name, call):
    """Makes the process kill itself at the given call, counted from 1, of a function of `os`."""
    original = getattr(os, name)
    left = [call]

    def deadly(*args, **kwargs):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(os, name, deadly)


def serve(work):
    """For each line of JSON, prints the child's pid, `now` after `tell` records, the exit code."""
    import orbax.checkpoint  # noqa: F401  once, instead of in each child

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                signal.alarm(600)  # ends a fork that hangs, but not one on a busy machine
                os.write(1, f"{os.getpid()}\n".encode())
                work(json.loads(line))
                code = 0
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        os.write(1, f"{os.waitstatus_to_exitcode(status)}\n".encode())
