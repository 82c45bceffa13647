"""The boxes of two_directions.ipynb: each test holds for what is true and fails for what is often written."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, stats
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal, Normal, Uniform

from bnnlib.variational import MeanField, elbo, fit, fit_forward_kl, kl

F64 = torch.float64
ZERO = torch.tensor(0.0, dtype=F64)
HUMPS = MixtureSameFamily(
    Categorical(torch.tensor([0.5, 0.5], dtype=F64)), Normal(torch.tensor([-3.0, 3.0], dtype=F64), 0.7)
)
GRID = torch.linspace(-30, 30, 12_001, dtype=F64)
# Second source: the same target and both divergences in numpy, by quadrature.
Z = np.linspace(-30, 30, 12_001)
LOG_P = np.logaddexp(stats.norm.logpdf(Z, -3, 0.7), stats.norm.logpdf(Z, 3, 0.7)) - math.log(2)


def average(log_weight, values):
    return integrate.simpson(np.exp(log_weight) * values, x=Z)


def forward(phi):
    return average(LOG_P, LOG_P - stats.norm.logpdf(Z, phi[0], math.exp(phi[1])))


def reverse(phi):
    log_q = stats.norm.logpdf(Z, phi[0], math.exp(phi[1]))
    return average(log_q, log_q - LOG_P)


def lowest(divergence, loc, scale):
    found = optimize.minimize(divergence, [loc, math.log(scale)], method="BFGS", options={"gtol": 1e-8})
    return found.x[0], math.exp(found.x[1]), found.fun


@pytest.mark.misreading("S4.3")
def test_forward_covers_two_humps_and_reverse_sits_on_one():
    for start in (-2.0, 0.5, 4.0):
        loc, scale, value = lowest(forward, start, 2.0)
        assert (loc, scale) == pytest.approx((0, math.sqrt(9.49)), abs=1e-5)
        assert value == pytest.approx(0.7887, abs=5e-5)
    q = fit_forward_kl(HUMPS.log_prob, GRID)
    assert (q.loc.item(), q.scale.item()) == pytest.approx((0, 3.0806), abs=5e-5)
    for side in (-1, 1):
        loc, scale, value = lowest(reverse, 2.5 * side, 0.8)
        assert (loc, scale) == pytest.approx((3 * side, 0.70), abs=5e-4)
        assert value == pytest.approx(math.log(2), abs=1e-4)
    # The other way round each fit is bad.
    assert forward([3, math.log(0.7)]) == pytest.approx(17.67, abs=5e-3)
    assert reverse([0, math.log(3.0806)]) == pytest.approx(2.5126, abs=5e-4)


@pytest.mark.misreading("S4.3")
def test_the_middle_is_a_third_local_minimum_of_the_reverse_direction():
    loc, scale, value = lowest(reverse, 0.3, 3.0)
    assert (loc, scale, value) == pytest.approx((0, 2.5797, 2.2405), abs=2e-4)
    h = 1e-3
    for step in ([h, 0], [0, h], [h, h], [h, -h]):
        up, down = ([loc + s * step[0], math.log(scale) + s * step[1]] for s in (1, -1))
        assert reverse(up) + reverse(down) > 2 * value + 1e-8


@pytest.mark.misreading("S4.3")
def test_zero_avoiding_is_forward_and_zero_forcing_is_reverse():
    half, inside = Uniform(ZERO, 6.0), np.linspace(1e-9, 6 - 1e-9, 6001)
    log_p = np.interp(inside, Z, LOG_P)
    # q = 0 where p > 0: forward is infinite, reverse is not.
    assert half.log_prob(ZERO + 3).isfinite()
    assert float(kl(HUMPS, half, draws=1000)) == math.inf
    assert integrate.simpson((-math.log(6) - log_p) / 6, x=inside) == pytest.approx(2.51, abs=5e-3)
    # p = 0 where q > 0: reverse is infinite, forward is not.
    box, bell = Uniform(ZERO - 3, 3.0), Normal(ZERO, math.sqrt(3))
    assert float(kl(bell, box)) == math.inf
    assert float(kl(box, bell)) == pytest.approx(0.5 * math.log(2 * math.pi * math.e * 3) - math.log(6), abs=1e-12)


@pytest.mark.misreading("S4.3")
def test_what_the_reverse_fit_misses():
    reach = stats.norm.isf(0.025) * 0.7
    tail = [stats.norm(side * 3, 0.7).cdf(3 + reach) - stats.norm(side * 3, 0.7).cdf(3 - reach) for side in (-1, 1)]
    assert 1 - sum(tail) / 2 == pytest.approx(0.525, abs=1e-3)
    assert stats.norm(3, 0.7).cdf(0) < 1e-5  # it gives the left side nothing, and half of the target is there
    wide = stats.norm(0, math.sqrt(9.49))
    assert wide.cdf(1) - wide.cdf(-1) == pytest.approx(0.2545, abs=5e-4)


@pytest.mark.misreading("S4.3")
def test_correlation_and_a_long_tail():
    cov = torch.tensor([[1, 0.9], [0.9, 1]], dtype=F64)
    tied = MultivariateNormal(torch.zeros(2, dtype=F64), cov)

    def cost(log_var, direction):
        q = MultivariateNormal(torch.zeros(2, dtype=F64), math.exp(log_var) * torch.eye(2, dtype=F64))
        return float(kl(tied, q) if direction == "forward" else kl(q, tied))

    for direction, expected in {"forward": 1.0, "reverse": 0.19}.items():
        best = optimize.minimize_scalar(cost, bracket=(-3, 1), args=(direction,), tol=1e-10)
        assert math.exp(best.x) == pytest.approx(expected, abs=1e-5)
        assert best.fun == pytest.approx(-0.5 * math.log(0.19), abs=1e-9)
    # Gumbel: E_q[z + e^-z] = mu + e^(-mu + s^2 / 2), so the optimum is N(1/2, 1).
    log_gumbel = -Z - np.exp(-Z.clip(-20))

    def to_gumbel(phi):
        log_q = stats.norm.logpdf(Z, phi[0], math.exp(phi[1]))
        return average(log_q, log_q - log_gumbel)

    loc, scale, value = lowest(to_gumbel, 0.0, 0.8)
    assert (loc, scale, value) == pytest.approx((0.5, 1.0, 1.5 - 0.5 * math.log(2 * math.pi * math.e)), abs=1e-5)


X = ZERO + 1.3


def log_joint(z):
    return Normal(ZERO, 1.0).log_prob(z) + Normal(z, 0.5).log_prob(X)


@pytest.mark.misreading("S4.4")
def test_reverse_needs_the_joint_density_only():
    """A constant in the log density, such as the evidence, changes the value and no slope."""
    slopes, values = [], []
    for constant in (0.0, 7.0):
        phi = torch.tensor([0.4, -0.3], dtype=F64, requires_grad=True)
        g = torch.Generator().manual_seed(3)
        value = elbo(lambda z, c=constant: log_joint(z) + c, Normal(phi[0], phi[1].exp()), 50, generator=g).mean()
        slopes.append(torch.autograd.grad(value, phi)[0])
        values.append(value.item())
    torch.testing.assert_close(*slopes, rtol=0, atol=1e-12)
    assert values[1] - values[0] == pytest.approx(7, abs=1e-12)
    g = torch.Generator().manual_seed(0)
    found = fit(lambda z: log_joint(z[:, 0]), MeanField(1), steps=800, lr=0.05, draws=20, generator=g, progress=False)
    assert found.distribution.mean.item() == pytest.approx(1.04, abs=0.03)
    assert found.distribution.stddev.item() == pytest.approx(math.sqrt(0.2), abs=0.03)


@pytest.mark.misreading("S4.4")
def test_forward_needs_draws_or_the_whole_of_the_target():
    with pytest.raises(ValueError, match="grid"):
        fit_forward_kl(HUMPS.log_prob)  # a log density alone, which is all that reverse asks for
    # Draws from the prior, weighted by the likelihood, are worth fewer and fewer in more dimensions: by theory a
    # factor E[w]^2 / E[w^2] each, with E[w^2] = integral of posterior^2 / prior.
    posterior = stats.norm(1.04, math.sqrt(0.2))
    square = integrate.quad(lambda z: posterior.pdf(z) ** 2 / stats.norm.pdf(z), -5, 7)[0]
    assert square == pytest.approx(math.exp(1.04**2 / 1.8) / 0.6, rel=1e-8)
    z = torch.randn(100_000, 20, generator=torch.Generator().manual_seed(0), dtype=F64)
    log_weight = Normal(ZERO + 1.04, math.sqrt(0.2)).log_prob(z) - Normal(ZERO, 1.0).log_prob(z)
    worth = {d: 1 / log_weight[:, :d].sum(1).softmax(0).square().sum().item() for d in (1, 2, 20)}
    assert worth[1] == pytest.approx(1e5 / square, rel=0.03)
    assert worth[2] == pytest.approx(1e5 / square**2, rel=0.06)
    assert worth[20] < 10


@pytest.mark.misreading("S4.4")
def test_where_draws_exist_forward_is_maximum_likelihood():
    g = torch.Generator().manual_seed(0)
    side = torch.randint(2, (4000,), generator=g) * 2 - 1
    draws = 3 * side + 0.7 * torch.randn(4000, generator=g, dtype=F64)
    found, (loc, scale) = fit_forward_kl(draws), stats.norm.fit(draws.numpy())
    assert (found.loc.item(), found.scale.item()) == pytest.approx((loc, scale), rel=1e-10)
