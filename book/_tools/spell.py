"""Run codespell over the tree and over the text of the notebooks.

A notebook's figures are base64, in which codespell finds misspelt words, so it sees an extract.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from notebooks import ROOT, notebooks, read, words


def codespell(*arguments: str) -> int:
    command = [
        sys.executable,
        "-m",
        "codespell_lib",
        "--toml",
        str(ROOT / "pyproject.toml"),
        *arguments,
    ]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        for name in notebooks():
            extract = Path(folder, name).with_suffix(".txt")
            extract.parent.mkdir(parents=True, exist_ok=True)
            extract.write_text(words(read(name)), "utf8")
        return max(codespell("."), codespell(folder))


if __name__ == "__main__":
    sys.exit(main())
