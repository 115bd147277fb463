"""Report of a comparison: a table of rows and a verdict."""

import dataclasses

from jaxrnn.testing.verdicts import Kind, Row


@dataclasses.dataclass(frozen=True)
class Report:
    """The rows of a comparison; `report["h_n"]` is a row, `str(report)` the table.

    Attributes:
        title: PyTorch class, dtype and number of steps of the comparison.
        rows: one for each output, state, loss and gradient.
        suspects: if the modules disagree, one sentence for each setting that differs between them.
    """

    title: str
    rows: tuple[Row, ...]
    suspects: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True if there are rows and all of them are within tolerance."""
        return bool(self.rows) and not self.failures

    @property
    def failures(self) -> tuple[Row, ...]:
        return tuple(row for row in self.rows if not row.ok)

    def __getitem__(self, name: str) -> Row:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"no row {name!r} among {', '.join(row.name for row in self.rows)}")

    def worst(self, kind: Kind) -> Row:
        """Row of the given kind that is nearest to its tolerance, or furthest beyond it."""
        rows = [row for row in self.rows if row.kind == kind]
        if not rows:
            raise KeyError(f"no row of the kind {kind!r}")
        return max(rows, key=lambda row: row.excess)

    def __str__(self) -> str:
        cells = [self._header, *self._cells("", "BEYOND")]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(pairs))
            for pairs in (list(zip(row, widths, strict=True)) for row in cells)
        ]
        suspects = [f"suspect: {sentence}" for sentence in self.suspects]
        return "\n".join([self.title, *map(str.rstrip, lines), *suspects, self.verdict])

    def to_markdown(self) -> str:
        """Table in Markdown, without title and verdict."""
        header = [*self._header[:-1], "verdict"]
        rule = ["---"] * 3 + ["---:"] * (len(header) - 4) + ["---"]
        lines = [header, rule, *self._cells("ok", "**beyond**")]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    @property
    def verdict(self) -> str:
        """One line: agreement, or the names of the rows beyond tolerance."""
        if not self.rows:
            return "DISAGREE: nothing was compared"
        if self.ok:
            agree = f"agree: all {len(self.rows)} rows within tolerance"
            cancels = ", ".join(row.name for row in self.rows if row.note == "cancels")
            return f"{agree}; rounding alone in {cancels}" if cancels else agree
        names = ", ".join(row.name for row in self.failures)
        count = f"{len(self.failures)} of {len(self.rows)} rows"
        return f"DISAGREE: {count} beyond tolerance: {names}"

    @property
    def _header(self) -> list[str]:
        extra = [*(["ratio"] if self._has_ratio else []), *(["floor"] if self._has_floor else [])]
        return ["name", "kind", "shape", "max abs", "norm rel", *extra, "tolerance", ""]

    @property
    def _has_ratio(self) -> bool:
        return any(row.error_ratio is not None for row in self.rows)

    @property
    def _has_floor(self) -> bool:
        return any(row.floor is not None for row in self.rows)

    def _cells(self, good: str, bad: str) -> list[list[str]]:
        def cells(row: Row) -> list[str]:
            ratio = "" if row.error_ratio is None else f"{row.error_ratio:.2g}"
            floor = "" if row.floor is None else f"{row.floor:.1e}"
            return [
                row.name,
                row.kind,
                "x".join(map(str, row.shape)) or "()",
                f"{row.max_abs:.1e}",
                f"{row.norm_relative:.1e}",
                *([ratio] if self._has_ratio else []),
                *([floor] if self._has_floor else []),
                f"{row.tolerance:.2g}",
                " ".join(filter(None, [good if row.ok else bad, row.note])),
            ]

        return [cells(row) for row in self.rows]
