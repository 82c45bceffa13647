"""The forward direction: mean and covariance of p, against quadrature and against every other normal."""

import pytest
import torch
from scipy.integrate import quad
from torch.distributions import Categorical, Gamma, Independent, MixtureSameFamily, MultivariateNormal, Normal

from bnnlib.variational import fit_forward_kl, kl

F64 = torch.float64


def f(*values):
    return torch.tensor(values, dtype=F64)


TWO = MixtureSameFamily(Categorical(f(0.5, 0.5)), Normal(f(-3.0, 3.0), f(0.7, 0.7)))
GRID = torch.linspace(-12, 12, 4001, dtype=F64)


def test_two_modes_are_covered_by_one_normal():
    """Mean 0, variance 9 + 0.49: N(0, 3.08^2), by all three roads."""
    exact = 9.49**0.5
    for q in (
        fit_forward_kl(TWO.log_prob, GRID),
        fit_forward_kl(TWO.log_prob(GRID) + 4.0, GRID),
        fit_forward_kl(TWO),
        fit_forward_kl(TWO, GRID),
    ):
        assert float(q.mean) == pytest.approx(0, abs=1e-10)
        assert float(q.stddev) == pytest.approx(exact, abs=1e-8)
    assert exact == pytest.approx(3.08, abs=5e-3)
    q = fit_forward_kl(TWO.sample((1,)).expand(3) + f(-1.0, 0.0, 1.0))
    assert float(q.variance) == pytest.approx(2 / 3)  # maximum likelihood divides by S


def test_a_skewed_density_has_its_own_moments():
    """Source: the Gamma's mean a / b and variance a / b^2."""
    skewed, grid = Gamma(f(3.0)[0], 1.5), torch.linspace(1e-6, 40, 40_001, dtype=F64)
    q = fit_forward_kl(skewed, grid)
    assert float(q.mean) == pytest.approx(2.0, abs=1e-6)
    assert float(q.variance) == pytest.approx(3 / 2.25, abs=1e-6)


def test_no_other_normal_is_nearer():
    """KL(p || q) by scipy, at the fit and around it."""

    def forward(q):
        def integrand(z):
            z = torch.tensor(z, dtype=F64)
            return float(TWO.log_prob(z).exp() * (TWO.log_prob(z) - q.log_prob(z)))

        return quad(integrand, -10, 10, limit=200)[0]

    best = fit_forward_kl(TWO)
    least = forward(best)
    for loc, scale in ((0.1, 1.0), (-0.1, 1.0), (0.0, 1.03), (0.0, 0.97)):
        assert forward(Normal(best.loc + loc, best.scale * scale)) > least + 1e-4
    assert least == pytest.approx(
        float(kl(TWO, best, draws=50_000, generator=torch.Generator().manual_seed(0))), abs=0.02
    )


def test_in_more_dimensions_it_is_the_covariance():
    cov = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=F64)
    p = MultivariateNormal(f(1.0, 2.0), cov)
    torch.testing.assert_close(fit_forward_kl(p).covariance_matrix, cov)
    single = fit_forward_kl(p, family="mean_field")
    torch.testing.assert_close(single.variance, f(1.0, 1.0))  # wide: the marginals, not 0.19
    assert isinstance(single, Independent)
    draws = torch.randn(500, 2, generator=torch.Generator().manual_seed(1), dtype=F64) @ f(1.0, 0.5).diag()
    q = fit_forward_kl(draws)
    torch.testing.assert_close(q.mean, draws.mean(0))
    torch.testing.assert_close(q.covariance_matrix, (draws - q.mean).T @ (draws - q.mean) / 500)
    likelihood = float(q.log_prob(draws).sum())
    for scale in (0.97, 1.03):
        assert float(MultivariateNormal(q.mean, scale * q.covariance_matrix).log_prob(draws).sum()) < likelihood
    factorised = Independent(Normal(f(0.0, 1.0), f(1.0, 2.0)), 1)
    torch.testing.assert_close(fit_forward_kl(factorised).covariance_matrix, f(1.0, 4.0).diag())
