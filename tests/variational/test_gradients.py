"""Gradient estimates: their mean against finite differences of the exact bound, their variance against closed forms."""

import pytest
import torch
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal

from bnnlib.variational import FullRank, LowRank, MeanField, gradient_variance

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def number(value):
    return torch.tensor(value, dtype=F64)


PRECISION = torch.tensor([[2.0, 0.9], [0.9, 1.0]], dtype=F64)
CENTRE = torch.tensor([0.5, -0.3], dtype=F64)


def log_joint(z):
    """An unnormalised normal with correlation, so that the exact bound has a closed form."""
    return -0.5 * ((z - CENTRE) @ PRECISION * (z - CENTRE)).sum(-1)


def exact_elbo(q):
    """E_q of the quadratic from q's mean and covariance, plus q's entropy."""
    cov = torch.diag(q.variance) if isinstance(q, Independent) else q.covariance_matrix
    shift = q.mean - CENTRE
    return -0.5 * (shift @ PRECISION @ shift + torch.trace(PRECISION @ cov)) + q.entropy()


def difference_quotients(family, h=1e-5):
    quotients = []
    for p in family.parameters:
        for i in range(p.numel()):
            ends = []
            for step in (h, -h):
                with torch.no_grad():
                    p.view(-1)[i] += step
                    ends.append(float(exact_elbo(family.distribution())))
                    p.view(-1)[i] -= step
            quotients.append((ends[0] - ends[1]) / (2 * h))
    return torch.tensor(quotients, dtype=F64)


@pytest.mark.parametrize(
    "settings",
    [
        {"estimator": "reparameterised"},
        {"estimator": "analytic_entropy"},
        {"estimator": "score"},
        {"estimator": "score", "baseline": -2.0},
        {"estimator": "score", "baseline": "leave_one_out", "draws": 3},
        {"estimator": "reparameterised", "draws": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "family",
    [MeanField(2, 0.2, 0.7, dtype=F64), FullRank(2, 0.2, 0.7, dtype=F64), LowRank(2, 1, 0.2, 0.7, dtype=F64)],
    ids=str,
)
def test_every_estimator_has_the_bounds_gradient_as_its_mean(family, settings):
    """Source: central differences of the exact ELBO; five standard errors of 400 repeats."""
    own = gradient_variance(log_joint, family, repeats=400, generator=generator(), **settings)
    off = (own.mean - difference_quotients(family)).abs()
    assert bool((off <= 5 * own.standard_error + 1e-8).all())
    assert own.mean.shape == own.variance.shape == (len(own.names),)


def test_the_variances_are_those_of_the_formulas():
    """log joint -z^2/2 and q = N(m, 1): both gradients in m are polynomials in e ~ N(0, 1), whose moments are known."""
    m, c = 0.7, 0.5 * torch.log(number(2 * torch.pi)).item()
    q = Normal(number(m), number(1.0))

    def joint(z):
        return -0.5 * z**2

    path = gradient_variance(joint, q, repeats=2000, generator=generator())
    assert path.names == ("loc", "scale")
    # d/dm [-(m + e)^2 / 2] = -(m + e); log q(m + e) does not depend on m: variance 1
    assert float(path.variance[0]) == pytest.approx(1.0, abs=5 * (2 / 2000) ** 0.5)
    # f = -(m + e)^2/2 + e^2/2 + c = c - m^2/2 - m e;  gradient f e = a e - m e^2, variance a^2 + 2 m^2
    a = c - m**2 / 2
    plain = gradient_variance(joint, q, estimator="score", repeats=2000, generator=generator())
    assert float(plain.mean[0]) == pytest.approx(-m, abs=5 * float(plain.standard_error[0]))
    assert float(plain.variance[0]) == pytest.approx(a**2 + 2 * m**2, rel=0.15)
    # the best constant baseline for loc is E[f e^2] / E[e^2] = a: it leaves 2 m^2
    based = gradient_variance(joint, q, estimator="score", baseline=a, repeats=2000, generator=generator())
    assert float(based.variance[0]) == pytest.approx(2 * m**2, rel=0.25)
    assert float(path.variance[0]) != pytest.approx(float(plain.variance[0]), rel=0.02)


def test_more_draws_divide_the_variance():
    q = MeanField(2, 0.2, 0.7, dtype=F64)
    for estimator in ("reparameterised", "score"):
        one, ten = (
            gradient_variance(log_joint, q, estimator=estimator, draws=d, repeats=400, generator=generator())
            for d in (1, 10)
        )
        torch.testing.assert_close(one.variance / ten.variance, torch.full((4,), 10.0, dtype=F64), rtol=0.6, atol=0)


def test_the_pathwise_gradient_scatters_less_here():
    q = MeanField(2, 0.2, 0.7, dtype=F64)
    path, score = (
        gradient_variance(log_joint, q, estimator=e, repeats=400, generator=generator())
        for e in ("reparameterised", "score")
    )
    assert bool((score.variance > 1.5 * path.variance).all())


def test_any_torch_distribution_is_differentiated_in_its_own_parameters():
    tril = torch.tensor([[1.0, 0.0], [0.4, 0.8]], dtype=F64)
    q = MultivariateNormal(CENTRE + 0.1, scale_tril=tril)
    own = gradient_variance(log_joint, q, repeats=10, generator=generator())
    assert own.names[:3] == ("loc[0]", "loc[1]", "scale_tril[0, 0]")
    grouped = Independent(Normal(torch.zeros(2, dtype=F64), torch.ones(2, dtype=F64)), 1)
    assert gradient_variance(log_joint, grouped, repeats=3, generator=generator()).names[-1] == "scale[1]"
    assert not q.loc.requires_grad


def test_a_discrete_unknown_by_the_score():
    """z in {0, 1}: the bound and its gradient in the logit are sums of two terms."""
    logit = number(0.4)
    values = torch.tensor([-1.0, -2.5], dtype=F64)
    at = logit.clone().requires_grad_()
    p = torch.sigmoid(at)
    bound = (1 - p) * (values[0] - (1 - p).log()) + p * (values[1] - p.log())
    (exact,) = torch.autograd.grad(bound, at)
    own = gradient_variance(
        lambda z: values[z.long()], Bernoulli(logits=logit), estimator="score", repeats=1500, generator=generator()
    )
    assert own.names == ("logits",)
    assert abs(float(own.mean) - float(exact)) < 5 * float(own.standard_error)
