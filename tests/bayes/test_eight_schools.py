"""Priors that have priors: the eight schools by two routes, and against draws of somebody else.

Data: Rubin (1981). Model: mu ~ N(0, 5), tau ~ HalfCauchy(5). Reference: mu 4.397 +- 3.318, tau 3.598 +- 3.220.
The draws of posteriordb (Magnusson et al. 2025) have means 4.411 and 3.602, with Monte Carlo errors 0.033 and 0.032.
"""

import pytest
import torch
from torch.distributions import HalfCauchy, Normal

from bnnlib.bayes import bayes_rule, normal_normal

F64 = torch.float64
Y = torch.tensor([28, 8, -3, 7, -1, 1, 18, 12], dtype=F64)
S = torch.tensor([15, 10, 16, 11, 9, 11, 10, 18], dtype=F64)
REFERENCE = [4.397, 3.318, 3.598, 3.220]


def moments(weight, value):
    mean = (weight * value).sum()
    return [mean.item(), ((weight * (value - mean) ** 2).sum()).sqrt().item()]


def test_on_a_grid():
    mu = torch.linspace(-25, 35, 301, dtype=F64)[:, None]
    edges = torch.linspace(0, 150, 1501, dtype=F64)
    tau = (edges[1:] + edges[:-1]) / 2
    log_prior = Normal(0 * mu, 5.0).log_prob(mu) + HalfCauchy(5.0 + 0 * tau).log_prob(tau)
    log_likelihood = sum(Normal(mu, (s**2 + tau**2).sqrt()).log_prob(y) for y, s in zip(Y, S, strict=True))
    weight = bayes_rule(log_prior, log_likelihood, log=True).posterior
    assert moments(weight, mu) + moments(weight, tau) == pytest.approx(REFERENCE, abs=2e-3)
    assert moments(weight, mu)[0] == pytest.approx(4.411, abs=2 * 0.033)
    assert moments(weight, tau)[0] == pytest.approx(3.602, abs=2 * 0.032)


def test_by_quadrature_over_tau_with_mu_in_closed_form():
    tau = 5 * torch.tan(torch.pi / 2 * (torch.arange(4000, dtype=F64) + 0.5) / 4000)
    scale = (S[:, None] ** 2 + tau**2).sqrt()
    prior = Normal(torch.zeros_like(tau), 5.0)
    mu = normal_normal(prior, Y[:, None].expand_as(scale), scale=scale)
    # log p(y | tau) = log p(y | mu, tau) + log p(mu) - log p(mu | y, tau), at any mu
    at = mu.loc
    log_evidence = Normal(at, scale).log_prob(Y[:, None]).sum(0) + prior.log_prob(at) - mu.log_prob(at)
    weight = bayes_rule(torch.zeros_like(tau), log_evidence, log=True).posterior
    mean = (weight * mu.loc).sum()
    sd = (weight * (mu.variance + (mu.loc - mean) ** 2)).sum().sqrt()
    assert [mean.item(), sd.item(), *moments(weight, tau)] == pytest.approx(REFERENCE, abs=1e-3)
