"""One hash a notebook over everything its outputs were made from.

A notebook's committed outputs are right as long as its code, the library and the
pinned packages are those that made them. `make execute` writes the hashes, a test
compares them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from notebooks import ROOT, code, notebooks, read

FILE = "book/_fingerprint.json"


def sources(root: Path = ROOT) -> bytes:
    """The library with its package data, and the pins, as one string of bytes."""
    skipped = {"__pycache__", ".ipynb_checkpoints"}
    library = [
        p
        for p in (root / "bnnlib").rglob("*")
        if p.is_file() and not skipped & set(p.parts)
    ]
    parts = []
    for path in [*sorted(library), root / "constraints.txt"]:
        parts += [
            path.relative_to(root).as_posix().encode(),
            path.read_bytes().replace(b"\r\n", b"\n"),
        ]
    return b"\0".join(parts)


def fingerprint(name: str, root: Path = ROOT) -> str:
    cells = "\0".join(cell.source for cell in code(read(name, root)))
    return hashlib.sha256(cells.encode() + b"\0\0" + sources(root)).hexdigest()


def stored(root: Path = ROOT) -> dict[str, str]:
    path = root / FILE
    return dict(json.loads(path.read_text("utf8"))) if path.exists() else {}


def stale(root: Path = ROOT) -> list[str]:
    """Notebooks whose outputs other sources made, and entries without a notebook."""
    old, names = stored(root), notebooks(root)
    return [
        name for name in names if old.get(name) != fingerprint(name, root)
    ] + sorted(set(old) - set(names))


def update(names: list[str], root: Path = ROOT) -> None:
    """Store the hashes of these notebooks; keep the others', drop those that are gone."""
    old = stored(root)
    new = {
        n: fingerprint(n, root) if n in names else old[n]
        for n in notebooks(root)
        if n in names or n in old
    }
    (root / FILE).write_text(
        json.dumps(new, indent=1, sort_keys=True) + "\n", "utf8"
    )
