"""One environment, however it is made: pyproject.toml, constraints.txt, environment.yml, what is installed."""

import re
import sys
from importlib.metadata import requires, version

import pytest
import tomllib
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from notebooks import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text("utf8"))
PIP = next(entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict))
LINES = (ROOT / "constraints.txt").read_text("utf8").splitlines()
PINS = {canonicalize_name(r.name): r for r in (Requirement(line) for line in LINES if not line.startswith("#"))}
INSTALLED_EXTRAS = ["book", "test"]
NO_DEPS = [
    Requirement(line)
    for line in (ROOT / "tests/reference/no_deps.txt").read_text("utf8").splitlines()
    if not line.startswith("#")
]
LEFT_OUT = "torchvision"
DIRECT = [Requirement(r) for r in [*PROJECT["dependencies"], *(r for extra in EXTRAS.values() for r in extra)]]
INSTALLED = [
    Requirement(r) for r in [*PROJECT["dependencies"], *(r for extra in INSTALLED_EXTRAS for r in EXTRAS[extra])]
]


def pinned(requirement: Requirement) -> str:
    """The one version that constraints.txt allows."""
    pin = PINS[canonicalize_name(requirement.name)]
    [exact] = pin.specifier
    assert exact.operator == "==", f"{pin} is not a pin"
    return exact.version


def test_conda_takes_a_python_that_the_package_supports():
    [python] = [entry for entry in CONDA["dependencies"] if str(entry).startswith("python=")]
    assert python.split("=")[-1] in SpecifierSet(PROJECT["requires-python"])


def test_conda_leaves_everything_but_python_to_pip():
    names = {re.split("[=<>]", entry)[0] for entry in CONDA["dependencies"] if isinstance(entry, str)}
    assert names == {"python", "pip"}


def test_conda_and_make_install_by_the_same_line():
    [recipe] = re.findall(r"pip install -q+ (-c .*)", (ROOT / "Makefile").read_text("utf8"))
    assert " ".join(PIP) == recipe.replace('"', "")


def test_the_install_line_names_extras_that_exist():
    [extras] = re.findall(r"-e \.\[(.*)\]", "\n".join(PIP))
    assert extras.split(",") == INSTALLED_EXTRAS
    assert set(INSTALLED_EXTRAS) <= set(EXTRAS)


@pytest.mark.parametrize("requirement", DIRECT, ids=str)
def test_every_requirement_is_pinned_within_its_bounds(requirement):
    assert pinned(requirement) in requirement.specifier


@pytest.mark.parametrize("requirement", [*INSTALLED, *NO_DEPS], ids=str)
def test_the_installed_version_is_the_pinned_one(requirement):
    assert version(requirement.name).split("+")[0] == pinned(requirement)


def closure(requirements: list[Requirement]) -> set[str]:
    """They and all that they need, by what the installed packages say."""
    needed, queue = set(), [canonicalize_name(requirement.name) for requirement in requirements]
    while queue:
        name = queue.pop()
        if name not in needed | {LEFT_OUT}:
            needed.add(name)
            wanted = (Requirement(line) for line in requires(name) or [])
            queue += [canonicalize_name(r.name) for r in wanted if not r.marker or r.marker.evaluate({"extra": ""})]
    return needed


def test_everything_that_they_need_is_pinned_too():
    assert sorted(closure([*INSTALLED, *NO_DEPS]) - set(PINS)) == []


def test_what_is_installed_without_its_requirements_lacks_one_only():
    """pip does not look after these: the list is the closure itself, less what the other line installs."""
    named = {canonicalize_name(requirement.name) for requirement in NO_DEPS}
    assert named == closure([Requirement("laplace-torch")]) - closure(INSTALLED)
    assert LEFT_OUT not in PINS


def test_the_second_install_line_is_told_as_it_is_run():
    [line] = re.findall(r"pip install -q+ (--no-deps .*)", (ROOT / "Makefile").read_text("utf8"))
    for told in ("environment.yml", "tests/reference/no_deps.txt"):
        assert f"pip install {line}\n" in (ROOT / told).read_text("utf8")


def test_pins_are_exact_and_name_no_local_build():
    assert [line for line in LINES if not re.fullmatch(r"#.*|[\w.-]+==[\w.]+", line)] == []


def test_this_python_is_supported():
    assert f"{sys.version_info[0]}.{sys.version_info[1]}" in SpecifierSet(PROJECT["requires-python"])


def test_one_version_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf8"))
    assert citation["version"] == PROJECT["version"] == version("bnnlib")
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in PROJECT["authors"]]
