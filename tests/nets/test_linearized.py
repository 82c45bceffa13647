"""Linearised predictions against Gaussian algebra written out, and against drawing the linearisation itself."""

import sys

import pytest
import torch
from torch import nn
from torch.distributions import HalfNormal, Independent, MultivariateNormal, Normal
from torch.func import jacrev

from bnnlib.data import Standardized
from bnnlib.nets import Categorical, Gaussian, HeteroscedasticGaussian, Model, Posterior, StudentT, laplace
from bnnlib.nets.empirical import Empirical
from bnnlib.nets.gauss_newton import LowRankPrecision
from bnnlib.nets.linearized import linearized_predictive

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def setting(likelihood, outputs):
    """A net, a full normal over w (in both representations) and its mean function and covariance at 5 inputs."""
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, outputs)).double()
    for i, p in enumerate(net.parameters()):
        p.data = normals(*p.shape, seed=i)
    model, x = Model(net, likelihood), 0.5 * normals(5, 2, seed=9)
    loc = model.start()
    diagonal, factor = 20 * normals(model.size, seed=5).exp(), 3 * normals(4, model.size, seed=6)
    factor[:, model.net_size :] = 0
    low = LowRankPrecision(loc, diagonal, factor)
    dense = MultivariateNormal(loc, precision_matrix=torch.diag(diagonal) + factor.T @ factor)
    rows = jacrev(lambda w: model(w, x))(loc)
    return model, x, low, dense, model(loc, x), rows @ dense.covariance_matrix @ rows.mT


@pytest.mark.parametrize("form", ["dense", "low rank"])
def test_known_normal_noise_adds_to_the_function_variance(form):
    """Source: f ~ N(f(m), J Sigma J^T) by autograd and matrix products; y adds its noise."""
    model, x, low, dense, mean, covariance = setting(Gaussian(scale=0.3), 2)
    found = linearized_predictive(model, dense if form == "dense" else low, x, 1, None, None, None)
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(found.mean, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.epistemic_var, variance, rtol=1e-10, atol=0)
    torch.testing.assert_close(found.aleatoric_var, torch.full_like(variance, 0.09), rtol=1e-10, atol=0)
    y = normals(5, 2, seed=3)
    exact = Normal(mean, (variance + 0.09).sqrt()).log_prob(y).sum(-1)
    torch.testing.assert_close(found.log_prob(y), exact, rtol=1e-10, atol=0)
    assert float(found.mc_error.max()) == 0


def test_unknown_noise_is_averaged_by_quadrature():
    """Source: Monte Carlo over the noise's posterior. Sixteen nodes lose a little of a wide posterior's tails."""
    model, x, low, _, mean, covariance = setting(Gaussian(scale=HalfNormal(1.0)), 1)
    diagonal = low.diagonal.clone()
    diagonal[-1] = 10.0**2  # log scale is known to 10 %
    narrow = LowRankPrecision(low.loc, diagonal, low.factor)
    found = linearized_predictive(model, narrow, x, 1, None, None, None)
    noise = (low.loc[-1] + 0.1 * normals(200_000, seed=1)).exp()
    torch.testing.assert_close(found.aleatoric_var[0, 0], noise.square().mean(), rtol=3e-3, atol=0)
    torch.testing.assert_close(found.epistemic_var[:, 0], covariance[:, 0, 0], rtol=1e-9, atol=0)
    scale = (covariance[0, 0, 0] + noise.square()).sqrt()
    exact = Normal(mean[0, 0], scale).log_prob(torch.tensor(2.0, dtype=F64)).exp().mean().log()
    y = torch.full((5, 1), 2.0, dtype=F64)
    torch.testing.assert_close(found.log_prob(y)[0], exact, rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("likelihood", "outputs"),
    [(Categorical(), 3), (StudentT(5.0, scale=0.3), 2), (HeteroscedasticGaussian(), 2)],
    ids=["Categorical", "StudentT", "HeteroscedasticGaussian"],
)
def test_other_likelihoods_draw_the_linear_function(likelihood, outputs):
    """Source: draws of w through f(m) + J (w - m), then the likelihood; means agree within five Monte Carlo errors."""
    model, x, low, dense, mean, _ = setting(likelihood, outputs)
    rows = jacrev(lambda w: model(w, x))(dense.mean)
    delta = normals(20_000, model.size, seed=4) @ dense.scale_tril.T
    f = mean + torch.einsum("nkp,sp->snk", rows, delta)
    exact = likelihood.predictive(f, f.new_zeros(len(f), 0), None, None)
    found = linearized_predictive(model, low, x, 20_000, generator(), None, None)
    error = (found.mc_error.square() + exact.mc_error.square()).sqrt()
    assert bool(((found.mean - exact.mean).abs() < 5 * error + 1e-12).all())
    torch.testing.assert_close(found.epistemic, exact.epistemic, rtol=0.05, atol=0)
    torch.testing.assert_close(found.aleatoric, exact.aleatoric, rtol=0.05, atol=0)


def test_outputs_of_one_point_are_drawn_together():
    """Two outputs that differ by a constant only: their difference has no spread in any draw."""
    net = nn.Linear(1, 2, bias=False).double()
    nn.init.ones_(net.weight)
    model = Model(net, StudentT(5.0, scale=0.1))
    half = torch.tensor([[1.0, 0.0], [1.0, 1e-4]], dtype=F64)
    found = linearized_predictive(
        model,
        MultivariateNormal(torch.zeros(2, dtype=F64), scale_tril=half),
        normals(4, 1),
        500,
        generator(),
        None,
        None,
    )
    f = found.components.loc
    assert float(f.std(0).min()) > 0.1
    assert float((f[..., 0] - f[..., 1]).abs().max()) < 1e-2


def test_a_linear_net_is_its_own_linearisation():
    """For a linear net the prediction by draws of w has the same moments, within the Monte Carlo error."""
    x, net = normals(30, 2), nn.Linear(2, 1).double()
    for p in net.parameters():
        nn.init.zeros_(p)
    y = x @ torch.tensor([[1.0], [-1.0]], dtype=F64) + 0.3 * normals(30, 1, seed=1)
    posterior = laplace(Model(net, Gaussian(scale=0.3), 1.0), (x, y), evidence=False, progress=False)
    drawn = Posterior(posterior.model, posterior.distribution, "by draws").predict(
        x, draws=20_000, generator=generator()
    )
    closed = posterior.predict(x)
    assert bool(((drawn.mean - closed.mean).abs() < 5 * drawn.mc_error).all())
    torch.testing.assert_close(drawn.epistemic, closed.epistemic, rtol=5 / (2 * 20_000) ** 0.5, atol=0)


def test_units_are_the_original_ones():
    """y -> 10 y + 5 stretches means and both standard deviations by ten, and each density loses log 10."""
    x, net = 3 + 2 * normals(30, 1), nn.Linear(1, 1).double()
    y = torch.sin(x) + 0.2 * normals(30, 1, seed=1)
    for p in net.parameters():
        nn.init.zeros_(p)
    results = []
    for a, b in ((1.0, 0.0), (10.0, 5.0)):
        model = Model(net, Gaussian(scale=0.5))
        posterior = laplace(model, Standardized(x, a * y + b), evidence=False, progress=False)
        results.append(posterior.predict(x))
    one, ten = results
    torch.testing.assert_close(ten.mean, 10 * one.mean + 5)
    torch.testing.assert_close(ten.epistemic, 10 * one.epistemic)
    torch.testing.assert_close(ten.aleatoric, 10 * one.aleatoric)
    torch.testing.assert_close(ten.log_prob(10 * y + 5), one.log_prob(y) - torch.tensor(10.0, dtype=F64).log())


def test_chunks_do_not_change_the_answer(monkeypatch):
    """Inputs are worked off in blocks that bound the memory; the block size has no part in the result."""
    model, x, low, *_ = setting(Gaussian(scale=0.3), 2)
    whole = linearized_predictive(model, low, x, 1, None, None, None)
    monkeypatch.setattr(sys.modules["bnnlib.nets.linearized"], "_CHUNK", 2 * model.size * 2)
    parts = linearized_predictive(model, low, x, 1, None, None, None)
    torch.testing.assert_close(parts.epistemic, whole.epistemic, rtol=1e-12, atol=0)
    assert torch.equal(parts.mean, whole.mean)


def test_a_factorised_normal_is_the_normal_with_that_diagonal():
    """Source: the dense normal with the same variances. A set of values has no such form and is refused."""
    model, x, *_ = setting(Gaussian(scale=0.3), 1)
    sd = 0.1 + torch.arange(model.size, dtype=F64) / model.size
    q, dense = Independent(Normal(model.start(), sd), 1), MultivariateNormal(model.start(), scale_tril=torch.diag(sd))
    a, b = (linearized_predictive(model, each, x, 1, None, None, None) for each in (q, dense))
    torch.testing.assert_close(a.epistemic, b.epistemic, rtol=1e-12, atol=0)
    with pytest.raises(TypeError, match="multivariate normal"):
        linearized_predictive(model, Empirical(model.start().unsqueeze(0)), x, 1, None, None, None)


def test_noise_is_not_lost_beside_a_huge_function_variance():
    """In float32 a difference of variances has no digit of noise left; source: the likelihood's own scale."""
    distribution = MultivariateNormal(torch.zeros(2), scale_tril=torch.diag(torch.tensor([1e3, 1e3])))
    p = Posterior(Model(nn.Linear(1, 1), Gaussian(scale=0.01)), distribution, "by hand", linearized=True)
    found = p.predict(torch.tensor([[10.0]]))
    assert found.epistemic.item() == pytest.approx(1e3 * 101**0.5, rel=1e-5)
    assert found.aleatoric.item() == pytest.approx(0.01, rel=1e-5)
