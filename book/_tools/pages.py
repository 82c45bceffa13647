"""Check that every page of the table of contents was built, and say where to open the book.

A build without any warning can still publish nothing, so this looks at the files.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from notebooks import ROOT, notebooks, read, toc_pages

HIDING = {"remove-output", "remove-cell"}


def missing(root: Path = ROOT) -> list[str]:
    """What a complete site would have and this one has not."""
    site, faults = root / "_build/html", []
    for page in toc_pages(root):
        path = site / f"{page}.html"
        if not path.exists():
            faults.append(f"{page}.html is not there")
        elif "<h1" not in path.read_text("utf8"):
            faults.append(f"{page}.html has no title")
    for name in notebooks(root):
        path = site / name.replace(".ipynb", ".html")
        cells = [
            c
            for c in read(name, root).cells
            if not HIDING & set(c.metadata.get("tags", []))
        ]
        figures = sum(
            is_figure(out.get("data", {}))
            for c in cells
            for out in c.get("outputs", [])
        )
        shown = (
            len(re.findall(r"<img[^>]+_images/", path.read_text("utf8")))
            if path.exists()
            else 0
        )
        if shown < figures:
            faults.append(
                f"{name} has {figures} figures, its page shows {shown}"
            )
    return faults


def is_figure(data: dict[str, str]) -> bool:
    """Whether a page shows a cell's PNG: beside HTML, as of a figure to touch, it only stands in where HTML cannot."""
    return "image/png" in data and "text/html" not in data


if __name__ == "__main__":
    if faults := missing():
        sys.exit("The site is not complete:\n  " + "\n  ".join(faults))
    print(
        f"The book is built. Open {(ROOT / '_build/html/index.html').as_uri()} or run `make serve`."
    )
