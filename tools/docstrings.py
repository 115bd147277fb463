"""The docstrings' forms that griffe does not know, rewritten for the API reference."""

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """Read `Example:` as the section of examples that it is, and lists of names as one entry."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            text = re.sub(r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.M)
            obj.docstring.value = text
