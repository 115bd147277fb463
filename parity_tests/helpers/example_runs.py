"""Scripts of `examples/` run to their end, and the numbers that they print."""

import re
import subprocess
from pathlib import Path

from scripts import run_script

EXAMPLES = Path(__file__).parents[2] / "examples"
NUMBER = r"(?<!\w)-?\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?"


def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run_script(EXAMPLES / f"{name}.py", *arguments)


def finished(name: str, *arguments: object) -> str:
    """Standard output of a script that succeeds and writes no errors."""
    result = run(name, *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""  # no progress bar where there is no terminal
    return result.stdout


def numbers_by_line(output: str, beginning: str) -> list[list[float]]:
    """Numbers of each line with this prefix."""
    lines = [line.strip() for line in output.splitlines() if line.strip().startswith(beginning)]
    assert lines, f"no line begins with {beginning!r}"
    return [
        [float(n.replace(",", "")) for n in re.findall(NUMBER, line.removeprefix(beginning))]
        for line in lines
    ]


def numbers(output: str, beginning: str) -> list[float]:
    """Numbers of all lines with this prefix, in one list."""
    return [n for line in numbers_by_line(output, beginning) for n in line]


def assert_png(path: Path) -> None:
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert path.stat().st_size > 10_000
