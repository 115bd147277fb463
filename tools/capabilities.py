"""Print the table of what each strategy runs, from the strategies' own `capabilities`."""

from jaxrnn import strategies
from jaxrnn.strategies import (
    AssociativeScan,
    Capabilities,
    Checkpoint,
    Native,
    Reference,
    Scan,
    Shooting,
)

NAMED: list[tuple[str, strategies.Strategy]] = [
    ("Native()", Native()),
    ("Scan()", Scan()),
    ("Checkpoint(steps)", Checkpoint(steps=1)),
    ("Shooting()", Shooting()),
    ("AssociativeScan()", AssociativeScan()),
    ("Reference()", Reference()),
]


def row(name: str, has: Capabilities) -> str:
    cells = "every cell" if has.cells is None else ", ".join(f"`{c.name}`" for c in has.cells)
    cells = "cells with `Cell.linear`" if has.linear else cells
    dtypes = "every float" if has.dtypes is None else ", ".join(has.dtypes)
    return f"| `{name}` | {cells} | {'yes' if has.projections else 'no'} | {dtypes} |"


def table() -> str:
    head = "| on a CPU | cells | `proj_size` | dtypes |\n|---|---|---|---|\n"
    return head + "".join(f"{row(name, s.capabilities)}\n" for name, s in NAMED)


if __name__ == "__main__":
    print(table(), end="")
