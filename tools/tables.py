"""Print the generated tables of the documents, or write them there.

python tools/tables.py times parity            prints two of them
python tools/tables.py times parity --write    puts them between their markers

A command prints each table; its document has the markers `<!-- NAME table -->` and
`<!-- end of NAME table -->`.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

TABLES = {
    "capabilities": ("docs/strategies.md", ["tools/capabilities.py"]),
    "sides": ("README.md", ["benchmarks/summary.py", "sides"]),
    "times": ("docs/performance.md", ["benchmarks/summary.py"]),
    "parity": ("docs/parity.md", ["parity_tests/helpers/table.py", "parity"]),
    "notebook": ("docs/parity.md", ["parity_tests/helpers/table.py", "notebook"]),
    "rates": ("docs/parity.md", ["parity_tests/testing/rates.py"]),
}


def made(name: str) -> str:
    """The table as its command prints it now."""
    command = [sys.executable, *TABLES[name][1]]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def written(name: str) -> str:
    """The table as it is in its document."""
    _, table, _ = _parts(name)
    return table


def put(name: str, table: str) -> None:
    """Replace the table in its document."""
    before, _, after = _parts(name)
    (ROOT / TABLES[name][0]).write_text(before + table + after)


def _parts(name: str) -> tuple[str, str, str]:
    """The document of a table up to it, the table, and what follows."""
    begin, end = f"<!-- {name} table -->\n\n", f"\n<!-- end of {name} table -->"
    before, rest = (ROOT / TABLES[name][0]).read_text().split(begin)
    table, after = rest.split(end)
    return before + begin, table, end + after


def main() -> None:
    names = [name for name in sys.argv[1:] if name != "--write"]
    unknown = [name for name in names if name not in TABLES]
    if unknown or not names:
        sys.exit(f"Name one or more of {', '.join(TABLES)}, got {' '.join(unknown) or 'none'}.")
    for name in names:
        table = made(name)
        print(table, end="")
        if "--write" in sys.argv[1:]:
            put(name, table)


if __name__ == "__main__":
    main()
