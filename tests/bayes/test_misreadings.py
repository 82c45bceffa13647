"""What is often written about Bayes' rule, and what is true: one test for each box of the chapter."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from bnnlib.bayes import LinearRegression, bayes_rule, normal_normal

F64 = torch.float64


def t(*values):
    return torch.tensor(values, dtype=F64)


PRIOR, DATA, NOISE = Normal(*t(0, 1)), t(1.3, 0.7, 2.1), 0.5
EXACT = normal_normal(PRIOR, DATA, scale=NOISE)


def log_evidence(prior=PRIOR):
    covariance = prior.variance * torch.ones(3, 3, dtype=F64) + NOISE**2 * torch.eye(3, dtype=F64)
    return torch.distributions.MultivariateNormal(prior.loc.expand(3), covariance).log_prob(DATA)


def elbo(loc, scale, prior=PRIOR):
    """E_q[log p(D | mu)] - KL(q || prior), the expectation in closed form."""
    expected = Normal(loc, NOISE).log_prob(DATA).sum() - 3 * scale**2 / (2 * NOISE**2)
    return expected - kl_divergence(Normal(loc, scale), prior)


def climb(start, prior):
    """The normal q of highest ELBO, by quasi-Newton steps from a start (loc, log_scale)."""
    q = t(*start).requires_grad_()
    optimizer = torch.optim.LBFGS([q], lr=0.5, max_iter=300, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = -elbo(q[0], q[1].exp(), prior)
        value.backward()
        return value

    optimizer.step(loss)
    return q.detach()[0], q.detach()[1].exp()


@pytest.mark.misreading("S0.7")
def test_a_prior_is_not_a_start():
    near, far = climb((0.0, 0.0), PRIOR), climb((-6.0, 1.5), PRIOR)
    for found in (near, far):
        torch.testing.assert_close(torch.stack(found), torch.stack([EXACT.loc, EXACT.scale]), rtol=0, atol=1e-4)
    other = Normal(*t(-6, math.exp(1.5)))
    moved = climb((0.0, 0.0), other)
    exact = normal_normal(other, DATA, scale=NOISE)
    torch.testing.assert_close(torch.stack(moved), torch.stack([exact.loc, exact.scale]), rtol=0, atol=1e-4)
    assert abs(moved[0] - near[0]) > 0.01


@pytest.mark.misreading("S3.5")
def test_the_elbo_is_a_lower_bound_that_is_maximised_and_q_is_not_the_posterior():
    assert elbo(EXACT.loc, EXACT.scale).item() == pytest.approx(log_evidence().item(), abs=1e-10)
    for loc, scale in [(0.0, 1.0), (1.4, 0.3), (1.2, 0.05), (3.0, 2.0)]:
        q = Normal(*t(loc, scale))
        gap = log_evidence() - elbo(q.loc, q.scale)
        assert gap.item() == pytest.approx(kl_divergence(q, EXACT).item(), abs=1e-10)
        assert gap > 0.01
    # A loss is minimised. Maximised, the loss -ELBO runs away from the posterior without end.
    assert -elbo(t(1e3)[0], t(0.3)[0]) > -elbo(t(1e2)[0], t(0.3)[0]) > -elbo(EXACT.loc, EXACT.scale)


@pytest.mark.misreading("S3.8")
def test_that_all_cars_are_blue_makes_mine_blue_and_not_the_other_way_round():
    share = t(1.0, 0.2)  # of blue cars: in a town where all are, and in an ordinary one
    for prior in (0.001, 0.1, 0.5):
        posterior = bayes_rule(t(prior, 1 - prior), share).posterior[0].item()
        assert posterior == pytest.approx(prior / (prior + 0.2 * (1 - prior)), rel=1e-12)
        assert posterior < share[0] - 0.1
    rare = bayes_rule(t(0.001, 0.999), share).posterior[0].item()
    assert rare < 0.01


@pytest.mark.misreading("S3.10")
def test_draws_from_the_prior_do_not_find_the_posterior_when_there_are_many_weights():
    sizes = {}
    for d in (1, 2, 5, 10):
        g = torch.Generator().manual_seed(d)
        x = torch.randn(50, d, generator=g, dtype=F64)
        y = x @ torch.randn(d, 1, generator=g, dtype=F64) + 0.5 * torch.randn(50, 1, generator=g, dtype=F64)
        w = torch.randn(100_000, d, generator=g, dtype=F64)
        log_weight = Normal(0.0, 0.5).log_prob(y - x @ w.T).sum(0)
        weight = (log_weight - log_weight.max()).exp()
        sizes[d] = (weight.sum() ** 2 / weight.square().sum()).item()
        # E[L]^2 / E[L^2]: the square of a normal likelihood is one with half the variance, times a constant.
        belief, sharper = (LinearRegression(noise_scale=s, features=lambda x: x) for s in (0.5, 0.5 / 2**0.5))
        log_square = sharper.log_evidence(x, y) - 25 * math.log(4 * math.pi * 0.25)
        expected = 1e5 * (2 * belief.log_evidence(x, y) - log_square).exp().item()
        if expected > 100:
            assert sizes[d] == pytest.approx(expected, rel=0.1)
    assert sizes[1] > 1000 > sizes[2] > 30 > sizes[5]
    assert sizes[10] < 3


CLASSES = t(1 / 3, 2 / 3)  # one picture in three is a cat
PICTURE = t(0.8, 0.3)  # density of this picture among cats, and among the others


@pytest.mark.misreading("S4.6")
def test_the_likelihood_is_what_one_has_and_the_posterior_what_one_has_not():
    for cats in (0.01, 1 / 3, 0.9):
        prior = t(cats, 1 - cats)
        update = bayes_rule(prior, PICTURE)
        # p(x | z) is written down without the prior; p(x), and so p(z | x), is a sum over all z.
        assert update.evidence.item() == pytest.approx((prior * PICTURE).sum().item(), rel=1e-12)
        assert abs(update.posterior[0] - PICTURE[0] / PICTURE.sum()) > 0.05


@pytest.mark.misreading("S4.7")
def test_a_likelihood_is_no_probability_of_the_class():
    assert PICTURE.sum().item() != pytest.approx(1, abs=0.05)
    posterior = bayes_rule(CLASSES, PICTURE).posterior
    assert posterior.sum().item() == pytest.approx(1, abs=1e-12)
    assert abs(posterior[0] - PICTURE[0]) > 0.2
    # Scaled by any constant (another unit for x), the likelihood says the same; a probability would not.
    torch.testing.assert_close(bayes_rule(CLASSES, 1000 * PICTURE).posterior, posterior)
    # As a function of x it does sum to one.
    x = torch.linspace(-8, 8, 4001, dtype=F64)
    assert torch.trapezoid(Normal(*t(0.5, 1)).log_prob(x).exp(), x).item() == pytest.approx(1, abs=1e-9)


@pytest.mark.misreading("S4.9")
def test_certainty_about_this_picture_is_not_certainty_about_pictures():
    update = bayes_rule(CLASSES, t(1.0, 0.0))  # no picture like this one without a cat
    assert update.posterior[0] == 1
    assert CLASSES[0].item() == pytest.approx(1 / 3)
    # Over all pictures the posteriors average back to the prior.
    likelihood = t(0.7, 0.2, 0.1), t(0.1, 0.3, 0.6)  # P(x | cat), P(x | none) for three kinds of picture
    table = torch.stack(likelihood, -1)
    updates = bayes_rule(CLASSES, table, dim=-1)
    assert (updates.evidence @ updates.posterior)[0].item() == pytest.approx(1 / 3, rel=1e-12)


@pytest.mark.misreading("S4.10")
def test_the_fraction_bars_matter():
    x, z = PICTURE[0], CLASSES[0]
    evidence = (CLASSES * PICTURE).sum()
    with_bar = bayes_rule(CLASSES, PICTURE).posterior[0]
    assert with_bar.item() == pytest.approx((x * z / evidence).item(), rel=1e-12)
    assert abs(with_bar - x * z * evidence) > 0.2
    # "13" and "23" are one third and two thirds. As weights they are another prior.
    assert CLASSES.sum().item() == pytest.approx(1, abs=1e-12)
    assert abs(bayes_rule(t(13, 23), PICTURE).posterior[0] - with_bar) > 0.02
