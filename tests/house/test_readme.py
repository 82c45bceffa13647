"""What the README promises: its quickstart runs, its files and pages are there."""

import re
import subprocess
import sys

import pytest

from notebooks import ROOT, notebooks

README = (ROOT / "README.md").read_text("utf8")


@pytest.mark.slow
def test_the_quickstart_runs():
    [quickstart] = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
    command = [sys.executable, "-W", "error", "-c", quickstart]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"y lies between -?\d+\.\d\d and -?\d+\.\d\d\n", ran.stdout)
    assert re.search(r"'nll': \d\.\d", ran.stdout)


def test_every_file_it_links_to_exists():
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_it_lists_every_chapter():
    assert [name for name in notebooks() if f"(book/{name})" not in README] == []


def test_it_names_targets_that_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf8"), flags=re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z]+)\b", README)) <= targets
    assert README.index("make book") < README.index("make test") < README.index("```python")
