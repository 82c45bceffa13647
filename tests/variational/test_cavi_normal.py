"""Coordinate ascent on normal targets: fixed points in closed form, a bound that never falls."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate
from torch.distributions import Gamma, MultivariateNormal, Normal, kl_divergence

from bnnlib.bayes import NormalGamma, normal_gamma
from bnnlib.variational import cavi_normal, cavi_normal_gamma


def target(size, seed):
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size + 2, dtype=torch.float64, generator=g)
    return torch.randn(size, dtype=torch.float64, generator=g), root @ root.T / size


def data(n, seed):
    y = torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return 2 + 1.5 * y


PRIOR = NormalGamma(*torch.tensor([0.5, 2.0, 1.5, 1.2], dtype=torch.float64))


def test_two_correlated_numbers():
    rho = 0.9
    cov = torch.tensor([[1, rho], [rho, 1]], dtype=torch.float64)
    start = torch.tensor([-2.0, 2.0], dtype=torch.float64)
    found = cavi_normal(torch.zeros(2, dtype=torch.float64), cov, start=start)
    assert found.converged
    assert found.distribution.variance == pytest.approx([1 - rho**2] * 2, abs=1e-12)
    assert found.elbo[-1].item() == pytest.approx(0.5 * math.log(1 - rho**2), abs=1e-12)
    # The first update puts z_1 at rho z_2, and each sweep brings z_2 nearer by rho^2.
    assert found.path[1].tolist() == pytest.approx([2 * rho, 2.0], abs=1e-12)
    assert found.path[2::2, 1][:20].tolist() == pytest.approx([2 * rho ** (2 * k) for k in range(1, 21)], abs=1e-12)


@given(st.integers(1, 6), st.integers(0, 10_000))
def test_the_fixed_point_is_known_and_the_bound_never_falls(size, seed):
    mean, cov = target(size, seed)
    found = cavi_normal(mean, cov, sweeps=20_000)
    assert found.converged
    assert torch.allclose(found.distribution.loc, mean, atol=1e-8, rtol=0)
    assert torch.allclose(found.distribution.variance, 1 / torch.linalg.inv(cov).diagonal(), rtol=1e-9)
    assert (found.elbo.diff() >= -1e-10).all()
    assert (found.distribution.variance <= cov.diagonal() * (1 + 1e-9)).all()


@given(st.integers(0, 10_000))
def test_the_bound_is_minus_the_divergence(seed):
    mean, cov = target(5, seed)
    blocks = [[3, 0], [1], [4, 2]]
    found = cavi_normal(mean, cov, blocks=blocks, sweeps=3)
    p = MultivariateNormal(mean, cov)
    for update in range(9):
        q = MultivariateNormal(found.path[update + 1], found.distribution.covariance_matrix)
        assert found.elbo[update].item() == pytest.approx(-kl_divergence(q, p).item(), abs=1e-9)
    assert found.blocks == ((3, 0), (1,), (4, 2))
    precision = torch.linalg.inv(cov)
    for block, factor in zip(blocks, found.factors, strict=True):
        inverse = torch.linalg.inv(precision[block][:, block])
        assert torch.allclose(factor.covariance_matrix, inverse, rtol=1e-9, atol=1e-12)


def test_one_block_is_the_target_itself():
    mean, cov = target(4, 1)
    found = cavi_normal(mean, cov, blocks=[range(4)])
    assert torch.allclose(found.distribution.covariance_matrix, cov, atol=1e-12)
    assert found.elbo[0].item() == pytest.approx(0, abs=1e-12)


def test_few_sweeps_are_said_to_be_too_few():
    mean, cov = target(6, 2)
    found = cavi_normal(mean, cov, sweeps=1)
    assert not found.converged
    assert found.path.shape == (7, 6)


@given(st.integers(2, 40), st.integers(0, 10_000))
def test_mean_and_precision_have_a_known_fixed_point(n, seed):
    y = data(n, seed)
    exact, found = normal_gamma(PRIOR, y), cavi_normal_gamma(y, PRIOR, start=0.01)
    assert found.converged
    assert found.location.mean.item() == pytest.approx(exact.loc.item(), abs=1e-8)
    # The mean precision is exact; its Gamma has half a count more, so it is narrower.
    assert found.precision.mean.item() == pytest.approx(exact.precision.mean.item(), rel=1e-8)
    assert found.precision.concentration.item() == pytest.approx(exact.concentration.item() + 0.5)
    variance = (exact.rate / (exact.concentration * exact.count)).item()
    assert found.location.variance.item() == pytest.approx(variance, rel=1e-8)
    assert variance < exact.location.variance.item()
    assert (found.elbo.diff() >= -1e-10).all()


@pytest.mark.slow
def test_the_bound_of_mean_and_precision_by_quadrature():
    y = data(6, 3)
    found, exact = cavi_normal_gamma(y, PRIOR), normal_gamma(PRIOR, y)
    at = torch.tensor([0.7, 0.9], dtype=torch.float64)

    def joint(mu, tau):
        pair = torch.stack([mu, tau], -1)
        noisy = Normal(mu.unsqueeze(-1), tau.unsqueeze(-1) ** -0.5)
        return PRIOR.log_prob(pair) + noisy.log_prob(y).sum(-1)

    evidence = (joint(*at) - exact.log_prob(at)).item()

    def integrand(tau, mu):
        mu, tau = torch.tensor(mu, dtype=torch.float64), torch.tensor(tau, dtype=torch.float64)
        log_q = found.location.log_prob(mu) + found.precision.log_prob(tau)
        return (log_q.exp() * (joint(mu, tau) - log_q)).item()

    m, s = found.location.mean.item(), found.location.stddev.item()
    top = found.precision.mean.item() + 14 * found.precision.stddev.item()
    value, _ = integrate.dblquad(integrand, m - 9 * s, m + 9 * s, 0, top, epsabs=1e-7, epsrel=1e-7)
    assert found.elbo[-1].item() == pytest.approx(value, abs=1e-5)
    assert found.elbo[-1].item() < evidence - 0.01


def test_each_update_of_mean_and_precision_is_the_best_there_is():
    y = data(8, 4)
    found = cavi_normal_gamma(y, PRIOR)

    def bound(loc, scale, concentration, rate):
        q_mu, q_tau = Normal(loc, scale), Gamma(concentration, rate)
        e_log = torch.digamma(concentration) - rate.log()
        spread = ((y - loc).square() + scale**2).sum() + PRIOR.count * ((loc - PRIOR.loc) ** 2 + scale**2)
        a, b = PRIOR.concentration, PRIOR.rate
        joint = 0.5 * (len(y) + 1) * e_log - 0.5 * q_tau.mean * spread + (a - 1) * e_log - b * q_tau.mean
        return joint + q_mu.entropy() + q_tau.entropy()

    q = (found.location.loc, found.location.scale, found.precision.concentration, found.precision.rate)
    slopes = torch.func.grad(bound, argnums=(0, 1, 2, 3))(*q)
    assert max(abs(slope.item()) for slope in slopes) < 1e-8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": torch.zeros(2, 1)}, "shape"),
        ({"mean": torch.tensor([0.0, math.nan])}, "finite"),
        ({"cov": torch.eye(3)}, "cov must be"),
        ({"cov": torch.tensor([[1.0, 2.0], [2.0, 1.0]])}, "positive definite"),
        ({"blocks": [[0]]}, "once"),
        ({"blocks": [[0, 1], [1]]}, "once"),
        ({"blocks": [[0, 1], []]}, "empty"),
        ({"sweeps": 0}, "sweeps"),
        ({"sweeps": 1.5}, "sweeps"),
        ({"tol": -1.0}, "tol"),
        ({"start": torch.zeros(3)}, "start"),
    ],
)
def test_bad_targets(change, message):
    arguments = {"mean": torch.zeros(2), "cov": torch.eye(2)} | change
    with pytest.raises(ValueError, match=message):
        cavi_normal(arguments.pop("mean"), arguments.pop("cov"), **arguments)


@pytest.mark.parametrize(
    ("y", "change", "error", "message"),
    [
        (torch.zeros(0), {}, ValueError, "empty"),
        (torch.tensor([1.0, math.nan]), {}, ValueError, "NaN"),
        (torch.ones(3, 2), {}, ValueError, "shape"),
        (torch.ones(3), {"prior": Normal(0.0, 1.0)}, TypeError, "NormalGamma"),
        (torch.ones(3), {"prior": NormalGamma(torch.zeros(2), 1.0, 1.0, 1.0)}, ValueError, "batch"),
        (torch.ones(3), {"start": 0.0}, ValueError, "start"),
        (torch.ones(3), {"sweeps": True}, ValueError, "sweeps"),
    ],
)
def test_bad_data(y, change, error, message):
    arguments = {"prior": NormalGamma(0.0, 1.0, 1.0, 1.0)} | change
    with pytest.raises(error, match=message):
        cavi_normal_gamma(y, arguments.pop("prior"), **arguments)
