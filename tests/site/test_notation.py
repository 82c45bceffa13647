"""The notation page's "in code" column names things that exist, with the arguments that it writes."""

import inspect
import pkgutil
import re
from functools import cache

import pytest
import torch
from torch import nn

from bnnlib.nets import Gaussian, Model, laplace, mean_field
from notebooks import ROOT

HOMES = ["bnnlib.nets", "bnnlib.predictive"]
ROW = re.compile(r"^\|(?P<paper>.+?)\| *`(?P<code>[^`]+)` *\|(?P<meaning>.+)\|$", re.MULTILINE)
TABLE = (ROOT / "book/notation.md").read_text("utf8")


def attributes(cls):
    """What an object of the class has: the class's own, its fields, and what its methods set."""
    assigned = re.findall(r"self\.(\w+) *(?::[^=\n]+)?=(?!=)", inspect.getsource(cls))
    return {*dir(cls), *inspect.get_annotations(cls), *assigned}


def resolve(dotted):
    """The object of that name, or None where only an instance has it."""
    full = [dotted] if dotted.startswith(("bnnlib.", "torch.")) else [f"{home}.{dotted}" for home in HOMES]
    for name in full:
        module, rest = re.fullmatch(r"((?:bnnlib|torch)(?:\.[a-z_]+)*)\.(\w+(?:\.\w+)?)", name).groups()
        try:
            return pkgutil.resolve_name(f"{module}:{rest}")
        except AttributeError:
            owner, _, last = rest.rpartition(".")
            home = vars(pkgutil.resolve_name(module))
            if owner in home and last in attributes(home[owner]):
                return None
    raise AttributeError(f"there is no {' and no '.join(full)}")


@cache
def keys(attribute):
    """The keys that a fitted posterior has under `history` or `diagnostics`."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 1, generator=generator)
    model, options = Model(nn.Linear(1, 1), Gaussian(scale=1.0)), {"generator": generator, "progress": False}
    fits = mean_field(model, (x, x), steps=2, **options), laplace(model, (x, x), **options)
    return {key for fit in fits for key in getattr(fit, attribute)}


def check(code):
    """Raise unless the name exists, and takes the arguments or has the key that is written behind it."""
    if key := re.fullmatch(r'(?P<name>Posterior\.(?P<attribute>\w+))\["(?P<key>\w+)"\]', code):
        resolve(key["name"])
        if key["key"] not in keys(key["attribute"]):
            raise KeyError(code)
        return
    name, _, arguments = code.partition("(")
    thing = resolve(name)
    if arguments:
        takes = inspect.signature(thing).parameters
        missing = [word for word in re.findall(r"\w+", arguments) if word not in takes]
        if missing:
            raise TypeError(f"{name} takes {list(takes)}, not {missing}")


def rows():
    return [match.groupdict() for match in ROW.finditer(TABLE)]


@pytest.mark.parametrize("code", [row["code"] for row in rows()])
def test_the_name_exists(code):
    check(code)


def test_no_row_is_overlooked():
    lines = [line for line in TABLE.splitlines() if line.startswith("|") and not re.match(r"\|(---| on paper)", line)]
    assert len(rows()) == len(lines) >= 20


def test_each_symbol_and_each_name_has_one_row():
    for column in ("paper", "code"):
        cells = [row[column].strip() for row in rows()]
        assert sorted({cell for cell in cells if cells.count(cell) > 1}) == []


WRONG = [
    "Model.length",
    "Model.log_prior(weights)",
    "Posterior.distributions",
    'Posterior.history["elbo"]',
    "torch.distributions.Norm",
    "meanfield",
]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_name_is_found(wrong):
    with pytest.raises((AttributeError, TypeError, KeyError)):
        check(wrong)
