"""The stored table of the chapter on posteriors: made by the chapter's own cells, and short runs agree with it."""

import json

import pytest
import torch
from torch import nn

from make_zoo import FOLDER, chapter, digest, run_diabetes, run_digits

STORED = json.loads((FOLDER / "zoo.json").read_text())


def test_the_table_was_made_by_the_cells_that_are_there():
    assert STORED["cells"] == digest(), "run tests/reference/make_zoo.py again"
    methods = set(chapter()["methods"])
    assert set(STORED["diabetes"]) == methods
    assert set(STORED["digits"]) == methods - {"Laplace", "Laplace, evidence"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "task", "name"),
    [(run_diabetes, "diabetes", "Laplace"), (run_digits, "digits", "ensemble"), (run_digits, "digits", "mean field")],
)
def test_a_run_agrees_with_the_table(run, task, name):
    found, stored = run(chapter(), only=("MAP", name))[name], STORED[task][name]
    for score in ("nll", "to HMC"):
        assert found[score] == pytest.approx(stored[score], rel=0.02, abs=2e-3)


@pytest.mark.misreading("S3.19")
def test_more_parameters_than_data_reach_zero_loss():
    """Against "only local minima": with 40 random features for 12 points least squares leaves nothing."""
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).unsqueeze(-1)
    y = x.sin() + 0.3 * torch.randn(12, 1, generator=generator, dtype=torch.float64)
    torch.manual_seed(0)
    with torch.no_grad():
        features = nn.Sequential(nn.Linear(1, 40), nn.Tanh()).double()(3 * x)
    fit = features @ torch.linalg.lstsq(features, y).solution
    assert (fit - y).abs().max() < 1e-7
    assert (fit - x.sin()).square().mean() > 0.5 * 0.3**2  # agreement with the data is not agreement with the curve


@pytest.mark.misreading("S3.19")
def test_retraining_says_nothing_of_the_noise():
    """A straight line refitted to the same points in another order is the same line, and its spread is no error bar."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, 1, generator=generator, dtype=torch.float64)
    y = 2 * x + torch.randn(200, 1, generator=generator, dtype=torch.float64)
    orders = [torch.randperm(200, generator=generator) for _ in range(5)]
    slopes = torch.stack([torch.linalg.lstsq(x[i], y[i]).solution for i in orders])
    assert slopes.std() < 1e-12
    assert (y - x * slopes.mean()).abs().mean() > 0.5
