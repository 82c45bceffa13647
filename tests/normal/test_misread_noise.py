"""The boxes of book/normal/noise.ipynb: each test holds for what is true and fails for what is often written."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, special, stats
from torch.distributions import Beta, Categorical, Dirichlet, Gamma, Normal

from bnnlib.bayes import LinearRegression, beta_bernoulli
from bnnlib.normal import noise_precision
from bnnlib.predictive import Predictive


@pytest.fixture
def g():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def residuals(g):
    return 0.5 * torch.randn(2_000, generator=g, dtype=torch.float64)


@pytest.mark.misreading("S1.1")
def test_a_variance_in_the_place_of_a_standard_deviation_gives_its_square_root(residuals):
    sigma = torch.linspace(0.3, 1.0, 3501, dtype=torch.float64).unsqueeze(-1)
    right = sigma[Normal(0.0, sigma).log_prob(residuals).sum(-1).argmax()].item()
    wrong = sigma[Normal(0.0, sigma**2).log_prob(residuals).sum(-1).argmax()].item()
    assert right == pytest.approx(0.5, abs=0.03)
    assert wrong == pytest.approx(math.sqrt(right), abs=4e-4)
    assert wrong > 0.69


@pytest.mark.misreading("S1.5")
def test_gamma_is_a_waiting_time_and_counts_are_poisson():
    rng, k, rate = np.random.default_rng(0), 3, 2.0
    waits = rng.exponential(1 / rate, size=(5_000, k)).sum(-1)
    assert stats.kstest(waits, stats.gamma(k, scale=1 / rate).cdf).pvalue > 0.01
    assert not (waits == np.round(waits)).any()
    # Exact: the k-th event comes before t just when at least k events fall into [0, t].
    for t in (0.3, 1.0, 2.5):
        assert stats.gamma.cdf(t, k, scale=1 / rate) == pytest.approx(stats.poisson.sf(k - 1, rate * t), rel=1e-12)


def grid_posterior(x, prior_log_density, scale_of, data):
    """Normalised posterior density on a grid x, with scale_of(x) the standard deviation that x stands for."""
    log_p = prior_log_density(x) + Normal(0.0, scale_of(x).unsqueeze(-1)).log_prob(data).sum(-1)
    p = (log_p - log_p.max()).exp()
    return p / torch.trapezoid(p, x)


def closest_gamma(x, p):
    """The Gamma with the least KL(posterior || Gamma): it shares E[x] and E[log x]. Returns it and that KL."""
    mean, mean_log = torch.trapezoid(x * p, x).item(), torch.trapezoid(x.log() * p, x).item()
    gap = math.log(mean) - mean_log
    a = optimize.brentq(lambda a: math.log(a) - special.digamma(a) - gap, 1e-3, 1e6)
    law = Gamma(torch.tensor(a, dtype=torch.float64), torch.tensor(a / mean, dtype=torch.float64))
    inside = p > 0
    terms = torch.where(inside, p * (p.clamp_min(1e-300).log() - law.log_prob(x)), 0.0)
    return law, torch.trapezoid(terms, x).item()


@pytest.mark.misreading("S1.6")
def test_gamma_is_conjugate_for_the_precision_and_not_for_the_scale(residuals):
    prior, data = Gamma(*torch.tensor([2.0, 1.0], dtype=torch.float64)), residuals[:5]
    x = torch.linspace(1e-3, 80, 400_001, dtype=torch.float64)
    precision = grid_posterior(x, prior.log_prob, lambda t: t.rsqrt(), data)
    assert torch.allclose(precision, noise_precision(prior, data).log_prob(x).exp(), atol=1e-6)
    law, gap = closest_gamma(x, precision)
    assert gap == pytest.approx(0, abs=1e-6)
    assert law.concentration.item() == pytest.approx(2.0 + 5 / 2, rel=1e-3)
    scale = grid_posterior(x, prior.log_prob, lambda s: s, data)
    assert closest_gamma(x, scale)[1] > 0.01
    # On the variance the conjugate prior is the inverse Gamma, the same law seen through v = 1 / tau.
    v = torch.linspace(1e-2, 60, 400_001, dtype=torch.float64)
    inverse = stats.invgamma(2.0, scale=1.0)
    variance = grid_posterior(v, lambda v: torch.as_tensor(inverse.logpdf(v.numpy())), torch.sqrt, data)
    updated = stats.invgamma(2.0 + 5 / 2, scale=1.0 + data.square().sum().item() / 2)
    assert np.allclose(variance.numpy(), updated.pdf(v.numpy()), atol=1e-6)


@pytest.mark.misreading("S1.7")
def test_torchs_second_number_is_a_rate():
    law = Gamma(torch.tensor(2.0), torch.tensor(4.0))
    assert law.mean.item() == pytest.approx(0.5)
    assert law.log_prob(torch.tensor(0.7)).item() == pytest.approx(stats.gamma.logpdf(0.7, 2, scale=1 / 4), rel=1e-5)
    assert stats.gamma(2, scale=4).mean() == pytest.approx(8)
    # With the number one the two readings agree, and the mistake cannot be seen.
    assert Gamma(torch.tensor(2.0), torch.tensor(1.0)).mean.item() == stats.gamma(2, scale=1).mean()


@pytest.mark.misreading("S1.8")
def test_gamma_one_half_on_the_scale_favours_no_noise_at_all():
    law = stats.gamma(0.5, scale=1.0)
    assert law.cdf(0.01) == pytest.approx(0.112, abs=5e-4)
    assert law.cdf(0.1) == pytest.approx(0.345, abs=5e-4)
    assert law.pdf(1e-12) > 1e5
    for better in (stats.halfnorm(), stats.gamma(2, scale=0.5), stats.lognorm(1)):
        assert better.cdf(0.01) < 0.01


def log_scale_path(start, prior, data, steps=400):
    """Gradient ascent on the log posterior of log tau, from a start."""
    u = torch.tensor(float(start), dtype=torch.float64, requires_grad=True)
    n, ss = len(data), data.square().sum()
    for _ in range(steps):
        log_p = prior.concentration * u - prior.rate * u.exp() + 0.5 * n * u - 0.5 * ss * u.exp()
        (gradient,) = torch.autograd.grad(log_p, u)
        u = (u + 0.5 * (gradient / n).clamp(-1, 1)).detach().requires_grad_()
    return u.exp().item()


@pytest.mark.misreading("S1.9")
def test_a_start_is_forgotten_and_a_prior_is_not(residuals):
    data = residuals[:10]
    ends = {}
    for a, b in ((2.0, 1.0), (20.0, 40.0)):
        prior = Gamma(*torch.tensor([a, b], dtype=torch.float64))
        ends[a] = [log_scale_path(start, prior, data) for start in (-3.0, 0.0, 4.0)]
        exact = noise_precision(prior, data).mean.item()
        assert ends[a] == pytest.approx([exact] * 3, rel=1e-4)
    assert ends[2.0][0] > 1.5 * ends[20.0][0]


@pytest.mark.misreading("S1.10")
def test_gamma_has_no_standard_form_and_still_a_gradient():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        alpha = torch.tensor(1.5, requires_grad=True)
        draws = Gamma(alpha.expand(50_000), torch.ones(50_000)).rsample()
    assert Gamma.has_rsample
    gradient = torch.autograd.grad(draws.mean(), alpha)[0].item()
    assert gradient == pytest.approx(1, abs=0.02)  # d E[x] / d alpha, and E[x] = alpha
    # (x - mean) / sd keeps its shape when a normal changes, and not when a Gamma does.
    skews = [float(stats.gamma(a).stats("s")) for a in (0.5, 4.0)]
    assert skews == pytest.approx([2 / math.sqrt(a) for a in (0.5, 4.0)])
    assert [float(stats.norm(m, s).stats("s")) for m, s in ((0, 1), (2, 3))] == [0, 0]


def line(n, g):
    x = 4 * torch.rand(n, 1, generator=g, dtype=torch.float64) - 2
    return x, 1 - 2 * x + 0.577 * torch.randn(n, 1, generator=g, dtype=torch.float64)


@pytest.mark.misreading("S1.11")
def test_data_remove_ignorance_and_leave_noise(g):
    at, epistemic = torch.tensor([[1.0]], dtype=torch.float64), []
    for n in (50, 500, 5_000):
        predictive = LinearRegression(noise_scale=0.577, prior_scale=10.0).fit(*line(n, g)).predict(at)
        epistemic.append(predictive.epistemic.item())
        assert predictive.aleatoric.item() == pytest.approx(0.577)
    assert epistemic[0] / epistemic[1] == pytest.approx(math.sqrt(10), rel=0.2)
    assert epistemic[1] / epistemic[2] == pytest.approx(math.sqrt(10), rel=0.2)


@pytest.mark.misreading("S1.12")
def test_draws_of_the_parameters_are_not_draws_of_new_data(g):
    posterior = LinearRegression(noise_scale=0.577, prior_scale=10.0).fit(*line(500, g))
    x, y = line(20_000, g)
    predictive = posterior.predict(x)
    z = 1.959964
    inside_draws = ((y - predictive.mean).abs() < z * predictive.epistemic).double().mean().item()
    inside_total = ((y - predictive.mean).abs() < z * predictive.total).double().mean().item()
    assert inside_total == pytest.approx(0.95, abs=0.01)
    assert inside_draws < 0.15
    assert torch.allclose(predictive.total**2, predictive.epistemic**2 + predictive.aleatoric**2)


@pytest.mark.misreading("S1.13")
@given(st.lists(st.lists(st.floats(0.01, 1), min_size=3, max_size=3), min_size=2, max_size=6))
def test_an_ensemble_measures_disagreement_and_adds_it(rows):
    probs = torch.tensor(rows, dtype=torch.float64)
    probs = (probs / probs.sum(-1, keepdim=True)).unsqueeze(1)  # (members, one point, classes)
    predictive = Predictive(Categorical(probs=probs))
    mean_of_entropies = Categorical(probs=probs).entropy().mean()
    assert predictive.entropy.item() >= mean_of_entropies.item() - 1e-12
    assert predictive.mutual_information.item() == pytest.approx((predictive.entropy - mean_of_entropies).item())


@pytest.mark.misreading("S1.13")
def test_two_members_that_disagree_are_less_sure_together():
    predictive = Predictive(Categorical(probs=torch.tensor([[[0.85, 0.15]], [[0.15, 0.85]]])))
    assert predictive.entropy.item() == pytest.approx(math.log(2), rel=1e-5)
    assert Categorical(probs=torch.tensor([0.85, 0.15])).entropy().item() < 0.43


@pytest.mark.misreading("S1.14")
def test_beta_and_dirichlet_are_about_shares(g):
    assert not bool(Beta(2.0, 2.0).support.check(torch.tensor(-0.1)))
    assert not bool(Beta(2.0, 2.0).support.check(torch.tensor(1.7)))
    assert not bool(Dirichlet(torch.ones(3)).support.check(torch.tensor([0.5, 0.2, 0.1])))
    share = (torch.randn(10_000, generator=g).mul(0.5) < 0).float().mean().item()
    assert share == pytest.approx(0.5, abs=0.02)  # half of all additive noise is outside a Beta's support
    # What a Beta is for: the share of labels that were flipped.
    flipped = (torch.rand(400, generator=g) < 0.07).float()
    posterior = beta_bernoulli(Beta(1.0, 1.0), flipped)
    assert abs(posterior.mean - 0.07).item() < 3 * posterior.stddev.item()
