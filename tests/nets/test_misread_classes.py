"""The box of the chapter on classification."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from bnnlib import metrics
from bnnlib.nets import Categorical, Model, map_estimate, mean_field


@pytest.mark.misreading("S0.13")
@pytest.mark.slow
def test_a_factorised_posterior_can_be_worse_than_its_own_best_point():
    """On held-out digits, same model and same prior: a counterexample is enough against "always better"."""
    digits, generator = load_digits(), torch.Generator().manual_seed(0)
    order = torch.randperm(1797, generator=generator)
    x, y = torch.tensor(digits.data / 16).float()[order], torch.tensor(digits.target)[order]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 30), nn.ReLU(), nn.Linear(30, 10))
    model, train = Model(net, Categorical(), prior=1.0), (x[:1200], y[:1200])
    point = map_estimate(model, train, steps=800, progress=False)
    spread = mean_field(model, train, steps=1500, lr=0.02, generator=generator, progress=False)
    one = metrics.report(point.predict(x[1200:]), y[1200:])
    many = metrics.report(spread.predict(x[1200:], draws=200, generator=generator), y[1200:])
    assert many["accuracy"] > 0.9  # it has learned
    assert one["nll"] < many["nll"] - 0.02
    # And the other way round where nothing was learned: on noise only the average is unsure.
    noise = torch.rand(300, 64, generator=generator)
    assert (
        spread.predict(noise, draws=100, generator=generator).entropy.mean() > 1.3 * point.predict(noise).entropy.mean()
    )
