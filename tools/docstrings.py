"""The docstrings' forms that griffe does not know, rewritten for the API reference."""

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Read `Example:` as the section that griffe calls `Examples:`, and equations as a block."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = re.sub(r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M)
            obj.docstring.value = "\n\n".join(map(as_block, text.split("\n\n")))


def as_block(paragraph: str) -> str:
    """Indent a paragraph of equations, one a line, as Markdown's code."""
    lines = paragraph.split("\n")
    equations = all(re.match(r"[A-Za-z][\w', {}-]{0,12} (=|←) ", line) for line in lines)
    return "\n".join(f"    {line}" for line in lines) if equations else paragraph
