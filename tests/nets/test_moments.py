"""Moments without stored draws: closed forms against quadrature and Monte Carlo, streaming against the draws."""

from collections import OrderedDict

import pytest
import torch
from scipy import integrate, stats
from torch import nn
from torch.distributions import HalfNormal, Independent, Normal

from bnnlib.data import Scaling
from bnnlib.nets import Categorical, Gaussian, Model, Posterior, StudentT, bayesian
from bnnlib.nets.moments import relu_moments

F64 = torch.float64
SCALING = Scaling(torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.5]), torch.tensor([10.0]), torch.tensor([4.0]))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def factorised(net, likelihood, spread=0.3, scaling=None):
    net = net.double()
    for i, p in enumerate(net.parameters()):
        p.data = normals(*p.shape, seed=i)
    model = Model(net, likelihood)
    scale = spread * (0.5 + normals(model.size, seed=99).square())
    return Posterior(model, Independent(Normal(model.start(), scale), 1), "by hand", scaling=scaling)


def relu_net(bias=True, outputs=1):
    return nn.Sequential(nn.Linear(2, 5, bias=bias), nn.ReLU(), nn.Linear(5, outputs, bias=bias))


@pytest.mark.parametrize(("mean", "var"), [(0.0, 1.0), (1.3, 0.2), (-2.0, 4.0), (-3.0, 0.5), (8.0, 0.01)])
def test_relu_moments_are_their_integrals(mean, var):
    """Source: scipy's adaptive quadrature of a^k times the normal density over a > 0."""
    found = relu_moments(torch.tensor(mean, dtype=F64), torch.tensor(var, dtype=F64))
    middle = max(mean, 0.0)
    density = stats.norm(mean, var**0.5).pdf
    for k, own in enumerate(found, start=1):
        parts = ((0.0, middle), (middle, middle + 12 * var**0.5))
        exact = sum(integrate.quad(lambda a, k=k: a**k * density(a), *ends, epsabs=1e-14)[0] for ends in parts)
        assert float(own) == pytest.approx(exact, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("mean", [-1.5, 0.0, 2.0])
def test_relu_moments_of_a_certain_input_are_its_relu(mean):
    """A unit without bias at x = 0, or a weight that is known: no spread is a spread of zero, not NaN."""
    first, second = relu_moments(torch.tensor([mean]), torch.zeros(1))
    assert (float(first), float(second)) == (max(mean, 0.0), max(mean, 0.0) ** 2)


@pytest.mark.parametrize("scaling", [None, SCALING], ids=["as given", "standardised"])
@pytest.mark.parametrize("bias", [True, False])
def test_closed_moments_of_a_relu_net_are_those_of_many_draws(bias, scaling):
    """Source: 200,000 draws of w through the network, five standard errors."""
    p, x = factorised(relu_net(bias), Gaussian(scale=0.7), scaling=scaling), normals(3, 2, seed=7)
    found, n = p.moments(x), 200_000
    inputs = x if scaling is None else scaling.x(x)
    stretch, shift = (1.0, 0.0) if scaling is None else (4.0, 10.0)
    w = p.model.parameters_of(p.sample(n, generator()))
    hidden = inputs @ w["0.weight"].mT + (w["0.bias"].unsqueeze(1) if bias else 0)
    f = (hidden.relu() @ w["2.weight"].mT + (w["2.bias"].unsqueeze(1) if bias else 0)) * stretch + shift
    centred = f - f.mean(0)
    var, fourth = centred.square().mean(0), centred.pow(4).mean(0)
    assert bool(((found.mean - f.mean(0)).abs() < 5 * (var / n).sqrt()).all())
    assert bool(((found.epistemic**2 - var).abs() < 5 * ((fourth - var**2) / n).sqrt()).all())
    torch.testing.assert_close(found.aleatoric, torch.full_like(found.mean, 0.7 * stretch))
    assert float(found.mc_error.max()) == 0


def test_unknown_noise_enters_by_its_mean_square():
    """Source: E[exp(2u)] = exp(2 m + 2 v) for u ~ N(m, v); sixteen nodes are exact to a few parts in a thousand."""
    p = factorised(relu_net(), Gaussian(scale=HalfNormal(1.0)), spread=0.05)
    m, v = p.mean[-1], p.distribution.variance[-1]
    found = p.moments(normals(3, 2)).aleatoric ** 2
    torch.testing.assert_close(found, (2 * m + 2 * v).exp().expand(3, 1), rtol=1e-3, atol=0)


def test_single_precision_keeps_a_small_spread():
    """Var[relu(a)] as E2 - E^2 cancels where the mean is large against the spread; float64 is the second source."""
    p = factorised(relu_net(), Gaussian(scale=0.1), spread=1e-4)
    x = 30 + normals(20, 2)
    single = Model(p.model.to(dtype=torch.float32).net, p.model.likelihood)
    q = Independent(Normal(p.mean.float(), p.distribution.stddev.float()), 1)
    found = Posterior(single, q, "by hand").moments(x.float()).epistemic
    torch.testing.assert_close(found.double(), p.moments(x).epistemic, rtol=0.01, atol=0)


def test_layers_with_names_have_the_same_moments():
    layers = relu_net()
    named = nn.Sequential(OrderedDict(zip("abc", layers, strict=True)))
    p, x = factorised(layers, Gaussian(scale=0.7)), normals(6, 2, seed=7)
    q = Posterior(Model(named, Gaussian(scale=0.7)), p.distribution, "by hand")
    torch.testing.assert_close(q.moments(x, generator=generator()).mean, p.moments(x).mean, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("likelihood", "outputs"),
    [
        (Gaussian(scale=HalfNormal(1.0)), 1),
        (Gaussian(scale=HalfNormal(torch.ones(2))), 2),
        (StudentT(5.0, scale=0.3), 1),
        (Categorical(), 3),
    ],
    ids=["Gaussian", "a noise per output", "StudentT", "Categorical"],
)
def test_streamed_moments_are_those_of_the_same_draws(likelihood, outputs):
    """Source: predict() with the same generator, which keeps all draws."""
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, outputs))
    p, x = factorised(net, likelihood), normals(6, 2, seed=7)
    found, exact = (
        p.moments(x, draws=300, generator=generator(1)),
        p.predict(x, draws=300, generator=generator(1)).moments,
    )
    for name in ("mean", "epistemic", "aleatoric", "mc_error", "total"):
        torch.testing.assert_close(getattr(found, name), getattr(exact, name), rtol=1e-9, atol=1e-12)


def test_streamed_moments_agree_with_the_closed_form_within_their_error():
    """The same distribution by draws: mc_error is the size of what separates the two."""
    p, x = factorised(relu_net(), Gaussian(scale=0.7)), normals(6, 2, seed=7)
    closed, drawn = p.moments(x), p.predict(x, draws=4000, generator=generator(1)).moments
    gap = (drawn.mean - closed.mean).abs()
    assert bool((gap < 5 * drawn.mc_error).all())
    assert bool((gap > 0.001 * drawn.mc_error).any())


@pytest.mark.slow
def test_memory_does_not_grow_with_the_draws():
    """Peak of torch's allocations, by its profiler: the same for 50 draws and for 500."""
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    p, x = factorised(net, Gaussian(scale=0.7)), normals(20_000, 2)

    def peak(ask, draws):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as record:
            ask(x, draws=draws, generator=generator())
        level = highest = 0
        for event in record.profiler.kineto_results.events():
            if event.name() == "[memory]":
                level += event.nbytes()
                highest = max(highest, level)
        return highest

    assert peak(p.moments, 500) < 1.1 * peak(p.moments, 50)
    assert peak(p.predict, 500) > 2 * peak(p.predict, 50)  # the measure sees growth where there is some


@pytest.mark.parametrize("kept", ["*.weight", "last"])
def test_a_constant_weight_or_bias_is_not_forgotten(kept):
    """Source: the functions of the same draws. What is constant is no part of w, and still part of the function."""
    net = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    for i, p in enumerate(net.parameters()):
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
    posterior = bayesian(net, Gaussian(scale=0.5), scale=0.3, layers=kept)
    x = torch.tensor([[-1.0], [0.5], [2.0]], dtype=torch.float64)
    drawn = posterior.functions(x, 50, torch.Generator().manual_seed(0))
    found = posterior.moments(x, draws=50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found.mean, drawn.mean(0), rtol=1e-12, atol=0)
