"""What the library exports and what the chapters use are one list."""

import ast
import importlib
import pkgutil

import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

import bnnlib
from notebooks import code, notebooks, read

# Exports that no chapter names, each with its reason.
_RESULT = "what a function returns or takes: met in every chapter, named in none"
OUTSIDE_THE_BOOK: dict[str, str] = {
    "data.Quintic": _RESULT,
    "data.Scaling": _RESULT,
    "nets.Likelihood": _RESULT,
    "nets.LossAudit": _RESULT,
    "nets.Moments": _RESULT,
    "nets.Prior": _RESULT,
    "predictive.Moments": _RESULT,
    "variational.CaviMixture": _RESULT,
    "variational.CaviNormal": _RESULT,
    "variational.CaviNormalGamma": _RESULT,
    "variational.Estimate": _RESULT,
    "variational.Evidence": _RESULT,
    "variational.Family": _RESULT,
    "variational.Fit": _RESULT,
    "variational.GradientVariance": _RESULT,
    "variational.MixtureBelief": _RESULT,
    "metrics.crps": "part of `report`, which a chapter uses",
}

MODULES = sorted(m.name for m in pkgutil.iter_modules(bnnlib.__path__) if not m.name.startswith("_"))
EXPORTS = {m: list(importlib.import_module(f"bnnlib.{m}").__all__) for m in MODULES}
NAMES = {name for names in EXPORTS.values() for name in names}


def used(nb: NotebookNode) -> set[str]:
    """Every name and attribute that the code reads. An import alone is no use."""
    nodes = [node for cell in code(nb) for node in ast.walk(ast.parse(cell.source))]
    names = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    aliases = {a.asname: a.name for node in nodes if isinstance(node, ast.ImportFrom) for a in node.names if a.asname}
    return {aliases.get(name, name) for name in names} | {n.attr for n in nodes if isinstance(n, ast.Attribute)}


def defined(nb: NotebookNode) -> tuple[set[str], set[str]]:
    """Functions and classes, and variables, that the cells bind outside functions and classes, imports apart."""
    made: set[str] = set()
    variables: set[str] = set()

    def walk(body: list[ast.AST]) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
                made.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                variables.add(node.id)
            elif not isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
                walk(list(ast.iter_child_nodes(node)))

    walk([ast.parse(cell.source) for cell in code(nb)])
    return made, variables


def imported(nb: NotebookNode) -> set[str]:
    """Names that the notebook imports from bnnlib, as they are called there."""
    nodes = [node for cell in code(nb) for node in ast.walk(ast.parse(cell.source))]
    statements = [n for n in nodes if isinstance(n, ast.ImportFrom) and (n.module or "").split(".")[0] == "bnnlib"]
    return {alias.asname or alias.name for node in statements for alias in node.names}


@pytest.mark.parametrize("name", notebooks())
def test_a_chapter_defines_nothing_that_the_library_exports(name):
    made, variables = defined(read(name))
    assert sorted(made & NAMES) == [], "bnnlib has a function or class of this name: import it"
    assert sorted(variables & imported(read(name))) == [], "a variable hides what the notebook imported"


@pytest.mark.parametrize("module", MODULES)
def test_every_export_is_there_once_and_documented(module):
    names = EXPORTS[module]
    assert len(names) == len(set(names))
    documented = {name: getattr(importlib.import_module(f"bnnlib.{module}"), name).__doc__ for name in names}
    assert [name for name, text in documented.items() if not text] == []


def test_every_export_is_used_in_a_chapter():
    in_chapters = set().union(*(used(read(name)) for name in notebooks()))
    expected = {f"{m}.{name}": name for m in MODULES for name in EXPORTS[m]}
    unused = {path for path, name in expected.items() if name not in in_chapters}
    assert sorted(unused - set(OUTSIDE_THE_BOOK)) == [], "exported, but no chapter uses it"
    assert sorted(set(OUTSIDE_THE_BOOK) - unused) == [], "listed as unused, but used or gone"


def test_uses_and_definitions_are_told_apart():
    nb = new_notebook(
        cells=[
            new_code_cell("from bnnlib.nets import Model as M, laplace\nimport bnnlib.metrics as metrics"),
            new_code_cell("if True:\n    rmse = metrics.nll(M)\ndef crps(pit): return [band for band in pit]"),
            new_code_cell("for brier, (ece, _) in []: pass\nf = lambda report: report\nwith open('') as quintic: pass"),
        ]
    )
    assert {"Model", "nll"} <= used(nb)
    assert "laplace" not in used(nb)
    assert defined(nb) == ({"crps"}, {"rmse", "f", "brier", "ece", "_", "quintic"})
    assert imported(nb) == {"M", "laplace"}
