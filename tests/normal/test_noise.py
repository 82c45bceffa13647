"""Noise of unknown size: against a grid over the precision, scipy, and one residual at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from torch.distributions import Gamma, Normal

from bnnlib.normal import noise_precision, noise_predictive


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def residuals(n, seed=0, sd=0.5):
    return sd * torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("a", "b"), [(2.0, 1.0), (0.5, 3.0)])
def test_posterior_is_the_grids(a, b):
    prior, r = Gamma(f64(a)[0], f64(b)[0]), residuals(20)
    tau = torch.linspace(1e-4, 40, 200001, dtype=torch.float64)
    log_joint = prior.log_prob(tau) + Normal(0.0, tau.rsqrt().unsqueeze(-1)).log_prob(r).sum(-1)
    density = (log_joint - log_joint.max()).exp()
    density /= torch.trapezoid(density, tau)
    assert torch.allclose(density, noise_precision(prior, r).log_prob(tau).exp(), atol=1e-6)


@given(st.lists(st.floats(-3, 3), min_size=2, max_size=8), st.floats(0.2, 5), st.floats(0.2, 5))
def test_one_at_a_time_is_all_at_once(values, a, b):
    prior, together = Gamma(f64(a)[0], f64(b)[0]), f64(*values)
    in_turn = prior
    for r in together.flip(0):
        in_turn = noise_precision(in_turn, r.reshape(1))
    once = noise_precision(prior, together)
    assert in_turn.concentration.item() == pytest.approx(once.concentration.item())
    assert in_turn.rate.item() == pytest.approx(once.rate.item())


def test_one_prior_an_output():
    r = torch.stack([residuals(7, 1), residuals(7, 2)], -1)
    both = noise_precision(Gamma(f64(1.0, 2.0), f64(1.0, 0.5)), r)
    for k, (a, b) in enumerate(((1.0, 1.0), (2.0, 0.5))):
        alone = noise_precision(Gamma(f64(a)[0], f64(b)[0]), r[:, k])
        assert both.rate[k] == alone.rate
        assert both.concentration[k] == alone.concentration


def test_predictive_is_the_integral():
    posterior = Gamma(f64(2.5)[0], f64(0.8)[0])
    law = stats.gamma(2.5, scale=1 / 0.8)
    for y in (0.0, 0.4, -3.0):
        value, _ = integrate.quad(lambda t, y=y: stats.norm.pdf(y, 0.3, t**-0.5) * law.pdf(t), 0, np.inf)
        assert noise_predictive(posterior, 0.3).log_prob(f64(y)).exp().item() == pytest.approx(value, rel=1e-7)


def test_predictive_is_scipys_t_and_its_sd_is_known():
    predictive = noise_predictive(Gamma(f64(3.0)[0], f64(2.0)[0]), 1.0)
    t = stats.t(6.0, 1.0, (2 / 3) ** 0.5)
    assert predictive.log_prob(f64(2.2)).item() == pytest.approx(t.logpdf(2.2), rel=1e-10)
    assert predictive.stddev.item() == pytest.approx(t.std())
    assert predictive.stddev.item() == pytest.approx((2.0 / (3.0 - 1)) ** 0.5)


def test_much_data_gives_the_noise_itself():
    posterior = noise_precision(Gamma(1.0, 1.0), residuals(20_000, 3, sd=0.7).float())
    assert posterior.mean.rsqrt().item() == pytest.approx(0.7, rel=0.02)
    assert noise_predictive(posterior).stddev.item() == pytest.approx(0.7, rel=0.02)
