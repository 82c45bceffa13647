"""Densities by scipy, Fisher information by autograd, priors of the noise by the change of variables."""

import math

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import Tensor
from torch.distributions import (
    Exponential,
    Gamma,
    HalfCauchy,
    HalfNormal,
    InverseGamma,
    LogNormal,
    Pareto,
    Poisson,
    Uniform,
)
from torch.distributions import MultivariateNormal as Vector
from torch.distributions import Normal as Real

from bnnlib.nets import Bernoulli, Categorical, Gaussian, HeteroscedasticGaussian, StudentT
from bnnlib.nets._sampling import _unchecked

F64 = torch.float64
NOTHING = torch.zeros(0, dtype=F64)


def made(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def one(value: float) -> Tensor:
    return torch.tensor(value, dtype=F64)


# log densities -----------------------------------------------------------------------------------


@pytest.mark.parametrize("given_as", [{"scale": 0.3}, {"var": 0.09}, {"precision": 1 / 0.09}])
def test_scale_var_and_precision_are_three_names_of_one_density(given_as):
    """scipy's normal and Student-t with standard deviation (or scale) 0.3."""
    f, y = made(0, 3, 5, 2), made(1, 5, 2)
    normal = scipy.stats.norm(f, 0.3).logpdf(y).sum(-1)
    torch.testing.assert_close(
        Gaussian(**given_as).log_prob(f, y, NOTHING), torch.as_tensor(normal), rtol=1e-12, atol=0
    )
    student = scipy.stats.t(3.5, f, 0.3).logpdf(y).sum(-1)
    found = StudentT(3.5, **given_as).log_prob(f, y, NOTHING)
    torch.testing.assert_close(found, torch.as_tensor(student), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["scale", "var", "precision"])
def test_unknown_noise_is_read_from_u_in_its_own_units(kind):
    """exp maps u to the noise; one value for all outputs, or one an output, or one a draw."""
    power = {"scale": 1.0, "var": 0.5, "precision": -0.5}[kind]
    f, y = made(0, 4, 5, 2), made(1, 5, 2)
    for prior, u in [(Gamma(2.0, 1.0), made(2, 4, 1)), (Gamma(torch.ones(2), torch.ones(2)), made(2, 4, 2))]:
        sd = u.exp() ** power
        expected = scipy.stats.norm(f, sd.unsqueeze(1)).logpdf(y).sum(-1)
        found = Gaussian(**{kind: prior}).log_prob(f, y, u)
        torch.testing.assert_close(found, torch.as_tensor(expected), rtol=1e-11, atol=0)
        p = Gaussian(**{kind: prior}).predictive(f, u, None, None)
        torch.testing.assert_close(p.aleatoric, sd.square().mean(0).sqrt().expand(5, 2), rtol=1e-12, atol=0)


def test_a_tensor_of_noise_is_one_value_an_output():
    f, y, sd = made(0, 5, 2), made(1, 5, 2), torch.tensor([0.1, 3.0], dtype=F64)
    expected = torch.as_tensor(scipy.stats.norm(f, sd).logpdf(y).sum(-1))
    torch.testing.assert_close(Gaussian(scale=sd).log_prob(f, y, NOTHING), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(Gaussian(scale=sd).log_likelihood(f, y, NOTHING), expected.sum(), rtol=1e-12, atol=0)


def test_heteroscedastic_categorical_and_bernoulli_are_scipys():
    f, y = made(0, 3, 5, 4), made(1, 5, 2)
    loc, scale = f[..., :2], (1 + f[..., 2:].exp()).log() + 1e-3
    expected = torch.as_tensor(scipy.stats.norm(loc, scale).logpdf(y).sum(-1))
    torch.testing.assert_close(HeteroscedasticGaussian().log_prob(f, y, NOTHING), expected, rtol=1e-11, atol=0)

    labels = torch.tensor([0, 3, 1, 2, 2])
    expected = scipy.special.log_softmax(f.numpy(), -1)[:, range(5), labels]
    for kind in (torch.int64, torch.int32, torch.uint8):
        found = Categorical().log_prob(f, labels.to(kind), NOTHING)
        torch.testing.assert_close(found, torch.as_tensor(expected), rtol=1e-12, atol=0)

    bits = (made(2, 5, 4) > 0).double()
    expected = torch.as_tensor(scipy.stats.bernoulli(scipy.special.expit(f.numpy())).logpmf(bits).sum(-1))
    for targets in (bits, bits.long(), bits.bool()):
        torch.testing.assert_close(Bernoulli().log_prob(f, targets, NOTHING), expected, rtol=1e-10, atol=0)
    p = Bernoulli().predictive(f, NOTHING, None, None)
    torch.testing.assert_close(p.log_prob(bits.long()), p.log_prob(bits))


@given(seed=st.integers(0, 10**6), k=st.integers(1, 3))
def test_the_sum_over_points_is_the_sum_of_log_prob(seed, k):
    """The short way through the mean squared error against the long one."""
    f, y, u = made(seed, 6, k), made(seed + 1, 6, k), made(seed + 2, 1)
    for likelihood, noise in [
        (Gaussian(var=0.3), NOTHING),
        (Gaussian(precision=Exponential(1.0)), u),
        (StudentT(2, scale=1.0), NOTHING),
    ]:
        total = likelihood.log_prob(f, y, noise).sum()
        torch.testing.assert_close(likelihood.log_likelihood(f, y, noise), total, rtol=1e-12, atol=1e-12)


@pytest.mark.misreading("S3.4")
def test_mean_squared_error_is_the_normal_log_likelihood_up_to_units():
    """N / (2 sd^2) MSE + N log(sd sqrt(2 pi)) = -log p(y | f), for any f, y and sd; nothing is added to anything."""
    f, y = made(0, 50, 1), made(1, 50, 1)
    for sd in (0.029, 0.577, 3.0):
        mse = (y - f).square().mean()
        constant = 50 * math.log(sd * math.sqrt(2 * math.pi))
        nll = -torch.distributions.Normal(f, sd).log_prob(y).sum()
        torch.testing.assert_close(50 / (2 * sd**2) * mse + constant, nll, rtol=1e-12, atol=0)
        torch.testing.assert_close(-Gaussian(scale=sd).log_likelihood(f, y, NOTHING), nll, rtol=1e-12, atol=0)


# Fisher information --------------------------------------------------------------------------------

NODES = [  # likelihood, outputs, y-nodes and their weights under p(y | f): E over y as a finite sum
    (Gaussian(scale=torch.tensor([0.4, 2.0])), 2, None),
    (StudentT(4.5, scale=0.7), 1, "t"),
    (HeteroscedasticGaussian(min_scale=0.1), 2, "normal"),
    (Categorical(), 4, "labels"),
    (Bernoulli(), 1, "bits"),
]


def expectation(likelihood, f: Tensor, nodes: str | None):
    """Observations y and their probabilities given f: exact, or 4,000 nodes of equal weight."""
    middle = ((torch.arange(4000, dtype=F64) + 0.5) / 4000).numpy()
    if nodes == "labels":
        return [(torch.tensor([c]), p) for c, p in enumerate(f.softmax(-1))]
    if nodes == "bits":
        return [(one(v).reshape(1, 1), torch.sigmoid(f if v else -f).squeeze()) for v in (0.0, 1.0)]
    if nodes == "t":
        law = scipy.stats.t(likelihood.df, float(f[0]), 0.7)
        return [(torch.as_tensor(law.ppf(middle)).reshape(-1, 1), None)]
    if nodes == "normal":
        loc, scale = likelihood.split(f)
        return [(torch.as_tensor(scipy.stats.norm(float(loc), float(scale)).ppf(middle)).reshape(-1, 1), None)]
    return [(made(9, 1, len(f)), one(1.0))]  # normal noise: the Hessian does not depend on y


@pytest.mark.parametrize(("likelihood", "outputs", "nodes"), NODES)
def test_the_root_of_the_fisher_information_squares_to_the_expected_hessian(likelihood, outputs, nodes):
    """A A^T = E_y[-d^2 log p(y | f) / df^2], the Hessian by autograd."""
    for seed in range(3):
        f = made(seed, outputs)

        def mean_nll(v: Tensor, at: Tensor = f) -> Tensor:
            total = one(0.0)
            for y, weight in expectation(likelihood, at, nodes):
                log_p = likelihood.log_prob(v.expand(len(y), -1), y, NOTHING)
                total = total - (log_p.mean() if weight is None else weight * log_p.sum())
            return total

        hessian = torch.autograd.functional.hessian(mean_nll, f)
        root = likelihood.fisher_sqrt(f.unsqueeze(0), NOTHING)[0]
        tolerance = 2e-3 if nodes in ("t", "normal") else 1e-10  # the nodes cut the tails
        torch.testing.assert_close(root @ root.T, hessian, rtol=tolerance, atol=tolerance)


def test_the_fisher_information_of_unknown_noise_is_one_over_its_variance():
    u = made(0, 1)
    root = Gaussian(precision=Gamma(2.0, 1.0)).fisher_sqrt(made(1, 3, 2), u)
    torch.testing.assert_close(root @ root.mT, u.exp() * torch.eye(2, dtype=F64).expand(3, 2, 2), rtol=1e-12, atol=0)


# priors of the noise -------------------------------------------------------------------------------

PRIORS = [
    (HalfNormal(one(1.5)), scipy.stats.halfnorm(scale=1.5)),
    (Gamma(one(2.0), one(0.5)), scipy.stats.gamma(2.0, scale=2.0)),
    (LogNormal(one(0.3), one(0.8)), scipy.stats.lognorm(0.8, scale=math.exp(0.3))),
    (Uniform(one(0.5), one(3.0)), scipy.stats.uniform(0.5, 2.5)),
    (InverseGamma(one(3.0), one(2.0)), scipy.stats.invgamma(3.0, scale=2.0)),
    (HalfCauchy(one(0.7)), scipy.stats.halfcauchy(scale=0.7)),
]


@pytest.mark.parametrize(("prior", "law"), PRIORS)
def test_the_density_of_u_is_scipys_times_the_jacobian(prior, law):
    """p(u) = p(v(u)) |dv/du|, the derivative by finite differences; the whole is 1."""
    likelihood = Gaussian(scale=prior)

    def value(u: float) -> float:
        return float(torch.distributions.biject_to(prior.support)(one(u)))

    for u in (-2.0, 0.1, 1.3):
        slope = (value(u + 1e-5) - value(u - 1e-5)) / 2e-5
        expected = law.logpdf(value(u)) + math.log(slope)
        assert likelihood.unknown_log_prior(one(u).reshape(1)).item() == pytest.approx(expected, abs=1e-8)
    whole, _ = quad(lambda u: likelihood.unknown_log_prior(one(u).reshape(1)).exp().item(), -30, 30, limit=300)
    assert whole == pytest.approx(1.0, abs=1e-6)


def test_several_noises_have_a_sum_of_log_priors():
    rates = torch.tensor([0.5, 2.0, 7.0], dtype=F64)
    likelihood, u = Gaussian(precision=Exponential(rates)), made(0, 4, 3)
    assert likelihood.unknown_size == 3
    each = sum(Gaussian(precision=Exponential(r)).unknown_log_prior(u[:, i : i + 1]) for i, r in enumerate(rates))
    torch.testing.assert_close(likelihood.unknown_log_prior(u), each, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("prior", "start"),
    [
        (Gamma(3.0, 2.0), 1.5),
        (HalfCauchy(2.0), 1.0),
        (InverseGamma(0.5, 2.0), 1.0),
        (Pareto(2.0, 1.0), 3.0),
        (Uniform(1.0, 2.0), 1.5),
    ],
)
def test_inference_starts_where_the_prior_has_mass(prior, start):
    """At the mean, or 1 above the smallest value where there is none."""
    u = Gaussian(scale=prior).unknown_start()
    assert torch.distributions.biject_to(prior.support)(u).item() == pytest.approx(start, rel=1e-5)
    assert bool(torch.isfinite(Gaussian(scale=prior).unknown_log_prior(u)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scale": 0.1, "var": 0.01}, "exactly one of scale, var, precision; got scale, var"),
        ({}, "exactly one of scale, var, precision; got none"),
        ({"scale": 0.0}, "scale must be positive and finite, got 0.0"),
        ({"var": -1.0}, "var must be positive and finite, got -1.0"),
        ({"precision": math.inf}, "precision must be positive and finite"),
        ({"scale": torch.tensor([1.0, math.nan])}, "scale must be positive and finite"),
        ({"scale": Real(1.0, 1.0)}, "a prior on scale must be a density on positive numbers"),
        ({"scale": Poisson(1.0)}, "a prior on scale must be a density on positive numbers"),
        ({"scale": Vector(torch.zeros(2), torch.eye(2))}, "must be univariate"),
    ],
)
def test_noise_that_cannot_be_is_refused(wrong, message):
    for family in (Gaussian, lambda **k: StudentT(3, **k)):
        with pytest.raises(ValueError, match=message):
            family(**wrong)


def test_settings_of_the_wrong_kind_are_refused():
    with pytest.raises(TypeError, match="a number, a tensor or a prior distribution, not str"):
        Gaussian(scale="0.1")
    for df in (0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="df must be a positive number"):
            StudentT(df, scale=1.0)
    with pytest.raises(ValueError, match="min_scale must be positive"):
        HeteroscedasticGaussian(min_scale=0.0)
    with pytest.raises(TypeError, match="Categorical has no noise scale"):
        Categorical().log_scale(NOTHING)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_where_torchs_checks_are_off_a_broken_proposal_gets_nan_and_no_error(dtype):
    """A trajectory that diverges is refused by its density; the copy in another dtype must not check again."""
    likelihood = Gaussian(scale=_unchecked(HalfNormal(1.0)))
    u = torch.tensor([[math.nan]], dtype=dtype)
    assert torch.isnan(likelihood.unknown_log_prior(u)).all()
