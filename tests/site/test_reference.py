"""Every public name has an entry on the page of its module, or a link to the entry that it has elsewhere."""

import importlib
import pkgutil
import re

import pytest

import bnnlib
from notebooks import ROOT

PAGES = sorted(path.stem for path in (ROOT / "book/api").glob("*.md"))
MODULES = [module.name for module in pkgutil.iter_modules(bnnlib.__path__) if not module.name.startswith("_")]


def exports(module):
    return getattr(importlib.import_module(f"bnnlib.{module}"), "__all__", [])


@pytest.mark.parametrize("module", PAGES)
def test_every_export_is_documented(module, site):
    html = re.sub(r"<nav.*?</nav>", "", (site / f"api/{module}.html").read_text("utf8"), flags=re.DOTALL)
    entries = set(re.findall(r'(?:id="|href="[^"#]*#)bnnlib\.\w+\.([\w.]+)"', html))
    assert exports(module)
    assert sorted(set(exports(module)) - entries) == []


def test_every_module_that_exports_has_a_page():
    assert sorted(module for module in MODULES if exports(module) and module not in PAGES) == []
