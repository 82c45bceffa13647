"""Run notebooks in place: all of the book, or those named on the command line.

Environment variables that a run depends on are set here and not only in the Makefile,
so that a notebook gives the same outputs however it was started.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "TQDM_DISABLE": "1",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import fingerprint
import misreadings
from notebooks import ROOT, normalise, notebooks, read, write

TIMEOUT = 300
# Over TCP a kernel warns at each start that nobody has set up encryption.
QUIET = ["--log-level=ERROR"]


def stderr(nb: nbformat.NotebookNode) -> str:
    """Everything that a notebook wrote to its error stream."""
    outputs = [
        output for cell in nb.cells for output in cell.get("outputs", [])
    ]
    return "".join(
        output.text for output in outputs if output.get("name") == "stderr"
    )


def execute(name: str) -> float:
    """Format, run and store one notebook; return the seconds it took."""
    path = ROOT / "book" / name
    # Formatting after the run would change the code that the fingerprint is made from.
    subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--quiet", str(path)],
        check=True,
    )
    nb = normalise(read(name))
    start = time.perf_counter()
    client = NotebookClient(
        nb,
        timeout=TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
        extra_arguments=QUIET,
    )
    try:
        client.execute()
    except CellExecutionError as error:
        raise SystemExit(f"{name}: {error}") from None
    seconds = time.perf_counter() - start
    if text := stderr(nb):
        raise SystemExit(
            f"{name} writes to stderr, which no committed output may hold:\n{text}"
        )
    write(normalise(nb), name)
    return seconds


def main(arguments: list[str]) -> None:
    known = notebooks()
    names = [argument.removeprefix("book/") for argument in arguments] or known
    if unknown := sorted(set(names) - set(known)):
        raise SystemExit(
            f"not a notebook of the table of contents: {', '.join(unknown)}"
        )
    for name in names:
        print(f"{execute(name):6.1f} s  {name}", flush=True)
        fingerprint.update([name])
    misreadings.main()


if __name__ == "__main__":
    main(sys.argv[1:])
