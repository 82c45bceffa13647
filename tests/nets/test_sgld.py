"""Stochastic gradient Langevin dynamics: the step by hand, and its bias at a finite step in closed form."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal
from torch.utils.data import DataLoader, TensorDataset

from bnnlib.nets import Gaussian, Model, sgld


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def one_weight(n=40, dtype=torch.float64):
    """y ~ N(w, 1), w ~ N(0, 1): the posterior is normal with precision n + 1."""
    y = 0.5 + torch.randn(n, 1, generator=seeded(1), dtype=dtype)
    model = Model(nn.Linear(1, 1, bias=False).to(dtype), Gaussian(scale=1.0), 1.0)
    return model, torch.ones(n, 1, dtype=dtype), y


def draws_of(model, data, **settings):
    settings = {"chains": 500, "draws": 40, "warmup": 200, "thin": 5, "precondition": False} | settings
    start = torch.zeros(settings["chains"], model.size).to(model.dtype)
    posterior = sgld(model, data, start=start, generator=seeded(2), progress=False, **settings)
    return posterior.distribution.values[:, 0], posterior


@pytest.mark.parametrize("part", [0.05, 0.5, 0.9])
def test_the_bias_of_a_finite_step(part):
    """Variance 1 / (lam (1 - eps lam / 4)); at nine tenths of the stable limit it is ten times too large."""
    model, x, y = one_weight()
    lam, size = 41.0, part * 4 / 41
    w, posterior = draws_of(model, (x, y), step_size=size, thin=40)
    # Correlation between kept draws is (1 - eps lam / 2)^thin.
    rho = abs(1 - 2 * part) ** 40
    count = len(w) * (1 - rho) / (1 + rho)
    exact = 1 / (lam * (1 - part))
    assert float(w.var()) == pytest.approx(exact, rel=5 * math.sqrt(2 / count))
    assert float(w.mean()) == pytest.approx(float(y.sum()) / lam, abs=5 * math.sqrt(exact / count))
    assert posterior.diagnostics["step_size"] == pytest.approx(size)


def test_a_step_by_hand():
    """One step from a known place with the same noise: half the step times the gradient, and a root of the step."""
    model, x, y = one_weight()
    start = torch.tensor([[0.3], [-0.2]], dtype=torch.float64)
    source = seeded(3)
    posterior = sgld(
        model, (x, y), draws=1, chains=2, warmup=0, thin=1, step_size=0.01, precondition=False, start=start,
        generator=source, progress=False,
    )  # fmt: skip
    again = seeded(3)
    torch.randn(2, 1, dtype=torch.float64, generator=again)  # where the power iteration began
    noise = torch.randn(2, 1, dtype=torch.float64, generator=again)
    slope = (y - start.T).sum(0)[:, None] - start
    by_hand = start + 0.005 * slope + 0.1 * noise
    torch.testing.assert_close(posterior.distribution.values, by_hand, rtol=1e-12, atol=0)


def test_the_noise_of_mini_batches():
    """Batches of b out of n add the variance of their gradient: eps / 4 * n^2 (1 - b/n) s^2 / b, over lam (1 - ...)."""
    model, x, y = one_weight(64)
    lam, size, b = 65.0, 0.1 * 4 / 65, 8
    loader = DataLoader(TensorDataset(x, y), batch_size=b, shuffle=True, generator=seeded(4))
    w, _ = draws_of(model, loader, step_size=size, chains=200, draws=100, thin=8)
    # Within an epoch batches are drawn without replacement, which takes out part of this noise: it is a bound.
    extra = size / 4 * 64**2 * (1 - b / 64) * float(y.var()) / b / lam * 1 / (1 - 0.1)
    plain = 1 / (lam * (1 - 0.1))
    assert plain < float(w.var()) < (plain + extra) * 1.1


def test_the_step_is_a_part_of_the_largest_stable_one():
    """With step=0.2 in the only direction there is: variance too large by 1 / (1 - 0.2), with and without M."""
    model, x, y = one_weight()
    for precondition in (True, False):
        w, posterior = draws_of(model, (x, y), step=0.2, precondition=precondition, thin=20)
        rho = (1 - 0.4) ** 20
        count = len(w) * (1 - rho) / (1 + rho)
        assert float(w.var()) == pytest.approx(1 / (41 * 0.8), rel=5 * math.sqrt(2 / count))
        if not precondition:
            assert posterior.diagnostics["step_size"] == pytest.approx(0.2 * 4 / 41, rel=1e-9)


def test_a_step_beyond_the_limit_stops_with_its_number():
    model, x, y = one_weight()
    with pytest.raises(FloatingPointError, match=r"sgld: the log density of chain 0 is .* at step \d+; try a smaller"):
        draws_of(model, (x, y), step_size=10.0, draws=10, thin=200)


def test_a_colder_posterior_is_narrower():
    model, x, y = one_weight()
    w, _ = draws_of(model, (x, y), step=0.02, temperature=0.1, thin=40)
    assert float(w.var()) == pytest.approx(0.1 / 41, rel=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step": 0.0}, "step must be positive and finite, got 0.0"),
        ({"step_size": math.nan}, "step_size must be positive and finite, got nan"),
        ({"thin": 0}, "thin must be a whole number, at least 1, got 0"),
        ({"temperature": -1.0}, "temperature must be positive and finite, got -1.0"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    model, x, y = one_weight()
    with pytest.raises(ValueError, match=message):
        sgld(model, (x, y), progress=False, **settings)


def test_single_precision_is_enough():
    model, x, y = one_weight(dtype=torch.float32)
    w, _ = draws_of(model, (x, y), step=0.1, thin=20)
    assert w.dtype == torch.float32
    assert float(w.var()) == pytest.approx(1 / (41 * 0.9), rel=0.1)
    assert Normal(0, 1).log_prob(w).isfinite().all()
