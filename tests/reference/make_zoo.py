"""Run every method of the chapter on posteriors on its two longer tasks, and store the table.

    python tests/reference/make_zoo.py

executes the cells of book/nets/posteriors.ipynb that are tagged "zoo", so that the table is made by the code that the
reader sees, and writes book/nets/reference/zoo.json. About two minutes on one core.
"""

from __future__ import annotations

import copy
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from bnnlib import metrics
from bnnlib.nets import Model, Posterior
from make_digits import task as digits_task
from make_mcmc import FOLDER, diabetes

NOTEBOOK = FOLDER.parent / "posteriors.ipynb"
TOO_LARGE = ("Laplace", "Laplace, evidence")  # the full matrix on 600 digits takes minutes


def cells() -> tuple[str, str]:
    """Source of the first cell, the imports, and of the cells that define the comparison."""
    nb = nbformat.read(NOTEBOOK, as_version=4)
    code = [c for c in nb.cells if c.cell_type == "code"]
    return code[0].source, "\n".join(c.source for c in code if "zoo" in c.metadata.get("tags", []))


def digest() -> str:
    """Fingerprint of the comparison's cells: a table made by others is stale."""
    return hashlib.sha256(cells()[1].encode()).hexdigest()[:16]


def chapter() -> dict[str, Any]:
    """Names that the cells define."""
    names: dict[str, Any] = {}
    exec("\n".join(cells()), names)
    return names


def with_dropout(model: Model, prior: float | None = None) -> Model:
    *first, last = copy.deepcopy(model.net)
    return Model(nn.Sequential(*first, nn.Dropout(0.02), last).eval(), model.likelihood, prior=prior)


def run_diabetes(names: dict[str, Any], only: tuple[str, ...] = ()) -> dict[str, dict[str, float]]:
    task = diabetes()
    torch.manual_seed(0)
    model = diabetes().model
    reference = Posterior.load(FOLDER / "diabetes.pt", model).predict(task.x_test)
    leave_out = tuple(k for k in names["methods"] if only and k not in only)
    fits, seconds = names["fit_all"](model, with_dropout(model), task.data, leave_out)
    table = {k: names["score"](fit, reference, task.x_test, task.y_test) for k, fit in fits.items()}
    return {k: {**row, "seconds": seconds[k]} for k, row in table.items()}


def run_digits(names: dict[str, Any], only: tuple[str, ...] = ()) -> dict[str, dict[str, float]]:
    model, train, (x, y) = digits_task()
    reference = torch.tensor(np.load(FOLDER / "digits.npz")["probs"])
    leave_out = TOO_LARGE + tuple(k for k in names["methods"] if only and k not in only)
    fits, seconds = names["fit_all"](model, with_dropout(model, 1.0), train, leave_out)
    table = {}
    for name, fit in fits.items():
        said = fit.predict(x, draws=300, generator=torch.Generator().manual_seed(2))
        apart = 0.5 * (said.probs - reference).abs().sum(-1).mean().item()
        table[name] = {**metrics.report(said, y), "to HMC": apart, "seconds": seconds[name]}
    return table


def main() -> None:
    torch.set_num_threads(1)
    names = chapter()
    found = {"cells": digest(), "diabetes": run_diabetes(names), "digits": run_digits(names)}
    rounded = json.loads(json.dumps(found), parse_float=lambda v: float(f"{float(v):.5g}"))
    (FOLDER / "zoo.json").write_text(json.dumps(rounded, indent=1) + "\n")


if __name__ == "__main__":
    main()
