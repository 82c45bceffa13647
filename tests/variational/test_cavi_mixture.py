"""A mixture of normals by coordinate ascent, against Monte Carlo, torch's Wishart, scikit-learn and exact sums."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.datasets import load_iris
from sklearn.mixture import BayesianGaussianMixture
from torch.distributions import Categorical, Dirichlet, MultivariateNormal, Wishart, kl_divergence

from bnnlib.variational import cavi_mixture
from bnnlib.variational.cavi_mixture import MixtureBelief, _kl_normal_wishart

PETALS = torch.tensor(load_iris().data[:, 2:])


def wisharts(q):
    scales = torch.linalg.inv(q.scatter).numpy()
    return [stats.wishart(df=float(df), scale=scale) for df, scale in zip(q.df, scales, strict=True)]


def log_prob(q, pi, mu, precision):
    """log density of (pi, mu, Lambda), from torch's and scipy's distributions."""
    total = q.weights.log_prob(pi)
    for k, wishart in enumerate(wisharts(q)):
        total = total + torch.tensor(wishart.logpdf(np.moveaxis(precision[:, k].numpy(), 0, -1)))
        total = total + MultivariateNormal(q.loc[k], precision_matrix=q.count[k] * precision[:, k]).log_prob(mu[:, k])
    return total


def one_draw_bounds(x, fit, n, seed):
    """log p(x, z, parameters) - log q(z, parameters) for n draws from q: its mean is the ELBO."""
    q, rng = fit.posterior, np.random.default_rng(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pi = q.weights.sample((n,))
        precision = torch.stack([torch.tensor(w.rvs(n, random_state=rng)) for w in wisharts(q)], 1)
        mu = MultivariateNormal(q.loc, precision_matrix=q.count.reshape(-1, 1, 1) * precision).sample()
        labels = Categorical(fit.responsibilities)
        z = labels.sample((n,))
    given_z = MultivariateNormal(mu.unsqueeze(1), precision_matrix=precision.unsqueeze(1)).log_prob(x.unsqueeze(1))
    joint = given_z.gather(-1, z.unsqueeze(-1)).squeeze(-1) + pi.log().gather(-1, z)
    rest = log_prob(fit.prior, pi, mu, precision) - log_prob(q, pi, mu, precision)
    return joint.sum(-1) - labels.log_prob(z).sum(-1) + rest


def test_the_bound_equals_its_own_average():
    fit = cavi_mixture(PETALS, 3, generator=torch.Generator().manual_seed(0))
    draws = one_draw_bounds(PETALS, fit, 3000, seed=1)
    error = draws.std().item() / len(draws) ** 0.5
    assert error < 0.05
    assert fit.elbo[-1].item() == pytest.approx(draws.mean().item(), abs=5 * error)


@settings(max_examples=25)
@given(st.integers(1, 5), st.integers(0, 10_000), st.sampled_from([0.01, 1.0, 5.0]))
def test_the_bound_never_falls(components, seed, concentration):
    g = torch.Generator().manual_seed(seed)
    x = PETALS[torch.randperm(150, generator=g)[:60]]
    fit = cavi_mixture(x, components, concentration=concentration, sweeps=60, generator=g)
    assert (fit.elbo.diff() >= -1e-10).all()
    assert torch.allclose(fit.responsibilities.sum(-1), torch.ones(60, dtype=torch.float64))
    assert fit.posterior.concentration.sum().item() == pytest.approx(concentration * components + 60)
    assert fit.posterior.df.sum().item() == pytest.approx(2 * components + 60)


def test_one_component_is_the_exact_posterior_and_its_bound_the_evidence():
    x = PETALS[:40]
    fit = cavi_mixture(x, 1)
    q, p = fit.posterior, fit.prior
    at = torch.tensor([[[1.5, 0.3]]], dtype=torch.float64)
    precision = torch.tensor([[[[30.0, -2.0], [-2.0, 80.0]]]], dtype=torch.float64)
    sure = torch.ones(1, 1, dtype=torch.float64)
    joint = (
        log_prob(p, sure, at, precision)
        + MultivariateNormal(at[0, 0], precision_matrix=precision[0, 0]).log_prob(x).sum()
    )
    evidence = joint - log_prob(q, sure, at, precision)
    assert fit.elbo[-1].item() == pytest.approx(evidence.item(), abs=1e-8)


def evidence_of(x, prior):
    """log p(x) by a sum over every labelling, each of which has its evidence in closed form."""
    components = len(prior.concentration)
    one = {"loc": prior.loc[0], "count": prior.count[0].item(), "df": prior.df[0].item(), "scatter": prior.scatter[0]}
    group = {(): torch.zeros((), dtype=torch.float64)}
    for size in range(1, len(x) + 1):
        for members in itertools.combinations(range(len(x)), size):
            some = x[list(members)]
            group[members] = cavi_mixture(some, 1, **one).elbo[-1] if size > 1 else student(some[0], one)
    terms = []
    for z in itertools.product(range(components), repeat=len(x)):
        members = [tuple(i for i, label in enumerate(z) if label == k) for k in range(components)]
        counts = prior.concentration + torch.tensor([len(m) for m in members])
        weights = log_norm(counts) - log_norm(prior.concentration)
        terms.append(weights + sum(group[m] for m in members))
    return torch.stack(terms).logsumexp(0)


def log_norm(concentration):
    return torch.lgamma(concentration).sum() - torch.lgamma(concentration.sum())


def student(point, one):
    freedom = one["df"] - len(point) + 1
    shape = one["scatter"] * (one["count"] + 1) / (one["count"] * freedom)
    return torch.tensor(stats.multivariate_t(one["loc"].numpy(), shape.numpy(), df=freedom).logpdf(point.numpy()))


def test_the_bound_lies_below_the_exact_evidence():
    x = PETALS[[0, 20, 60, 80, 110, 140]]
    fit = cavi_mixture(x, 2, generator=torch.Generator().manual_seed(3))
    evidence = evidence_of(x, fit.prior).item()
    assert fit.elbo[-1].item() < evidence < fit.elbo[-1].item() + 4
    # With one of the two orders only, about log 2 is lost before anything else is.
    assert evidence - fit.elbo[-1].item() > 0.5


def test_the_fixed_point_is_that_of_scikit_learn():
    reference = BayesianGaussianMixture(
        n_components=3,
        weight_concentration_prior_type="dirichlet_distribution",
        weight_concentration_prior=1.0,
        reg_covar=0,
        tol=1e-12,
        max_iter=5000,
        random_state=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it may stop at max_iter; the comparison below decides
        reference.fit(PETALS.numpy())
    start = torch.tensor(reference.predict_proba(PETALS.numpy()))
    q = cavi_mixture(PETALS, 3, start=start, tol=1e-12).posterior
    assert q.concentration.numpy() == pytest.approx(reference.weight_concentration_, abs=1e-5)
    assert q.count.numpy() == pytest.approx(reference.mean_precision_, abs=1e-5)
    assert q.df.numpy() == pytest.approx(reference.degrees_of_freedom_, abs=1e-5)
    assert q.loc.numpy() == pytest.approx(reference.means_, abs=1e-6)
    assert q.cov.numpy() == pytest.approx(reference.covariances_, abs=1e-6)
    ours = q.plug_in.log_prob(PETALS).numpy()
    mix = sum(
        w * stats.multivariate_normal(m, c).pdf(PETALS.numpy())
        for w, m, c in zip(reference.weights_, reference.means_, reference.covariances_, strict=True)
    )
    assert ours == pytest.approx(np.log(mix), abs=1e-5)


@given(st.integers(1, 4), st.integers(0, 10_000))
def test_the_divergence_of_normal_wisharts(size, seed):
    g = torch.Generator().manual_seed(seed)

    def belief():
        root = torch.randn(1, size, size + 2, dtype=torch.float64, generator=g)
        free = torch.rand(3, 1, dtype=torch.float64, generator=g)
        loc = torch.randn(1, size, dtype=torch.float64, generator=g)
        return MixtureBelief(free[:1].exp().squeeze(0), loc, 0.5 + free[1], size + 3 * free[2], root @ root.mT)

    q, p = belief(), belief()
    wq, wp = (Wishart(b.df[0], precision_matrix=b.scatter[0]) for b in (q, p))
    scale = q.df[0] * torch.linalg.inv(q.scatter[0])  # E[Lambda]
    shift = q.loc[0] - p.loc[0]
    ratio = p.count[0] / q.count[0]
    given_precision = 0.5 * (p.count[0] * shift @ scale @ shift + size * (ratio - 1 - ratio.log()))
    expected = kl_divergence(wq, wp) + given_precision
    assert _kl_normal_wishart(q, p).item() == pytest.approx(expected.item(), rel=1e-8, abs=1e-8)


def test_equal_generators_give_equal_fits_and_the_global_state_stays():
    state = torch.get_rng_state()
    fits = [cavi_mixture(PETALS, 3, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert torch.equal(fits[0].elbo, fits[1].elbo)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_it_says_of_itself():
    fit = cavi_mixture(PETALS, 2, concentration=0.5, generator=torch.Generator().manual_seed(6))
    assert fit.converged
    assert isinstance(fit.posterior.weights, Dirichlet)
    assert fit.prior.concentration.tolist() == [0.5, 0.5]
    assert not cavi_mixture(PETALS, 2, sweeps=1, generator=torch.Generator().manual_seed(6)).converged
    grid = torch.cartesian_prod(*torch.linspace(-6, 14, 201, dtype=torch.float64).expand(2, -1))
    assert fit.posterior.plug_in.log_prob(grid).exp().sum().item() * 0.01 == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(5)}, "shape"),
        ({"x": torch.ones(5, 2).long()}, "floating point"),
        ({"x": torch.tensor([[1.0], [math.inf]])}, "infinite"),
        ({"components": 0}, "components"),
        ({"components": 151}, "components"),
        ({"concentration": 0.0}, "concentration"),
        ({"count": -1.0}, "count"),
        ({"df": 1.0}, "df"),
        ({"loc": torch.zeros(3)}, "loc"),
        ({"scatter": torch.eye(3)}, "scatter"),
        ({"scatter": -torch.eye(2)}, "positive definite"),
        ({"x": torch.ones(5, 2)}, "scatter must be positive definite"),
        ({"start": torch.ones(150, 3)}, "sums to one"),
        ({"start": torch.ones(150, 2)}, "shape"),
        ({"sweeps": 0}, "sweeps"),
    ],
)
def test_bad_input(change, message):
    arguments = {"x": PETALS, "components": 3} | change
    with pytest.raises(ValueError, match=message):
        cavi_mixture(arguments.pop("x"), arguments.pop("components"), **arguments)
