"""The house rules that every notebook keeps, as functions that yield what is wrong.

A chapter's frame: an opening that says what is learnt, needed and how long it runs; a first
code cell with nothing but imports; `## Summary`, `## Exercises`, `## Further reading` at the end.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from nbformat import NotebookNode

import fingerprint
from notebooks import (
    METADATA,
    ROOT,
    code,
    notebooks,
    prose,
    read,
    stray_notebooks,
)

MIN_CODE_CELLS, MAX_CODE_CELLS = 10, 30
MAX_LINES = 12
OPENING = {
    "what is learnt": "what you will learn",
    "what is needed": "what you need",
    "the time": "how long",
}
CLOSING = ["Summary", "Exercises", "Further reading"]
RUN_METADATA = {
    "execution",
    "ExecuteTime",
    "timestamp",
    "papermill",
    "collapsed",
    "scrolled",
}
DOWNLOADS = r"\b(urllib|requests|httpx|urlopen|urlretrieve|wget|fetch_\w+|hf_hub_download)\b"
ABSOLUTE = r"(?<![\w.:/~])/(?:home|root|tmp|Users|usr|opt|var|mnt|workspace)/|\b[A-Z]:\\\\?\w"
DATE = r"\b20\d\d-\d\d-\d\d[ T]\d\d:\d\d"
ADDRESS = r"\bat 0x[0-9a-f]{6,}"


def texts(cell: NotebookNode) -> Iterator[str]:
    """Everything readable that a cell printed or showed."""
    for output in cell.get("outputs", []):
        yield output.get("text", "")
        for mime, data in output.get("data", {}).items():
            if mime.startswith("text/"):
                yield data


def parsed(cell: NotebookNode) -> ast.Module:
    """The cell's syntax tree; an empty one where the cell is not plain Python (`execution` reports that)."""
    try:
        return ast.parse(cell.source)
    except SyntaxError:
        return ast.Module([], [])


def execution(nb: NotebookNode) -> Iterator[str]:
    counts = [cell.execution_count for cell in code(nb)]
    if counts != list(range(1, len(counts) + 1)):
        yield f"its cells were not run once each from top to bottom: {counts}"
    for cell in code(nb):
        try:
            ast.parse(cell.source)
        except SyntaxError:
            yield f"not plain Python (no `!` and no `%`): {cell.source[:60]!r}"
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"an error output was committed: {output.ename}"
            if output.get("name") == "stderr":
                yield f"a cell writes to stderr: {output.text[:60]!r}"
        if kept := RUN_METADATA & {
            *cell.metadata,
            *(key for out in cell.outputs for key in out.get("metadata", {})),
        }:
            yield f"metadata of a run: {sorted(kept)}"
    if nb.metadata.get("kernelspec", {}) != METADATA["kernelspec"]:
        yield f"kernelspec is {nb.metadata.get('kernelspec')}, not python3's"


def portability(nb: NotebookNode) -> Iterator[str]:
    for cell in nb.cells:
        shown = "\n".join([cell.source, *texts(cell)])
        if found := re.search(ABSOLUTE, shown) or re.search(
            re.escape(str(ROOT)), shown
        ):
            yield f"an absolute path: {found.group()!r}"
        if found := re.search(f"{DATE}|{ADDRESS}", "\n".join(texts(cell))):
            yield f"an output that differs from run to run: {found.group()!r}"
    for cell in code(nb):
        if "sys.path" in cell.source:
            yield "sys.path is changed; install the package instead"
        if found := re.search(DOWNLOADS, cell.source):
            yield f"a download ({found.group()}); what a chapter needs comes with the package"


def is_frame(node: ast.stmt) -> bool:
    """Whether a statement may stand in the first code cell: an import, use_style(), a generator's seed."""
    if isinstance(node, ast.ImportFrom):
        return node.level == 0
    if isinstance(node, ast.Import):
        return True
    calls = [
        ast.unparse(n.func).split(".")[-1]
        for n in ast.walk(node)
        if isinstance(n, ast.Call)
    ]
    return bool(calls) and set(calls) <= {
        "use_style",
        "Generator",
        "manual_seed",
        "default_rng",
    }


def first_cell(nb: NotebookNode) -> Iterator[str]:
    if not code(nb):
        return
    for node in parsed(code(nb)[0]).body:
        if not is_frame(node):
            yield f"its first code cell is for imports, not for {ast.unparse(node)!r}"
    for cell in code(nb):
        for node in ast.walk(parsed(cell)):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else []
            )
            names += (
                [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            )
            for name in names:
                top = name.split(".")[0]
                if top not in sys.stdlib_module_names and not installed(top):
                    yield f"imports {name!r}, which is not an installed package"


def installed(package: str) -> bool:
    """Whether a package can be imported from anywhere, not only from the notebook's own folder."""
    spec = importlib.util.find_spec(package) if package else None
    return (
        spec is not None
        and ROOT / "book" not in Path(spec.origin or "").parents
    )


def shape(nb: NotebookNode) -> Iterator[str]:
    kinds = [cell.cell_type for cell in nb.cells]
    opening = "\n".join(
        cell.source
        for cell in nb.cells[: kinds.index("code") if "code" in kinds else None]
    )
    if not opening.startswith("# "):
        yield "it does not begin with a title"
    for what, phrase in OPENING.items():
        if phrase not in opening.lower():
            yield f"its opening does not say {what} ({phrase!r})"
    headings = re.findall(r"^## (.+?)\s*$", prose(nb), flags=re.MULTILINE)
    if headings[-3:] != CLOSING:
        yield f"its last headings are {headings[-3:]}, not {CLOSING}"
    exercises = next(
        (
            i
            for i, c in enumerate(nb.cells)
            if re.search(r"^## Exercises", c.source, re.M)
        ),
        None,
    )
    count = len(code(NotebookNode(cells=nb.cells[:exercises])))
    if not MIN_CODE_CELLS <= count <= MAX_CODE_CELLS:
        yield f"{count} code cells before the exercises, not {MIN_CODE_CELLS} to {MAX_CODE_CELLS}"


def length(nb: NotebookNode) -> Iterator[str]:
    """A reader takes in a screen at a time. Imports may be long, and code whose folding says that it only draws."""
    for cell in code(nb)[1:]:
        lines = sum(bool(line.strip()) for line in cell.source.splitlines())
        if lines > MAX_LINES and "hide-input" not in cell.metadata.get(
            "tags", []
        ):
            yield f"a cell of {lines} lines, more than {MAX_LINES}; split it: {cell.source[:60]!r}"


def solutions(nb: NotebookNode) -> Iterator[str]:
    text = prose(nb)
    asked = re.findall(
        r"\{exercise(?:-start)?\}[^\n]*\n(?:(?::.*\n)*?:label: *(\S+))?", text
    )
    solved = re.findall(r"\{solution(?:-start)?\} *(\S+)", text)
    folded = re.findall(
        r"\{solution(?:-start)?\} *(\S+)\n(?::.*\n)*?:class:[^\n]*\bdropdown\b",
        text,
    )
    if not asked:
        yield "it has no exercise"
    if sorted(asked) != sorted(solved):
        yield f"exercises and solutions do not match by label: {sorted(asked)} and {sorted(solved)}"
    if unfolded := sorted(set(solved) - set(folded)):
        yield f"solutions that lie open (`:class: dropdown`): {unfolded}"


RULES: list[Callable[[NotebookNode], Iterator[str]]] = [
    execution,
    portability,
    first_cell,
    shape,
    length,
    solutions,
]


def faults(nb: NotebookNode) -> list[str]:
    return [fault for rule in RULES for fault in rule(nb)]


def main() -> int:
    found = [
        f"{name}: {fault}"
        for name in notebooks()
        for fault in faults(read(name))
    ]
    found += [
        f"{name}: not in the table of contents" for name in stray_notebooks()
    ]
    found += [
        f"{name}: its outputs were made by other sources; run `make execute`"
        for name in fingerprint.stale()
    ]
    print("\n".join(found), end="\n" if found else "")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
