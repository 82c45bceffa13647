"""Held against the library `posteriors`: the same log joint, its own curvature, bound and Langevin step."""

import warnings

import pytest
import torch
from torch import nn

from bnnlib.nets import Categorical, Gaussian, Model, laplace, mean_field

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # of a library below it, at import
    import posteriors


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def regression():
    x = torch.randn(30, 3, generator=seeded(1), dtype=torch.float64)
    y = x @ torch.tensor([[1.0], [-0.5], [0.3]], dtype=torch.float64)
    y = y + 0.3 * torch.randn(30, 1, generator=seeded(2), dtype=torch.float64)
    return Model(nn.Linear(3, 1).double(), Gaussian(scale=0.3)), x, y


def classes():
    x = torch.randn(40, 3, generator=seeded(1), dtype=torch.float64)
    return Model(nn.Linear(3, 4).double(), Categorical()), x, torch.randint(4, (40,), generator=seeded(3))


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")  # torch's own forward mode
@pytest.mark.parametrize("make", [regression, classes])
def test_the_precision_of_laplace_is_their_dense_hessian(make):
    """A linear model's Gauss-Newton matrix is its Hessian."""
    model, x, y = make()
    fit = laplace(model, (x, y), evidence=False, progress=False)

    def log_posterior(w, batch):
        return model.log_joint(w, *batch), torch.zeros(0)

    transform = posteriors.laplace.dense_hessian.build(log_posterior)
    state, _ = transform.update(transform.init(fit.mean.detach()), (x, y))
    ours = torch.linalg.inv(fit.distribution.covariance_matrix)
    torch.testing.assert_close(ours, state.prec, rtol=1e-7, atol=1e-7)


def test_the_bound_is_theirs():
    """Their bound is an average over draws of everything, ours has the KL in closed form: equal within 5 errors."""
    model, x, y = regression()
    fit = mean_field(model, (x, y), steps=200, generator=seeded(4), progress=False)
    q = fit.distribution.base_dist

    def log_posterior(w, batch):
        return model.log_joint(w, *batch), torch.zeros(0)

    torch.manual_seed(0)
    draws = [posteriors.vi.diag.nelbo(q.loc, q.scale, (x, y), log_posterior)[0] for _ in range(2000)]
    theirs = torch.stack(draws).detach()
    prior = torch.distributions.Normal(model.prior.loc, model.prior.scale)
    divergence = torch.distributions.kl_divergence(q, prior).sum()
    w = fit.sample(20_000, seeded(5))
    misfit = -model.log_likelihood(w, x, y)
    ours = divergence + misfit.mean()
    error = (theirs.var() / 2000 + misfit.var() / 20_000).sqrt()
    assert abs(theirs.mean() - ours) < 5 * error
    assert error < 0.02 * abs(ours)
