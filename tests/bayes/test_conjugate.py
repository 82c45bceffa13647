"""Each conjugate update against a grid and against scipy; order and batching must not matter."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from torch.distributions import Bernoulli, Beta, Dirichlet, Gamma, Normal, Poisson

from bnnlib.bayes import (
    NormalGamma,
    bayes_rule,
    beta_bernoulli,
    dirichlet_categorical,
    gamma_poisson,
    normal_gamma,
    normal_normal,
)

F64 = torch.float64


def t(*values):
    return torch.tensor(values, dtype=F64)


ONES = t(0, 0, 1, 1, 1, 1, 1)
COUNTS = t(3, 0, 2, 5, 1)
REALS = t(1.3, -0.4, 2.2, 0.9, 3.1)
LABELS = torch.tensor([0, 2, 2, 1, 2])
PRIOR = NormalGamma(*t(0.5, 2.0, 3.0, 1.5))


def parameters(d):
    return (
        torch.stack([getattr(d, name).expand(d.batch_shape) for name in d.arg_constraints], -1)
        if not isinstance(d, Dirichlet)
        else d.concentration
    )


CASES = {
    "beta": (Beta(*t(2, 3)), beta_bernoulli, ONES),
    "dirichlet": (Dirichlet(t(0.5, 1, 2)), dirichlet_categorical, LABELS),
    "gamma": (Gamma(*t(2, 0.7)), gamma_poisson, COUNTS),
    "normal": (Normal(*t(0.5, 2)), lambda p, x: normal_normal(p, x, scale=0.8), REALS),
    "normal_gamma": (PRIOR, normal_gamma, REALS),
}
every = pytest.mark.parametrize(("prior", "update", "data"), CASES.values(), ids=CASES.keys())


def middles(low, high, n):
    edges = torch.linspace(low, high, n + 1, dtype=F64)
    return (edges[1:] + edges[:-1]) / 2, (high - low) / n


@pytest.mark.parametrize(
    ("name", "low", "high", "likelihood"),
    [
        ("beta", 0.0, 1.0, lambda h: Bernoulli(h)),
        ("gamma", 0.0, 30.0, lambda h: Poisson(h)),
        ("normal", -12.0, 12.0, lambda h: Normal(h, 0.8)),
    ],
)
def test_the_posterior_equals_a_grid(name, low, high, likelihood):
    prior, update, data = CASES[name]
    h, cell = middles(low, high, 20_000)
    log_likelihood = likelihood(h[:, None]).log_prob(data).sum(-1)
    on_grid = bayes_rule(prior.log_prob(h), log_likelihood, log=True).posterior / cell
    torch.testing.assert_close(update(prior, data).log_prob(h).exp(), on_grid, rtol=0, atol=1e-6)


def test_the_dirichlet_posterior_equals_a_grid():
    """On the triangle as pi = (p, (1 - p) r, ...), Gauss's nodes in p and r: exact for polynomials, no cut cells."""
    prior = Dirichlet(t(2, 3, 4))
    node, weight = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(20))
    p, r = torch.cartesian_prod((node + 1) / 2, (node + 1) / 2).unbind(-1)
    cell = torch.cartesian_prod(weight / 2, weight / 2).prod(-1) * (1 - p)
    pi = torch.stack([p, (1 - p) * r, (1 - p) * (1 - r)], -1)
    log_likelihood = pi.log()[:, LABELS].sum(-1)
    on_grid = bayes_rule(prior.log_prob(pi) + cell.log(), log_likelihood, log=True).posterior
    exact = dirichlet_categorical(prior, LABELS)
    torch.testing.assert_close((on_grid[:, None] * pi).sum(0), exact.mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(on_grid / cell, exact.log_prob(pi).exp(), rtol=0, atol=1e-10)


def test_the_normal_gamma_posterior_equals_a_grid():
    mu, d_mu = middles(-9, 12, 1200)
    tau, d_tau = middles(0, 12, 1200)
    grid = torch.cartesian_prod(mu, tau)
    log_likelihood = Normal(grid[:, :1], grid[:, 1:] ** -0.5).log_prob(REALS).sum(-1)
    on_grid = bayes_rule(PRIOR.log_prob(grid), log_likelihood, log=True).posterior / (d_mu * d_tau)
    exact = normal_gamma(PRIOR, REALS).log_prob(grid).exp()
    torch.testing.assert_close(exact, on_grid, rtol=0, atol=1e-6)


def test_against_scipy():
    h = np.linspace(0.05, 0.95, 7)
    beta = beta_bernoulli(CASES["beta"][0], ONES)
    np.testing.assert_allclose(beta.log_prob(t(*h)), stats.beta(2 + 5, 3 + 2).logpdf(h), atol=1e-10)
    gamma = gamma_poisson(CASES["gamma"][0], COUNTS)
    np.testing.assert_allclose(gamma.log_prob(t(*h)), stats.gamma(2 + 11, scale=1 / 5.7).logpdf(h), atol=1e-10)
    pi = np.array([0.2, 0.3, 0.5])
    dirichlet = dirichlet_categorical(CASES["dirichlet"][0], LABELS)
    np.testing.assert_allclose(dirichlet.log_prob(t(*pi)), stats.dirichlet([1.5, 2, 5]).logpdf(pi), atol=1e-10)
    # Conditioning the joint normal of (mu, data) is a second derivation of the update.
    joint = np.full((6, 6), 4.0) + np.diag([0.0] + [0.64] * 5)
    gain = joint[0, 1:] @ np.linalg.inv(joint[1:, 1:])
    normal = normal_normal(CASES["normal"][0], REALS, scale=0.8)
    assert normal.loc.item() == pytest.approx(0.5 + gain @ (REALS.numpy() - 0.5), abs=1e-10)
    assert normal.variance.item() == pytest.approx(4 - gain @ joint[1:, 0], abs=1e-10)


def test_the_normal_gamma_itself_against_scipy():
    mu, tau = 0.9, 1.7
    by_hand = stats.norm(0.5, (2 * tau) ** -0.5).logpdf(mu) + stats.gamma(3, scale=1 / 1.5).logpdf(tau)
    assert PRIOR.log_prob(t(mu, tau)).item() == pytest.approx(by_hand, abs=1e-10)
    marginal, _ = integrate.quad(lambda v: np.exp(PRIOR.log_prob(t(mu, v)).item()), 0, np.inf, epsabs=1e-12)
    assert PRIOR.location.log_prob(t(mu)).exp().item() == pytest.approx(marginal, abs=1e-9)
    assert PRIOR.location.log_prob(t(mu)).item() == pytest.approx(
        stats.t(6, 0.5, (1.5 / 6) ** 0.5).logpdf(mu), abs=1e-10
    )


def test_the_normal_gammas_draws_have_its_moments_and_entropy():
    torch.manual_seed(3)
    draws = PRIOR.sample((200_000,))
    assert draws.shape == (200_000, 2)
    torch.testing.assert_close(draws.mean(0), PRIOR.mean, rtol=0, atol=0.01)
    torch.testing.assert_close(draws.var(0), PRIOR.variance, rtol=0.03, atol=0)
    assert -PRIOR.log_prob(draws).mean().item() == pytest.approx(PRIOR.entropy().item(), abs=0.01)
    assert PRIOR.expand([4]).sample().shape == (4, 2)


@every
def test_one_at_a_time_equals_all_at_once(prior, update, data):
    step = prior
    for x in data:
        step = update(step, x.reshape(1))
    torch.testing.assert_close(parameters(step), parameters(update(prior, data)), rtol=1e-12, atol=1e-12)


@every
def test_the_order_of_the_data_does_not_matter(prior, update, data):
    there, back = update(prior, data), update(prior, data.flip(0))
    torch.testing.assert_close(parameters(there), parameters(back), rtol=1e-12, atol=1e-12)


@every
def test_columns_are_separate_problems(prior, update, data):
    both = update(prior.expand([2]), torch.stack([data, data.roll(1)], -1)[1:])
    alone = update(prior, data.roll(1)[1:])
    torch.testing.assert_close(parameters(both)[1], parameters(alone))
    assert not torch.allclose(parameters(both)[0], parameters(both)[1])


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=9), st.floats(0.1, 10))
def test_normal_data_of_any_kind_update_in_any_grouping(values, scale):
    x = t(*values)
    prior = Normal(*t(1, 3))
    split = normal_normal(normal_normal(prior, x[:1], scale=scale), x[1:], scale=scale)
    torch.testing.assert_close(parameters(split), parameters(normal_normal(prior, x, scale=scale)))
    split = normal_gamma(normal_gamma(PRIOR, x[:1]), x[1:])
    torch.testing.assert_close(parameters(split), parameters(normal_gamma(PRIOR, x)))


@given(st.floats(0.1, 10))
def test_a_normal_posterior_is_narrower_than_prior_and_noise(scale):
    after = normal_normal(Normal(*t(0, 2)), t(5.0), scale=scale)
    assert after.scale < min(2.0, scale)
    assert 0 < after.loc < 5


def test_booleans_are_ones_and_zeros():
    prior = CASES["beta"][0]
    torch.testing.assert_close(
        parameters(beta_bernoulli(prior, ONES == 1)), parameters(beta_bernoulli(prior, ONES)), rtol=0, atol=0
    )


def test_a_scale_for_each_observation_weighs_it():
    after = normal_normal(Normal(*t(0, 1e6)), t(1.0, 4.0), scale=t(1.0, 2.0))
    assert after.loc.item() == pytest.approx((1 / 1 + 4 / 4) / (1 + 1 / 4), rel=1e-9)


def test_a_scale_given_as_a_number_is_not_rounded():
    assert normal_normal(Normal(*t(0, 1)), t(0.0), scale=0.1).variance.item() == pytest.approx(1 / 101, rel=1e-14)


BETA, GAMMA, NORMAL, CLASSES = Beta(1.0, 1.0), Gamma(1.0, 1.0), Normal(0.0, 1.0), Dirichlet(torch.ones(3))


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (lambda: beta_bernoulli(GAMMA, ONES), TypeError, "conjugate prior here is a Beta"),
        (lambda: beta_bernoulli(BETA, [1, 0]), TypeError, "as_tensor"),
        (lambda: beta_bernoulli(BETA, torch.tensor(1.0)), ValueError, "reshape"),
        (lambda: beta_bernoulli(BETA, torch.empty(0)), ValueError, "empty"),
        (lambda: beta_bernoulli(BETA, torch.tensor([1.0, 2.0])), ValueError, "from 0 to 1, got 2"),
        (lambda: beta_bernoulli(BETA, torch.tensor([0.5])), ValueError, "whole"),
        (lambda: beta_bernoulli(Beta(torch.ones(3), torch.ones(3)), torch.ones(4, 2)), ValueError, "batch shape"),
        (lambda: dirichlet_categorical(CLASSES, torch.tensor([0, 3])), ValueError, "from 0 to 2, got 3"),
        (lambda: dirichlet_categorical(CLASSES, torch.tensor([-1])), ValueError, "got -1"),
        (lambda: gamma_poisson(GAMMA, torch.tensor([1.5])), ValueError, "whole numbers from 0 up, got 1.5"),
        (lambda: gamma_poisson(GAMMA, torch.tensor([-2])), ValueError, "got -2"),
        (lambda: gamma_poisson(GAMMA, torch.tensor([float("nan")])), ValueError, "NaN"),
        (lambda: normal_normal(NORMAL, torch.empty(0), scale=1), ValueError, "empty"),
        (lambda: normal_normal(NORMAL, torch.ones(2), scale=0.0), ValueError, "standard deviation"),
        (lambda: normal_normal(NORMAL, torch.ones(2), scale=float("inf")), ValueError, "standard deviation"),
        (lambda: normal_normal(NORMAL, torch.ones(2), scale=torch.ones(3)), ValueError, "does not fit"),
        (lambda: normal_gamma(NORMAL, torch.ones(2)), TypeError, "NormalGamma"),
        (lambda: normal_gamma(PRIOR, torch.tensor([float("inf")])), ValueError, "infinite"),
        (lambda: NormalGamma(0.0, 1.0, -1.0, 1.0), ValueError, "concentration"),
    ],
)
def test_bad_input(call, kind, says):
    with pytest.raises(kind, match=says):
        call()
