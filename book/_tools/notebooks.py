"""What the book's tools and tests share: which pages there are, and what a notebook holds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[2]

# Jupyter adds and changes these at every save; none of them says anything about the book.
KEPT_CELL_METADATA = {"tags", "editable", "mystnb", "jupyter", "slideshow"}
METADATA = {
    "kernelspec": {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
}


def toc_pages(root: Path = ROOT) -> list[str]:
    """Every page of the table of contents, in its order, without suffix."""
    toc = yaml.safe_load((root / "book/_toc.yml").read_text("utf8"))

    def walk(node: Any) -> Iterator[str]:
        if isinstance(node, list):
            for child in node:
                yield from walk(child)
        elif isinstance(node, dict):
            if "file" in node:
                yield node["file"]
            for key in ("parts", "chapters", "sections"):
                yield from walk(node.get(key))

    return [toc["root"], *walk(toc)]


def notebooks(root: Path = ROOT) -> list[str]:
    """The table of contents' notebooks, as paths below book/."""
    pages = (page.removesuffix(".ipynb") + ".ipynb" for page in toc_pages(root))
    return [page for page in pages if (root / "book" / page).exists()]


def stray_notebooks(root: Path = ROOT) -> list[str]:
    """Notebooks that lie in book/ but that no reader will find."""
    book = root / "book"
    found = {
        p.relative_to(book).as_posix()
        for p in book.rglob("*.ipynb")
        if ".ipynb_checkpoints" not in p.parts
    }
    return sorted(found - set(notebooks(root)))


def read(name: str, root: Path = ROOT) -> nbformat.NotebookNode:
    return nbformat.read(root / "book" / name, as_version=4)


def code(nb: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The code cells that hold anything."""
    return [
        cell
        for cell in nb.cells
        if cell.cell_type == "code" and cell.source.strip()
    ]


def prose(nb: nbformat.NotebookNode) -> str:
    """All Markdown of a notebook."""
    return "\n\n".join(
        cell.source for cell in nb.cells if cell.cell_type == "markdown"
    )


def words(nb: nbformat.NotebookNode) -> str:
    """The text that a spelling check should see: prose without mathematics, and the code."""
    text = re.sub(
        r"\$\$.+?\$\$|\$[^$\n]+\$|\{math\}`[^`]+`",
        " ",
        prose(nb),
        flags=re.DOTALL,
    )
    return text + "\n\n" + "\n\n".join(cell.source for cell in code(nb)) + "\n"


def normalise(nb: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Drop what differs from one run or one editor to the next."""
    nb.metadata = nbformat.from_dict(METADATA)
    nb.nbformat_minor = 5  # the first format whose cells carry an id
    for number, cell in enumerate(nb.cells):
        cell.setdefault("id", f"cell-{number}")
        cell.metadata = nbformat.from_dict(
            {k: v for k, v in cell.metadata.items() if k in KEPT_CELL_METADATA}
        )
        for output in cell.get("outputs", []):
            output.get("metadata", {}).pop("execution", None)
    return nb


def write(nb: nbformat.NotebookNode, name: str, root: Path = ROOT) -> None:
    nbformat.write(nb, root / "book" / name)
