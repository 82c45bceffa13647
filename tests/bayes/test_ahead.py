"""Posterior predictives against the integral that they are, and against scipy."""

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats
from torch.distributions import Bernoulli, Beta, Dirichlet, Gamma, Laplace, Normal, Poisson

from bnnlib.bayes import (
    NormalGamma,
    beta_bernoulli,
    gamma_poisson,
    normal_gamma,
    normal_normal,
    posterior_predictive,
)

F64 = torch.float64


def t(*values):
    return torch.tensor(values, dtype=F64)


def average(likelihood, posterior, low, high):
    """The likelihood of one value, averaged over the posterior by quadrature."""
    value, _ = integrate.quad(
        lambda h: (likelihood(t(h)) + posterior.log_prob(t(h))).exp().item(), low, high, epsabs=1e-12, limit=200
    )
    return value


@pytest.mark.parametrize(
    ("posterior", "low", "high", "likelihood", "x", "scale"),
    [
        (Beta(*t(3, 2)), 0, 1, lambda h: Bernoulli(h).log_prob(t(1)), 1.0, None),
        (Gamma(*t(3.5, 1.2)), 0, 60, lambda h: Poisson(h).log_prob(t(4)), 4.0, None),
        (Normal(*t(1, 2)), -30, 30, lambda h: Normal(h, 0.7).log_prob(t(2.5)), 2.5, 0.7),
    ],
)
def test_the_predictive_is_the_averaged_likelihood(posterior, low, high, likelihood, x, scale):
    predictive = posterior_predictive(posterior, scale=scale)
    assert predictive.log_prob(t(x)).exp().item() == pytest.approx(average(likelihood, posterior, low, high), abs=1e-9)


def test_the_normal_gamma_predictive_is_the_average_over_precisions():
    posterior = NormalGamma(*t(0.3, 4.0, 2.5, 1.1))

    def given(tau):  # mu integrated out by hand: the variances of mu and of the noise add
        density = Normal(t(0.3), ((1 / 4 + 1) / t(tau)).sqrt()).log_prob(t(1.4))
        return (density + posterior.precision.log_prob(t(tau))).exp().item()

    value, _ = integrate.quad(given, 0, 80, epsabs=1e-12, limit=300)
    assert posterior_predictive(posterior).log_prob(t(1.4)).exp().item() == pytest.approx(value, abs=1e-9)


def test_against_scipy():
    k = np.arange(6)
    gamma = posterior_predictive(Gamma(*t(3.5, 1.2)))
    np.testing.assert_allclose(gamma.log_prob(t(*k)), stats.nbinom(3.5, 1.2 / 2.2).logpmf(k), atol=1e-10)
    assert gamma.mean.item() == pytest.approx(3.5 / 1.2)
    assert gamma.variance.item() == pytest.approx(3.5 / 1.2 * (1 + 1 / 1.2))
    student = posterior_predictive(NormalGamma(*t(0.3, 4.0, 2.5, 1.1)))
    x = np.linspace(-3, 3, 5)
    reference = stats.t(5, 0.3, (1.1 * 5 / 10) ** 0.5).logpdf(x)
    np.testing.assert_allclose(student.log_prob(t(*x)), reference, atol=1e-10)
    np.testing.assert_allclose(posterior_predictive(Dirichlet(t(1, 2, 5))).probs, [1 / 8, 2 / 8, 5 / 8], atol=1e-12)


def chain(prior, update, data, **noise):
    """log p(D) as the sum of one-step-ahead predictions."""
    total = t(0.0)
    for x in data.split(1):
        total = total + posterior_predictive(prior, **noise).log_prob(x)
        prior = update(prior, x, **({"scale": noise["scale"]} if noise else {}))
    return total.item()


def test_predictions_chain_to_the_evidence():
    ones = t(1, 0, 1, 1)
    exact = special.betaln(2 + 3, 3 + 1) - special.betaln(2, 3)
    assert chain(Beta(*t(2, 3)), beta_bernoulli, ones) == pytest.approx(exact, abs=1e-10)
    x = t(1.3, -0.4, 2.2)
    joint = stats.multivariate_normal([0.5] * 3, np.full((3, 3), 4.0) + 0.64 * np.eye(3)).logpdf(x)
    assert chain(Normal(*t(0.5, 2)), normal_normal, x, scale=0.8) == pytest.approx(joint, abs=1e-10)
    counts = t(3, 0, 2)
    exact = special.gammaln(7) - special.gammaln(2) + 2 * np.log(0.7) - 7 * np.log(3.7) - np.log(6 * 1 * 2)
    assert chain(Gamma(*t(2, 0.7)), gamma_poisson, counts) == pytest.approx(exact, abs=1e-10)
    # Integrating both unknowns leaves a multivariate t.
    joint = stats.multivariate_t([0.5] * 3, 1.5 / 3 * (np.eye(3) + 1 / 2), df=6).logpdf(x)
    assert chain(NormalGamma(*t(0.5, 2.0, 3.0, 1.5)), normal_gamma, x) == pytest.approx(joint, abs=1e-10)


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (lambda: posterior_predictive(Normal(0.0, 1.0)), ValueError, "pass scale"),
        (lambda: posterior_predictive(Normal(0.0, 1.0), scale=-1.0), ValueError, "positive"),
        (lambda: posterior_predictive(Beta(1.0, 1.0), scale=1.0), ValueError, "Normal posterior only"),
        (lambda: posterior_predictive(Laplace(0.0, 1.0)), TypeError, "not Laplace"),
    ],
)
def test_bad_input(call, kind, says):
    with pytest.raises(kind, match=says):
        call()
