"""laplace on models where it is exact: linear ones, in the weights and in the function space; then its promises."""

import math
import sys

import numpy as np
import pytest
import torch
from scipy import optimize, stats
from torch import nn
from torch.distributions import Gamma, HalfNormal, StudentT
from torch.func import jacrev

from bnnlib.nets import Bernoulli, Categorical, Gaussian, Model, laplace
from bnnlib.nets import StudentT as Noise

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def with_ones(x):
    return torch.cat([x, torch.ones(len(x), 1, dtype=F64)], 1)


def network(*layers, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(*(make() for make in layers)).double()


def tight(model, data, **settings):
    return laplace(model, data, progress=False, **{"tolerance": 1e-13, "steps": 2000, **settings})


def line(inputs, outputs):
    return network(lambda: nn.Linear(inputs, outputs))[0]


@pytest.fixture(params=[(40, 5), (8, 20)], ids=["more data than weights", "more weights than data"])
def regression(request):
    """A linear regression with known answer: inputs, targets, design matrix."""
    points, inputs = request.param
    x = normals(points, inputs)
    y = 0.5 * x @ normals(inputs, 1, seed=1) + 0.7 + 0.3 * normals(points, 1, seed=2)
    return x, y, with_ones(x)


def test_known_noise_gives_the_exact_posterior(regression):
    """Source: Bishop (2006), eq. 3.53 and 3.54: precision A + Phi^T Phi / var, mean from the normal equations."""
    x, y, phi = regression
    posterior = laplace(Model(line(x.shape[1], 1), Gaussian(scale=0.3), 0.8), (x, y), evidence=False)
    precision = torch.eye(phi.shape[1], dtype=F64) / 0.64 + phi.T @ phi / 0.09
    mean = torch.linalg.solve(precision, phi.T @ y[:, 0] / 0.09)
    torch.testing.assert_close(posterior.mean, mean, rtol=1e-9, atol=1e-10)
    exact = torch.linalg.inv(precision)
    torch.testing.assert_close(posterior.distribution.variance, exact.diagonal(), rtol=1e-8, atol=0)

    new = 3 * normals(6, x.shape[1], seed=3)
    predictive, rows = posterior.predict(new), with_ones(new)
    torch.testing.assert_close(predictive.mean[:, 0], rows @ mean, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(predictive.epistemic_var[:, 0], (rows @ exact @ rows.T).diagonal(), rtol=1e-8, atol=0)
    torch.testing.assert_close(predictive.aleatoric_var, torch.full((6, 1), 0.09, dtype=F64), rtol=1e-8, atol=0)


def test_known_noise_gives_the_exact_evidence(regression):
    """Source: the marginal of the targets is N(0, Phi A^-1 Phi^T + var), by scipy."""
    x, y, phi = regression
    posterior = laplace(Model(line(x.shape[1], 1), Gaussian(scale=0.3), 0.8), (x, y), evidence=False)
    marginal = 0.64 * phi @ phi.T + 0.09 * torch.eye(len(y), dtype=F64)
    exact = stats.multivariate_normal(np.zeros(len(y)), marginal.numpy()).logpdf(y[:, 0].numpy())
    assert posterior.diagnostics["log_evidence"] == pytest.approx(exact, rel=1e-10)


def test_a_wide_net_predicts_as_its_gaussian_process():
    """Source: Gaussian process formulas with kernel J A^-1 J^T around the mode (Khan et al. 2019)."""
    net = network(lambda: nn.Linear(1, 30), nn.Tanh, lambda: nn.Linear(30, 1))
    model, x, new = Model(net, Gaussian(scale=0.4)), normals(9, 1), 2 * normals(7, 1, seed=1)
    y = torch.sin(2 * x)
    posterior = tight(model, (x, y), evidence=False)

    def rows(points):
        return jacrev(lambda v: model(v, points)[:, 0])(posterior.mean)

    old, other, covariance = rows(x), rows(new), torch.diag(model.prior.scale.double() ** 2)
    inside = torch.linalg.inv(old @ covariance @ old.T + 0.16 * torch.eye(9, dtype=F64))
    cross = other @ covariance @ old.T
    predictive = posterior.predict(new)
    exact = (other @ covariance @ other.T - cross @ inside @ cross.T).diagonal()
    torch.testing.assert_close(predictive.epistemic_var[:, 0], exact, rtol=1e-8, atol=0)
    # At a mode the prior pulls as hard as the data: A w = J^T (y - f) / var.
    mode = model.prior.scale.double() ** 2 * (old.T @ ((y - model(posterior.mean, x))[:, 0] / 0.16))
    torch.testing.assert_close(posterior.mean, mode, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["scale", "precision"])
def test_prior_and_noise_maximise_the_exact_evidence(regression, kind):
    """Source: scipy maximises the marginal likelihood of the targets with the noise prior's log density."""
    x, y, phi = regression
    one = torch.ones((), dtype=F64)  # torch's Gamma computes in the type of its own parameters
    likelihood = Gaussian(scale=HalfNormal(one)) if kind == "scale" else Gaussian(precision=Gamma(3 * one, one))
    posterior = tight(Model(line(x.shape[1], 1), likelihood), (x, y))
    weights, bias = (phi[:, :-1] @ phi[:, :-1].T).numpy(), np.ones((len(y), len(y)))

    def minus_evidence(at):
        log_var_w, log_var_b, u = at
        var = np.exp(2 * u) if kind == "scale" else np.exp(-u)
        prior = stats.halfnorm.logpdf(np.exp(u)) if kind == "scale" else stats.gamma(3.0).logpdf(np.exp(u))
        marginal = np.exp(log_var_w) * weights + np.exp(log_var_b) * bias + var * np.eye(len(y))
        fit = stats.multivariate_normal(np.zeros(len(y)), marginal).logpdf(y[:, 0].numpy())
        return -fit - prior - u  # + u: the density of u = log(value)

    best = optimize.minimize(minus_evidence, [0.0, 0.0, 0.0], options={"gtol": 1e-7})
    found = [2 * math.log(posterior.diagnostics[f"prior_sd {k}"]) for k in ("weight", "bias")] + [
        float(posterior.mean[-1])
    ]
    assert posterior.diagnostics["log_evidence"] == pytest.approx(-best.fun, rel=1e-11)
    assert found == pytest.approx(best.x.tolist(), abs=1e-5)
    for direction in 1e-4 * np.eye(3):
        slope = (minus_evidence(found + direction) - minus_evidence(found - direction)) / 2e-4
        assert slope == pytest.approx(0, abs=1e-6)


def test_each_output_finds_its_own_noise():
    """Source: MacKay (1992): var = squared residuals / (N - gamma), gamma from each output's own covariance."""
    x = normals(60, 3)
    y = x @ normals(3, 2, seed=1) + torch.tensor([0.1, 0.8], dtype=F64) * normals(60, 2, seed=2)
    # So wide a half-normal that log scale has the density e^u: one observation less in the formula's count.
    model = Model(line(3, 2), Gaussian(scale=HalfNormal(1e6 * torch.ones(2, dtype=F64))))
    posterior = tight(model, (x, y))
    weight, bias = (posterior.diagnostics[f"prior_sd {k}"] ** -2 for k in ("weight", "bias"))
    prior, phi = torch.diag(torch.tensor([weight, weight, weight, bias], dtype=F64)), with_ones(x)
    residuals = (y - model(posterior.mean, x)).square().sum(0)
    for k, var in enumerate((2 * posterior.mean[-2:]).exp()):
        gamma = torch.trace(torch.linalg.solve(prior + phi.T @ phi / var, phi.T @ phi / var))
        torch.testing.assert_close(var, residuals[k] / (60 - gamma - 1), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("likelihood", "outputs", "y"),
    [
        (Bernoulli(), 2, (normals(30, 2, seed=1) > 0).double()),
        (Categorical(), 3, torch.arange(30) % 3),
    ],
    ids=["Bernoulli", "Categorical"],
)
def test_for_classes_it_is_the_mode_and_the_exact_hessian(likelihood, outputs, y):
    """Source: zero gradient and autograd's Hessian of the log joint; the model is linear, so the matrices agree."""
    model = Model(line(4, outputs), likelihood)
    x = normals(30, 4)
    posterior = tight(model, (x, y), evidence=False)
    gradient = jacrev(lambda w: model.log_joint(w, x, y))
    torch.testing.assert_close(gradient(posterior.mean), torch.zeros_like(posterior.mean), rtol=0, atol=1e-7)
    exact = torch.linalg.inv(-jacrev(gradient)(posterior.mean))
    torch.testing.assert_close(posterior.distribution.covariance_matrix, exact, rtol=1e-6, atol=1e-9)
    sign, log_det = torch.linalg.slogdet(exact)
    evidence = model.log_joint(posterior.mean, x, y) + 0.5 * (model.size * math.log(2 * math.pi) + log_det)
    assert sign > 0
    assert posterior.diagnostics["log_evidence"] == pytest.approx(float(evidence), rel=1e-9)


def test_a_nonlinear_net_ends_at_a_mode():
    """Source: autograd's gradient of the log joint is zero at the mean; the prior is the given one, heavy noise too."""
    net = network(lambda: nn.Linear(2, 10), nn.Tanh, lambda: nn.Linear(10, 1))
    model, x = Model(net, Noise(4.0, scale=0.1)), normals(50, 2)
    y = torch.sin(2 * x[:, :1]) + 0.1 * normals(50, 1, seed=1)
    posterior = tight(model, (x, y), evidence=False)
    gradient = jacrev(lambda w: model.log_joint(w, x, y))(posterior.mean)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-5)


def test_failed_steps_do_not_freeze_the_weights(monkeypatch, regression):
    """Where no step helps for a while, as at a kink of a ReLU, the damping must not outlast it.

    It did: the evidence then settled around weights that could not move, and the fit stopped half a nat short.
    """
    x, y, _ = regression
    model = Model(line(x.shape[1], 1), Gaussian(scale=HalfNormal(1.0)))
    state, calls = sys.modules["bnnlib.nets.laplace"]._State, []
    move = state.move

    def fails_at_first(self):
        calls.append(1)
        if len(calls) <= 60:
            self._energy = lambda w: torch.tensor(math.nan)
        else:
            self.__dict__.pop("_energy", None)
        move(self)

    free = laplace(model, (x, y), progress=False)
    monkeypatch.setattr(state, "move", fails_at_first)
    held = laplace(model, (x, y), progress=False)
    assert held.diagnostics["log_evidence"] == pytest.approx(free.diagnostics["log_evidence"], abs=0.05)
    assert len(calls) > 60


def test_the_generator_has_no_part(regression):
    """The method has no randomness: other seeds and a moved global state give the same bits."""
    x, y, _ = regression
    model = Model(line(x.shape[1], 1), Gaussian(scale=HalfNormal(1.0)))
    results = [laplace(model, (x, y), generator=generator(seed), progress=False) for seed in (0, 1)]
    assert torch.equal(results[0].mean, results[1].mean)
    assert torch.equal(results[0].distribution.variance, results[1].distribution.variance)


def test_priors_that_are_not_normal_are_refused():
    model = Model(nn.Linear(1, 1), Gaussian(scale=0.1), StudentT(3.0))
    with pytest.raises(ValueError, match="normal priors"):
        laplace(model, (torch.zeros(3, 1), torch.zeros(3, 1)))


@pytest.mark.parametrize(
    "y", [torch.zeros(9, 1), torch.linspace(-1, 1, 9).unsqueeze(-1)], ids=["constant", "exact line"]
)
def test_noise_that_goes_to_zero_is_named(y):
    """Targets without noise and noise without a lower bound: the evidence has no maximum."""
    x = torch.linspace(-1, 1, 9).unsqueeze(-1)
    net = nn.Linear(1, 1)
    nn.init.zeros_(net.weight)
    with pytest.raises(FloatingPointError, match="noise went to"):
        laplace(Model(net, Gaussian(scale=HalfNormal(1.0)), 1.0), (x, y), steps=1000, tolerance=1e-9, progress=False)


def test_one_point_is_enough():
    """Source: the exact posterior of one observation of a bias."""
    net = line(1, 1)
    x, y = torch.zeros(1, 1, dtype=F64), torch.ones(1, 1, dtype=F64)
    posterior = laplace(Model(net, Gaussian(scale=0.5), 1.0), (x, y), evidence=False, progress=False)
    torch.testing.assert_close(posterior.mean, torch.tensor([0.0, 0.8], dtype=F64))
    torch.testing.assert_close(posterior.distribution.variance, torch.tensor([1.0, 0.2], dtype=F64))
