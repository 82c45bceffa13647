"""A room imports only from the rooms above it and from the modules that serve them all."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import bnnlib

ROOMS = ["bayes", "normal", "batchnorm", "variational", "nets"]
SHARED = {"data", "metrics", "plot", "predictive", "widgets"}
PACKAGE = Path(bnnlib.__file__).parent


def is_shared(part: str) -> bool:
    return part in SHARED or (part.startswith("_") and part != "__init__")


def imported(path: Path, package: Path) -> Iterator[str]:
    """The parts of bnnlib (its top-level modules and packages) that a file imports from."""
    here = [package.name, *path.relative_to(package).with_suffix("").parts]
    for node in ast.walk(ast.parse(path.read_text("utf8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: -node.level] if node.level else []
            base = base + (node.module.split(".") if node.module else [])
            # `from bnnlib import data` and `from bnnlib.data import quintic` name the part in different places.
            targets = [[*base, alias.name] for alias in node.names]
        else:
            continue
        for target in targets:
            if target[0] == package.name:
                yield target[1] if len(target) > 1 else "the package itself"


def offences(package: Path) -> list[str]:
    found = []
    for path in sorted(package.rglob("*.py")):
        part = path.relative_to(package).with_suffix("").parts[0]
        if part == "__init__":
            continue
        if not is_shared(part) and part not in ROOMS:
            found.append(f"{part} is neither a room nor shared")
            continue
        allowed = set() if is_shared(part) else {*ROOMS[: ROOMS.index(part) + 1]}
        found += [
            f"{path.relative_to(package)} imports from {other}"
            for other in imported(path, package)
            if not is_shared(other) and other not in allowed
        ]
    return found


def test_rooms_import_only_from_above():
    assert offences(PACKAGE) == []


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("bayes.py", "from bnnlib.nets import laplace"),
        ("bayes.py", "from . import normal"),
        ("bayes.py", "def f():\n    import bnnlib.variational.cavi"),
        ("data.py", "from .bayes import update"),
        ("_flat.py", "from bnnlib import nets"),
        ("nets/laplace.py", "import bnnlib"),
        ("helpers.py", ""),
    ],
)
def test_a_forbidden_import_is_found(tmp_path, path, line):
    target = tmp_path / "bnnlib" / path
    target.parent.mkdir(parents=True)
    target.write_text(line)
    assert len(offences(tmp_path / "bnnlib")) == 1


def test_allowed_imports_pass(tmp_path):
    nets = tmp_path / "bnnlib/nets"
    nets.mkdir(parents=True)
    (nets / "laplace.py").write_text(
        "import torch\nfrom ..variational import elbo\nfrom .model import Model\nfrom . import posterior\n"
        "from bnnlib._flat import unravel\nfrom bnnlib.data import quintic\nfrom .. import metrics\n"
    )
    assert offences(tmp_path / "bnnlib") == []
