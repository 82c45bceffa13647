"""Density, entropy and KL by value: against scipy, torch, quadrature and Monte Carlo-free identities."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from bnnlib.normal import entropy, kl, log_density, max_entropy_table

numbers = st.floats(-5, 5)
scales = st.floats(0.05, 20)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def spd(d, seed):
    a = torch.randn(d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return a @ a.T + 0.3 * torch.eye(d, dtype=torch.float64)


def vector(d, seed):
    return torch.randn(d, dtype=torch.float64, generator=torch.Generator().manual_seed(100 + seed))


@given(numbers, numbers, scales)
def test_log_density_is_scipys_and_torchs(x, loc, scale):
    ours = log_density(f64(x), loc=f64(loc), scale=f64(scale))
    assert ours.item() == pytest.approx(stats.norm.logpdf(x, loc, scale), rel=1e-10, abs=1e-10)
    assert torch.allclose(ours, Normal(f64(loc), f64(scale)).log_prob(f64(x)), rtol=1e-12)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_log_density_of_a_vector_is_scipys(d):
    cov, loc = spd(d, d), vector(d, 1)
    x = torch.stack([vector(d, k) for k in range(2, 6)]).reshape(2, 2, d)
    expected = stats.multivariate_normal(loc.numpy(), cov.numpy()).logpdf(x.numpy())
    ours = log_density(x, loc=loc, cov=cov)
    assert ours.shape == (2, 2)
    assert np.allclose(ours.numpy(), expected, rtol=1e-10)


def test_a_diagonal_covariance_is_a_sum_of_numbers():
    x, loc, sd = vector(4, 1), vector(4, 2), f64(0.5, 1.0, 2.0, 3.0)
    assert torch.allclose(log_density(x, loc=loc, cov=torch.diag(sd**2)), log_density(x, loc=loc, scale=sd).sum())


@given(numbers, scales)
def test_the_density_integrates_to_one(loc, scale):
    x = torch.linspace(loc - 9 * scale, loc + 9 * scale, 4001, dtype=torch.float64)
    area = torch.trapezoid(log_density(x, loc=loc, scale=scale).exp(), x)
    assert area.item() == pytest.approx(1, abs=1e-9)


def test_plain_numbers_and_gradients_pass_through():
    assert log_density(1.0, loc=0.0, scale=2.0).item() == pytest.approx(stats.norm.logpdf(1, 0, 2), rel=1e-6)
    loc = f64(0.3).requires_grad_()
    log_density(f64(1.0), loc=loc, scale=f64(0.5)).sum().backward()
    assert loc.grad.item() == pytest.approx((1.0 - 0.3) / 0.25)


@given(numbers, scales)
def test_entropy_is_scipys(loc, scale):
    assert entropy(Normal(f64(loc), f64(scale))).item() == pytest.approx(stats.norm(loc, scale).entropy(), abs=1e-10)


@pytest.mark.parametrize("d", [1, 3])
def test_entropy_of_a_vector_is_scipys_and_that_of_its_parts(d):
    cov = spd(d, 7)
    ours = entropy(MultivariateNormal(torch.zeros(d, dtype=torch.float64), cov))
    assert ours.item() == pytest.approx(stats.multivariate_normal(cov=cov.numpy()).entropy(), abs=1e-10)
    sd = cov.diagonal().sqrt()
    parts = entropy(Normal(0.0, sd)).sum()
    assert (parts >= ours - 1e-12).item()
    assert entropy(MultivariateNormal(torch.zeros(d), torch.diag(sd.float() ** 2))).item() == pytest.approx(
        parts.item(), rel=1e-5
    )


@given(numbers, scales, numbers, scales)
def test_kl_is_torchs_and_never_negative(m1, s1, m2, s2):
    q, p = Normal(f64(m1), f64(s1)), Normal(f64(m2), f64(s2))
    ours = kl(q, p)
    assert torch.allclose(ours, kl_divergence(q, p), rtol=1e-10, atol=1e-12)
    assert ours.item() >= -1e-12
    assert kl(q, q).item() == pytest.approx(0, abs=1e-14)


def test_kl_is_the_integral_that_defines_it():
    q, p = stats.norm(0.7, 0.4), stats.norm(-0.2, 1.3)
    value, _ = integrate.quad(lambda x: q.pdf(x) * (q.logpdf(x) - p.logpdf(x)), -6, 7, epsabs=1e-12)
    assert kl(Normal(f64(0.7), f64(0.4)), Normal(f64(-0.2), f64(1.3))).item() == pytest.approx(value, abs=1e-10)


@pytest.mark.parametrize("d", [1, 2, 6])
def test_kl_of_vectors_is_torchs(d):
    q, p = (MultivariateNormal(vector(d, s), spd(d, s)) for s in (3, 4))
    assert torch.allclose(kl(q, p), kl_divergence(q, p), rtol=1e-10)
    assert kl(q, p).item() > 0
    assert abs(kl(q, q).item()) < 1e-12


def test_kl_does_not_change_with_the_units():
    q, p = MultivariateNormal(vector(3, 1), spd(3, 1)), MultivariateNormal(vector(3, 2), spd(3, 2))
    a = spd(3, 9)
    mapped = [MultivariateNormal(a @ n.loc, a @ n.covariance_matrix @ a.T) for n in (q, p)]
    assert kl(*mapped).item() == pytest.approx(kl(q, p).item(), rel=1e-8)


# The scipy law of each row, with the scale that gives it variance one.
ROWS = {
    "normal": stats.norm(),
    "logistic": stats.logistic(scale=math.sqrt(3) / math.pi),
    "triangular": stats.triang(0.5, loc=-math.sqrt(6), scale=2 * math.sqrt(6)),
    "Student-t, 5 df": stats.t(5, scale=math.sqrt(3 / 5)),
    "Laplace": stats.laplace(scale=1 / math.sqrt(2)),
    "uniform": stats.uniform(-math.sqrt(3), 2 * math.sqrt(3)),
    "exponential": stats.expon(),
}


@pytest.mark.parametrize("name", ROWS)
def test_each_row_of_the_table_is_the_integral(name):
    law = ROWS[name]
    assert law.var() == pytest.approx(1, abs=1e-12)
    low, high = law.support()
    pieces = [max(low, -400.0), *(c for c in (-5.0, 0.0, 5.0) if low < c < high), min(high, 400.0)]
    value = 0.0
    for a, b in itertools.pairwise(pieces):
        value += integrate.quad(lambda x: -law.pdf(x) * law.logpdf(x) if law.pdf(x) > 0 else 0.0, a, b, limit=200)[0]
    assert max_entropy_table()[name] == pytest.approx(value, abs=1e-7)
    assert max_entropy_table()[name] == pytest.approx(float(law.entropy()), abs=1e-10)


def test_the_table_is_ordered_and_scales_with_log_sd():
    one, three = max_entropy_table(), max_entropy_table(sd=3.0)
    assert set(one) == set(ROWS)
    assert list(one.values()) == sorted(one.values(), reverse=True)
    assert all(three[k] - one[k] == pytest.approx(math.log(3)) for k in one)
