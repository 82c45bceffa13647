"""Formulas and signs in docstrings come out on the reference pages as they were written; nothing else is touched."""

import importlib.util

import pytest

from notebooks import ROOT

spec = importlib.util.spec_from_file_location("docstrings", ROOT / "book/_ext/docstrings.py")
docstrings = importlib.util.module_from_spec(spec)
spec.loader.exec_module(docstrings)


def test_a_formula_becomes_a_literal_block():
    given = ["The joint density.", "", "    log p(w, D) = log p(w)", "", "                + log p(D | w)", "", "More."]
    assert docstrings.to_rst(given) == [*given[:2], "::", "", *given[2:]]


@pytest.mark.parametrize(
    "given",
    [
        ["Parameters", "----------", "x", "    Inputs.", "", "    More of x.", "y", "    Targets."],
        ["See::", "", "    p(y | x)"],
        [".. math::", "", "    a"],
        [">>> f(x) | g(x)", "1 | 2", "", "    an indented line"],
        ["An *emphasis* of `a | b`, a product a * b, and **this**."],
    ],
)
def test_all_else_stays_as_it_is(given):
    assert docstrings.to_rst(given) == given


@pytest.mark.parametrize(
    ("written", "rst"),
    [
        ("mean |a - b| over bins", r"mean \|a - b\| over bins"),
        ("name: (..., *shape).", r"name: (..., \*shape)."),
        ("p(y | x) for `x | y`", r"p(y \| x) for `x | y`"),
    ],
)
def test_signs_are_only_signs(written, rst):
    assert docstrings.to_rst([written]) == [rst]


@pytest.mark.parametrize(("what", "before"), [("property", ["..", ""]), ("method", [])])
def test_a_property_may_hold_a_colon(what, before):
    lines = ["E[y]: the mean."]
    docstrings.process(None, what, "Predictive.mean", None, None, lines)
    assert lines == [*before, "E[y]: the mean."]
