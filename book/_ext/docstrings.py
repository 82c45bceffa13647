"""Docstrings are written to be read in an editor. Some of their habits mean something else to Sphinx.

A formula is an indented block of plain text: reStructuredText takes it for a quotation and lets its lines run together.
`|x|` is an absolute value and `*shape` an unpacking: to reStructuredText they begin a substitution and an emphasis.
A property may say "E[y]: the mean": napoleon takes what stands before the colon for a type.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

# Code in backticks stays; a bar, or a star that no other star closes, is only a sign.
SIGNS = re.compile(r"(`[^`]*`)|(\||(?<![\w*])\*(?=\w)(?![^*]*\w\*))")


def escaped(line: str) -> str:
    return SIGNS.sub(lambda match: match[1] or "\\" + match[2], line)


def to_rst(lines: list[str]) -> list[str]:
    """Put `::` before each block that is indented below an unindented paragraph; escape signs in all other text."""
    out: list[str] = []
    said, formula, doctest = "", False, False
    for i, line in enumerate(lines):
        if (
            line.startswith("    ")
            and i > 0
            and not lines[i - 1].strip()
            and said
            and not said.startswith((" ", ".."))
        ):
            if not formula and not said.endswith("::"):
                out += ["::", ""]
            formula = True
        elif line.strip() and not line.startswith("    "):
            formula = False
        doctest = line.lstrip().startswith(">>>") or (
            doctest and bool(line.strip())
        )
        out.append(line if formula or doctest else escaped(line))
        if line.strip() and not formula:
            said = "" if doctest else line
    return out


def process(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    lines[:] = to_rst(lines)
    if what in ("attribute", "data", "property"):
        lines[:0] = [
            "..",
            "",
        ]  # an empty comment: napoleon looks for a type in the first line only


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect(
        "autodoc-process-docstring", process, priority=400
    )  # napoleon comes at 500
    return {"parallel_read_safe": True}
