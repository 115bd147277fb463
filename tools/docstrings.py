"""The docstrings' forms that griffe does not know, rewritten for the API reference."""

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Read `Example:` as the section `Examples:`, one value in `Returns:`, equations as a block."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = re.sub(r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M)
            text = re.sub(r"(?<=^Returns:\n)(?: {4}.*\n?)+", hang, text, flags=re.M)
            text = re.sub(r"(?<=^Attributes:\n)(?: {4}.*\n?)+", bind, text, flags=re.M)
            obj.docstring.value = "\n\n".join(map(as_block, text.split("\n\n")))


def hang(returned: re.Match[str]) -> str:
    """Indent the lines that continue a value, which griffe would read as further values."""
    first, *rest = returned[0].splitlines()
    names = r" {4}\w[\w, ()]*: "
    lines = [line if re.match(names, line) else f"    {line}" for line in rest]
    return "\n".join([first, *lines]) + "\n"


def bind(attributes: re.Match[str]) -> str:
    """Bind several names of one entry, which griffe would read as a name and its type."""
    names = r"^ {4}[\w.]+(, [\w.]+)+:"
    return re.sub(
        names, lambda m: m[0][:4] + m[0][4:].replace(" ", "\u00a0"), attributes[0], flags=re.M
    )


def as_block(paragraph: str) -> str:
    """Indent a paragraph of equations, one a line, as Markdown's code."""
    lines, name = paragraph.split("\n"), r"[A-Za-z][\w'{}-]*"
    equations = all(re.match(rf"{name}(, {name})* (=|←) ", line) for line in lines)
    prose = re.search(r"\. [A-Z]", paragraph)
    return "\n".join(f"    {line}" for line in lines) if equations and not prose else paragraph
