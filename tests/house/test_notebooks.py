"""Each notebook keeps the house rules, and its outputs come from the sources that are here."""

import json

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import fingerprint
import hygiene
from notebooks import METADATA, ROOT, code, normalise, notebooks, read, stray_notebooks, toc_pages


@pytest.mark.parametrize("name", notebooks())
def test_notebook_keeps_the_rules(name):
    assert hygiene.faults(read(name)) == []


@pytest.mark.parametrize("name", notebooks())
def test_notebook_is_stored_in_one_form(name):
    nb = read(name)
    assert nbformat.writes(normalise(nb)) == (ROOT / "book" / name).read_text("utf8").rstrip("\n")


def test_the_book_has_notebooks_and_no_stray_ones():
    assert notebooks()
    assert stray_notebooks() == []


def test_no_page_exists_twice():
    assert [p for p in toc_pages() if (ROOT / f"book/{p}.md").exists() and (ROOT / f"book/{p}.ipynb").exists()] == []


def test_outputs_come_from_these_sources():
    assert fingerprint.stale() == [], "run `make execute`"


def chapter() -> nbformat.NotebookNode:
    """The smallest notebook that breaks no rule."""
    opening = "# A title\n\n**What you will learn.** a\n\n**What you need.** b\n\n**How long.** c"
    exercises = "## Exercises\n\n:::{exercise}\n:label: ex-one\nWhy?\n:::\n\n"
    solution = ":::{solution-start} ex-one\n:class: dropdown\n:::\n\nSo.\n\n:::{solution-end}\n:::"
    sources = ["import numpy as np\nfrom json import loads\nrng = np.random.default_rng(0)", *["1 + 1"] * 10]
    output = new_output("execute_result", data={"text/plain": "2"}, execution_count=1)
    cells = [new_code_cell(s, execution_count=i, outputs=[output.copy()]) for i, s in enumerate(sources, start=1)]
    closing = [new_markdown_cell(text) for text in ("## Summary", exercises + solution, "## Further reading")]
    return new_notebook(cells=[new_markdown_cell(opening), *cells, *closing], metadata=METADATA)


def test_a_clean_chapter_passes():
    assert hygiene.faults(chapter()) == []


def in_markdown(old: str, new: str):
    def edit(nb):
        for cell in nb.cells:
            if cell.cell_type == "markdown":
                cell.source = cell.source.replace(old, new)

    return edit


def in_code(source: str, cell: int = 1):
    return lambda nb: code(nb)[cell].update(source=source)


def in_output(**output):
    return lambda nb: code(nb)[1].update(outputs=[new_output(**output)])


@pytest.mark.parametrize(
    ("edit", "fault"),
    [
        (lambda nb: code(nb)[3].update(execution_count=9), "top to bottom"),
        (lambda nb: code(nb)[3].update(execution_count=None), "top to bottom"),
        (in_code("!ls"), "not plain Python"),
        (in_code("%pip install this"), "not plain Python"),
        (in_output(output_type="error", ename="ValueError"), "an error output"),
        (in_output(output_type="stream", name="stderr", text="a warning"), "stderr"),
        (lambda nb: code(nb)[1].metadata.update(execution={"a": 1}), "metadata of a run"),
        (lambda nb: nb.metadata.kernelspec.update(name="my-kernel"), "kernelspec"),
        (in_output(output_type="stream", name="stdout", text="saved to /home/me/x"), "absolute path"),
        (in_code("open('C:\\\\data')"), "absolute path"),
        (in_output(output_type="stream", name="stdout", text="on 2025-01-02 10:11"), "from run to run"),
        (in_output(output_type="execute_result", data={"text/plain": "<A at 0x7f00aa00>"}), "from run to run"),
        (in_code("import sys\nsys.path.append('..')"), "sys.path"),
        (in_code("from sklearn.datasets import fetch_openml"), "a download"),
        (in_code("import no_such_package"), "not an installed package"),
        (in_code("import numpy as np\nx = np.ones(3)", cell=0), "is for imports"),
        (in_code("from . import helper", cell=0), "is for imports"),
        (in_markdown("# A title", "A title"), "begin with a title"),
        (in_markdown("What you will learn", "Contents"), "what is learnt"),
        (in_markdown("What you need", "Before"), "what is needed"),
        (in_markdown("How long", "Speed"), "the time"),
        (in_markdown("## Summary", "## The end"), "last headings"),
        (lambda nb: nb.cells.__delitem__(slice(8, 12)), "code cells before the exercises"),
        (lambda nb: nb.cells.__setitem__(slice(5, 5), code(nb)[:1] * 25), "code cells before the exercises"),
        (in_code("1 + 1\n" * 13), "a cell of 13 lines"),
        (in_markdown(":label: ex-one\n", ""), "do not match by label"),
        (in_markdown("{solution-start} ex-one", "{solution-start} ex-two"), "do not match by label"),
        (in_markdown(":class: dropdown\n", ""), "lie open"),
        (in_markdown("{exercise}", "{note}"), "has no exercise"),
    ],
)
def test_a_broken_rule_is_found(edit, fault):
    nb = chapter()
    edit(nb)
    assert any(fault in found for found in hygiene.faults(nb)), hygiene.faults(nb)


@pytest.fixture
def book(tmp_path):
    """A tree with one chapter whose fingerprint is right."""
    for path, text in {
        "book/_toc.yml": "root: index\nparts:\n- chapters:\n  - file: nets/one\n",
        "bnnlib/nets/a.py": "a = 1\n",
        "bnnlib/look.css": "p {}\n",
        "constraints.txt": "torch==2.13.0\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "book/nets").mkdir()
    nbformat.write(chapter(), tmp_path / "book/nets/one.ipynb")
    fingerprint.update(["nets/one.ipynb"], tmp_path)
    assert fingerprint.stale(tmp_path) == []
    return tmp_path


@pytest.mark.parametrize("path", ["bnnlib/nets/a.py", "bnnlib/look.css", "constraints.txt", "bnnlib/new.py"])
def test_a_changed_source_makes_outputs_stale(book, path):
    with (book / path).open("a") as file:
        file.write("# changed\n")
    assert fingerprint.stale(book) == ["nets/one.ipynb"]


def test_changed_code_makes_outputs_stale_and_changed_prose_does_not(book):
    nb = chapter()
    nb.cells[0].source += " more"
    nbformat.write(nb, book / "book/nets/one.ipynb")
    assert fingerprint.stale(book) == []
    code(nb)[2].source = "1 + 2"
    nbformat.write(nb, book / "book/nets/one.ipynb")
    assert fingerprint.stale(book) == ["nets/one.ipynb"]


def test_an_entry_without_a_notebook_is_stale(book):
    stored = json.loads((book / fingerprint.FILE).read_text())
    (book / fingerprint.FILE).write_text(json.dumps({**stored, "nets/gone.ipynb": "0"}))
    assert fingerprint.stale(book) == ["nets/gone.ipynb"]
    fingerprint.update([], book)
    assert fingerprint.stale(book) == []
