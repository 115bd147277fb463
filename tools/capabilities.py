"""Print the table of the strategies: what each is, and what it runs on a CPU.

From the first line of its docstring and from its `capabilities`.
"""

import dataclasses
import inspect

from jaxrnn import strategies
from jaxrnn.cells import Cell
from jaxrnn.strategies import Strategy


def made(kind: type) -> Strategy:
    """A strategy with its defaults, and 1 for each option that has none."""
    missing = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]
    return kind(**dict.fromkeys(missing, 1))


def listed(cells: tuple[Cell, ...]) -> str:
    return ", ".join(f"`{cell.name}`" for cell in cells)


def row(kind: type) -> str:
    has = made(kind).capabilities
    about = (inspect.getdoc(kind) or "").splitlines()[0].rstrip(".")
    cells = "every cell" if has.cells is None else listed(has.cells)
    cells = "cells with `Cell.linear`" if has.linear else cells
    dtypes = "every float" if has.dtypes is None else ", ".join((*has.dtypes, *has.narrow))
    projections = "yes" if has.projections is None else listed(has.projections) or "no"
    dropout = "yes" if has.recurrent_dropout else "no"
    return f"| `{kind.__name__}` | {about} | {cells} | {projections} | {dropout} | {dtypes} |\n"


def table() -> str:
    public = [getattr(strategies, name) for name in strategies.__all__]
    kinds = [value for value in public if dataclasses.is_dataclass(value)]
    names = "cells", "`proj_size`", "`recurrent_dropout`", "dtypes"
    head = f"| strategy | | {' | '.join(names)} |\n{'|---' * 6}|\n"
    return head + "".join(map(row, kinds))


if __name__ == "__main__":
    print(table(), end="")
