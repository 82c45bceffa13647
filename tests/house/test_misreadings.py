"""Every misreading box in the book has a test that proves it, and every such test a box."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import misreadings
from notebooks import ROOT, notebooks, prose, read

PARTS = ["**Often written.**", "**True.**", "**See it.**"]
TITLE = re.compile(r"Misreading (S\d\.\d+(?:, S\d\.\d+)*): .+")
FENCE = re.compile(r"^(:{3,})\{admonition\} *(.*)\n((?:.*\n)*?)\1 *$", flags=re.MULTILINE)


def boxes(text: str) -> list[tuple[str, str]]:
    """Title and body of each misreading box."""
    found = [(title.strip(), body) for _, title, body in FENCE.findall(text + "\n")]
    return [(t, b) for t, b in found if t.startswith("Misreading") or re.search(r"^:class:.*\bmisreading\b", b, re.M)]


def faults(text: str) -> list[str]:
    found = []
    for title, body in boxes(text):
        if not TITLE.fullmatch(title):
            found.append(f"{title!r} is not of the form 'Misreading S3.3: what it is about'")
        if not re.search(r"^:class:.*\bmisreading\b", body, re.M):
            found.append(f"{title} lacks the class misreading")
        if re.findall("|".join(map(re.escape, PARTS)), body) != PARTS:
            found.append(f"{title} has not the three parts {PARTS} in this order")
    if len(boxes(text)) < len(re.findall(r"^:class:.*\bmisreading\b", text, re.M)):
        found.append("a box of class misreading is not a closed :::{admonition}")
    return found


def codes(text: str) -> list[str]:
    """The codes that the boxes carry: one box may put several right."""
    titles = (TITLE.fullmatch(title) for title, _ in boxes(text))
    return [code for title in titles if title for code in title[1].split(", ")]


def marks(folder: Path) -> Iterator[str]:
    """The codes in the decorators `@pytest.mark.misreading("S3.3")` of test functions."""
    for path in folder.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for call in node.decorator_list:
                    if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.misreading":
                        yield from (argument.value for argument in call.args if isinstance(argument, ast.Constant))


def test_boxes_are_whole():
    assert {name: found for name in notebooks() if (found := faults(prose(read(name))))} == {}


def test_every_box_has_a_test_and_every_test_a_box():
    shown = [code for name in notebooks() for code in codes(prose(read(name)))]
    tested = set(marks(ROOT / "tests"))
    assert sorted(set(shown) - tested) == [], "boxes without a test"
    assert sorted(tested - set(shown)) == [], "tests without a box"
    assert sorted({code for code in shown if shown.count(code) > 1}) == [], "boxes that are there twice"


BOX = """:::{admonition} Misreading S3.3: three standard deviations
:class: misreading
**Often written.** a
**True.** b
**See it.** c
:::
"""


def test_the_page_lists_every_box_as_it_is():
    listed = misreadings.page()
    assert misreadings.PAGE.read_text("utf8") == listed, "run `make execute`"
    titles = [title.removeprefix("Misreading ") for name in notebooks() for title, _ in boxes(prose(read(name)))]
    assert len(titles) > 40
    assert [t for t in titles if f"**{t}**" not in listed] == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("S3.3", "3.3"),
        (":class: misreading\n", ""),
        ("**True.** b\n", ""),
        ("**True.** b\n**See it.** c", "**See it.** c\n**True.** b"),
        ("{admonition}", "{note}"),
        ("**See it.** c\n:::", "**See it.** c"),
    ],
)
def test_a_broken_box_is_found(old, new):
    assert codes(BOX) == ["S3.3"]
    assert faults(BOX) == []
    assert len(faults(BOX.replace(old, new))) == 1
