"""The bound: equal to the evidence where q is the posterior, below it elsewhere, by exactly the KL."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import (
    Beta,
    Binomial,
    Categorical,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    kl_divergence,
)

from bnnlib.variational import MeanField, elbo

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def number(value):
    return torch.tensor(value, dtype=F64)


def one(z):
    """z ~ N(0, 1), x | z ~ N(z, 1/4), x = 1.3, for z of shape (S,)."""
    return Normal(number(0.0), 1.0).log_prob(z) + Normal(z, 0.5).log_prob(number(1.3))


POSTERIOR = Normal(number(1.3 / 1.25), number(0.2).sqrt())
EVIDENCE = float(Normal(number(0.0), number(1.25).sqrt()).log_prob(number(1.3)))


def linear(features=3, points=12):
    """Bayesian linear regression: log joint, posterior, log evidence, all by closed forms."""
    x = torch.randn(points, features, generator=generator(1), dtype=F64)
    y = torch.randn(points, generator=generator(2), dtype=F64)
    prior = MultivariateNormal(torch.zeros(features, dtype=F64), torch.eye(features, dtype=F64))

    def log_joint(w):
        return prior.log_prob(w) + Normal(w @ x.T, 0.5).log_prob(y).sum(-1)

    precision = torch.eye(features, dtype=F64) + x.T @ x / 0.25
    posterior = MultivariateNormal(torch.linalg.solve(precision, x.T @ y / 0.25), precision_matrix=precision)
    marginal = MultivariateNormal(torch.zeros(points, dtype=F64), x @ x.T + 0.25 * torch.eye(points, dtype=F64))
    return log_joint, posterior, float(marginal.log_prob(y))


def test_the_evidence_of_the_books_model():
    assert abs(EVIDENCE + 1.7065) < 5e-5


@pytest.mark.parametrize("estimator", ["reparameterised", "score"])
@pytest.mark.parametrize("case", ["one", "linear", "Beta"])
def test_at_the_posterior_every_single_draw_is_the_evidence(case, estimator):
    """log p(x, z) - log p(z | x) = log p(x) for any z, so the bound has no scatter there."""
    if case == "one":
        log_joint, posterior, evidence = one, POSTERIOR, EVIDENCE
    elif case == "linear":
        log_joint, posterior, evidence = linear()
    else:  # 7 of 10, uniform prior: the evidence is 1 / 11
        log_joint, posterior, evidence = (
            lambda p: Binomial(10, p).log_prob(number(7.0)),
            Beta(number(8.0), number(4.0)),
            float(number(1 / 11).log()),
        )
    values = elbo(log_joint, posterior, 50, estimator=estimator, generator=generator())
    assert values.shape == (50,)
    torch.testing.assert_close(values, torch.full_like(values, evidence), rtol=0, atol=1e-6)


@pytest.mark.parametrize("estimator", ["reparameterised", "score", "analytic_entropy"])
def test_elsewhere_the_gap_is_the_divergence(estimator):
    """log p(x) = ELBO + KL(q || posterior); five standard errors of 20,000 draws."""
    log_joint, posterior, evidence = linear()
    q = MultivariateNormal(posterior.mean + 0.1, 1.5 * posterior.covariance_matrix)
    values = elbo(log_joint, q, 20_000, estimator=estimator, generator=generator())
    expected = evidence - float(kl_divergence(q, posterior))
    assert abs(float(values.mean()) - expected) < 5 * float(values.std()) / 20_000**0.5


@settings(max_examples=20, deadline=None)
@given(st.floats(-3, 3), st.floats(0.1, 3))
def test_no_normal_gets_above_the_evidence(loc, scale):
    """The exact ELBO of a normal, from its moments: below the evidence by the divergence, for any loc and scale."""
    q = Normal(number(loc), number(scale))
    second = scale**2 + loc**2
    expected_joint = -torch.log(number(2 * torch.pi)) - 0.5 * second - torch.log(number(0.5))
    expected_joint = expected_joint - 2 * (scale**2 + (1.3 - loc) ** 2)
    exact = float(expected_joint + q.entropy())
    assert exact == pytest.approx(EVIDENCE - float(kl_divergence(q, POSTERIOR)), abs=1e-9)
    own = elbo(one, q, 4000, generator=generator())
    assert abs(float(own.mean()) - exact) <= 5 * float(own.std()) / 4000**0.5 + 1e-9


def test_the_estimators_differ_as_they_say():
    """Same draws: values of score and reparameterised are equal, the analytic entropy replaces -log q by its mean."""
    q = Normal(number(0.4), number(0.8))
    pathwise, score, closed = (
        elbo(one, q, 5, estimator=e, generator=generator(7)) for e in ("reparameterised", "score", "analytic_entropy")
    )
    torch.testing.assert_close(pathwise, score, rtol=1e-13, atol=0)
    z = 0.4 + 0.8 * torch.randn(5, generator=generator(7), dtype=F64)
    torch.testing.assert_close(pathwise, one(z) - q.log_prob(z), rtol=1e-12, atol=0)
    torch.testing.assert_close(closed, one(z) + q.entropy(), rtol=1e-12, atol=0)


def test_a_baseline_changes_no_value():
    q = Normal(number(0.4).requires_grad_(), number(0.8))
    values = [
        elbo(one, q, 6, estimator="score", baseline=b, generator=generator()) for b in (None, -3.0, "leave_one_out")
    ]
    for other in values[1:]:
        torch.testing.assert_close(other, values[0], rtol=1e-14, atol=0)
    assert values[0].requires_grad


def test_parameters_of_the_model_get_their_gradient_too():
    """The evidence rises with a better likelihood: d/dm E_q[log N(x | z + m, 1/4)] = (x - E[z] - m) / (1/4)."""
    q = Normal(number(0.4), number(0.8))
    for estimator in ("reparameterised", "score", "analytic_entropy"):
        shift = number(0.2).requires_grad_()

        def moved(z, shift=shift):
            return Normal(number(0.0), 1.0).log_prob(z) + Normal(z + shift, 0.5).log_prob(number(1.3))

        elbo(moved, q, 20_000, estimator=estimator, generator=generator()).mean().backward()
        assert abs(float(shift.grad) - (1.3 - 0.4 - 0.2) / 0.25) < 5 * (0.8 / 0.25) / 20_000**0.5


def test_mini_batches_have_the_full_bound_as_their_mean():
    """n / batch: over all batches of a partition the estimates average to the full one, for the same draws."""
    x, y = torch.randn(12, 2, generator=generator(1), dtype=F64), torch.randn(12, generator=generator(2), dtype=F64)

    def on(rows):
        def log_joint(w):
            prior = Normal(number(0.0), 1.0).log_prob(w).sum(-1)
            return prior + 12 / len(rows) * Normal(w @ x[rows].T, 0.5).log_prob(y[rows]).sum(-1)

        return elbo(log_joint, MeanField(2, scale=0.3, dtype=F64), 5, generator=generator(5))

    full = on(torch.arange(12))
    batches = torch.stack([on(rows) for rows in torch.randperm(12, generator=generator()).split(3)])
    torch.testing.assert_close(batches.mean(0), full, rtol=1e-12, atol=0)
    assert float((batches[0] - full).detach().abs().min()) > 1e-3


def test_a_mixture_needs_the_score():
    """No reparameterised draws, but a log density: the same bound, from an honest two-humped q."""
    q = MixtureSameFamily(Categorical(torch.ones(2)), Normal(torch.tensor([0.8, 1.2], dtype=F64), number(0.3)))
    values = elbo(one, q, 20_000, estimator="score", generator=generator())
    error = float(values.std()) / 20_000**0.5
    assert EVIDENCE - 0.5 < float(values.mean()) < EVIDENCE + 5 * error


def test_equal_seeds_give_equal_draws_and_torchs_state_stays():
    before = torch.random.get_rng_state()
    q = Independent(Normal(torch.zeros(2, dtype=F64), 1.0), 1)
    a, b = (elbo(lambda z: z.sum(-1), q, 4, generator=generator(4)) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(torch.random.get_rng_state(), before)
