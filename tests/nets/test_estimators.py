"""Sampled outputs: each example's distribution is that of sampled weights, and the gradient scatters less."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F

from bnnlib.nets import Gaussian, Model
from bnnlib.nets.estimators import KINDS, SampledOutputs, noisy_forward

F64 = torch.float64
SAMPLED = KINDS[1:]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def made(build, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().double()


def model_of(build):
    model = Model(made(build), Gaussian(scale=1.0))
    loc = model.start()
    return model, loc, 0.1 + normals(len(loc), seed=5).abs()


def small_net():
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))


def conv_net():
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))


LAYERS = {
    "dense": (lambda: nn.Linear(3, 4), (3,)),
    "dense, no bias": (lambda: nn.Linear(3, 4, bias=False), (3,)),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3, groups=2, dilation=2), (4, 5)),
    "Conv2d": (lambda: nn.Conv2d(2, 3, (2, 3), bias=False), (2, 2, 3)),
    "Conv1d, many positions": (lambda: nn.Conv1d(4, 6, 3, groups=2, stride=2, padding=1), (4, 7)),
    "Conv2d, many positions": (lambda: nn.Conv2d(2, 3, 3, padding="same", padding_mode="circular"), (2, 4, 4)),
    "a sequence": (lambda: nn.Linear(3, 2), (5, 3)),
}
ONE_PLACE = list(LAYERS)[:4]


def closed_form(model, loc, scale, x):
    """Mean and variance of a layer's outputs: it is linear in w, so f = J w + const has variance J^2 scale^2."""
    jacobian = jacrev(lambda w: model(w, x))(loc)
    return model(loc, x), jacobian.square() @ scale.square()


@pytest.mark.parametrize("name", ONE_PLACE)
def test_local_is_mean_plus_sd_times_noise_by_value(name):
    build, shape = LAYERS[name]
    model, loc, scale = model_of(build)
    x = normals(6, *shape, seed=1)
    mean, variance = closed_form(model, loc, scale, x)
    f = noisy_forward(model, loc, scale, x, "local", generator(3))
    eps = torch.empty_like(f).normal_(generator=generator(3))
    torch.testing.assert_close(f, mean + variance.sqrt() * eps, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", SAMPLED)
@pytest.mark.parametrize("name", list(LAYERS))
def test_flipout_gives_each_example_its_own_weights(name, kind):
    """Source: a loop over examples, each through an ordinary layer at w = loc + signs * scale * eps."""
    if kind == "local" and name in ONE_PLACE:
        return  # the test above; elsewhere "local" is Flipout
    build, shape = LAYERS[name]
    model, loc, scale = model_of(build)
    x, layer, source = normals(6, *shape, seed=1), model.net, generator(4)
    f = noisy_forward(model, loc, scale, x, kind, generator(4))
    sds, means = model.parameters_of(scale), model.parameters_of(loc)
    moves = {k: s * torch.empty_like(s).normal_(generator=source) for k, s in sds.items()}
    channel = -1 if isinstance(layer, nn.Linear) else 1
    signs = [
        torch.empty(6, t.shape[channel], dtype=F64).bernoulli_(0.5, generator=source) * 2 - 1 for t in (x, f.detach())
    ]
    groups = getattr(layer, "groups", 1)
    for n, (sign_in, sign_out) in enumerate(zip(*signs, strict=True)):
        per_output = sign_in.view(groups, -1).repeat_interleave(len(sign_out) // groups, 0)  # (outputs, inputs a group)
        pattern = sign_out[:, None] * per_output
        own = dict(means)
        shape_of_w = (*pattern.shape, *[1] * (own["weight"].dim() - 2))
        own["weight"] = own["weight"] + pattern.view(shape_of_w) * moves["weight"]
        if "bias" in own:
            own["bias"] = own["bias"] + sign_out * moves["bias"]
        torch.testing.assert_close(f[n : n + 1], functional_call(layer, own, (x[n : n + 1],)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", [small_net, conv_net], ids=["dense", "convolution"])
def test_the_marginals_of_a_whole_net_are_those_of_sampled_weights(build, kind):
    """Mean and variance of each example's output against 20,000 ordinary draws of w, by 5 standard errors."""
    model, loc, scale = model_of(build)
    scale = 0.3 * scale
    x = normals(3, 2, seed=1) if build is small_net else normals(3, 2, 4, 4, seed=1)
    net, n = SampledOutputs(model, kind), 1000
    with torch.no_grad():
        f = torch.stack([net(loc, scale, x, generator(10 + i)) for i in range(n)])
        w = loc + scale * normals(20 * n, len(loc), seed=7)
        exact = torch.cat([torch.vmap(lambda v: model(v, x))(part) for part in w.split(4000)])
    mean_error = (exact.var(0) / n * 1.05).sqrt()
    fourth = (exact - exact.mean(0)).pow(4).mean(0)
    variance_error = ((fourth - exact.var(0).square()) / n * 1.05).sqrt()
    assert ((f.mean(0) - exact.mean(0)).abs() < 5 * mean_error).all()
    assert ((f.var(0) - exact.var(0)).abs() < 5 * variance_error).all()


@pytest.mark.parametrize("kind", SAMPLED)
def test_a_pooled_convolution_keeps_the_spread_of_its_kernel(kind):
    """Independent noise at each position, the naive rule, would give a tenth of the variance."""
    model, loc, scale = model_of(lambda: nn.Conv1d(1, 1, 1, bias=False))
    x = torch.ones(1, 1, 10, dtype=F64)
    net, n = SampledOutputs(model, kind), 4000
    pooled = torch.stack([net(loc, scale, x, generator(i)).mean() for i in range(n)])
    assert abs(pooled.var() / scale.square() - 1) < 5 * (2 / n) ** 0.5
    naive = F.conv1d(x.square(), scale.square().view(1, 1, 1)).sum() / 10**2
    torch.testing.assert_close(naive, scale.square().sum() / 10)


@pytest.mark.parametrize("kind", KINDS)
def test_expected_gradient_of_a_linear_model_is_exact(kind):
    """E[sum (f - y)^2 / 2] = sum ((m - y)^2 + v) / 2 with m, v in closed form; its gradient by autograd."""
    model, loc, scale = model_of(lambda: nn.Linear(3, 1))
    x, y, net, n = normals(5, 3, seed=1), normals(5, 1, seed=2), SampledOutputs(model, kind), 1500
    loc, scale = loc.requires_grad_(), scale.requires_grad_()
    mean, rows = model(loc, x), torch.cat([x, torch.ones(5, 1, dtype=F64)], 1)
    exact = torch.autograd.grad(
        0.5 * ((mean - y).square().sum() + (rows.square() @ scale.square()).sum()), (loc, scale)
    )
    drawn = [
        torch.cat(torch.autograd.grad(0.5 * (net(loc, scale, x, generator(i)) - y).square().sum(), (loc, scale)))
        for i in range(n)
    ]
    gradients = torch.stack(drawn)
    assert ((gradients.mean(0) - torch.cat(exact)).abs() < 5 * gradients.std(0) / n**0.5).all()


def gradients(net, loc, scale, x, y, n):
    loc, scale = loc.detach().requires_grad_(), scale.detach().requires_grad_()
    return torch.stack(
        [
            torch.cat(torch.autograd.grad((net(loc, scale, x, generator(i)) - y).square().sum(), (loc, scale)))
            for i in range(n)
        ]
    )


@pytest.mark.parametrize(("kind", "factor"), [("reparameterised", 1), ("local", 20), ("flipout", 20)])
def test_the_variance_of_a_gradient_in_closed_form(kind, factor):
    """One weight, N examples at x = 1, loss sum (f - y)^2 / 2: Var[dloss/dloc] is N^2 scale^2, or a part N of that."""
    model, loc, scale = model_of(lambda: nn.Linear(1, 1, bias=False))
    x, n = torch.ones(20, 1, dtype=F64), 4000
    drawn = gradients(SampledOutputs(model, kind), loc, scale, x, normals(20, 1, seed=2), n)[:, 0] / 2
    assert (
        abs(drawn.var() / (20**2 * scale.square() / factor) - 1) < 5 * (8 / n) ** 0.5
    )  # kurtosis at most 9: Flipout multiplies two


@pytest.mark.slow
def test_the_gradient_of_a_net_is_equal_in_expectation_and_scatters_less():
    model, loc, scale = model_of(small_net)
    x, y, n = normals(50, 2, seed=1), normals(50, 1, seed=2), 1500
    drawn = {kind: gradients(SampledOutputs(model, kind), loc, 0.3 * scale, x, y, n) for kind in KINDS}
    usual = drawn["reparameterised"]
    for kind in SAMPLED:
        error = ((drawn[kind].var(0) + usual.var(0)) / n).sqrt()
        assert ((drawn[kind].mean(0) - usual.mean(0)).abs() < 5 * error).all()
        assert drawn[kind].var(0).sum() < usual.var(0).sum() / 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("build", [small_net, conv_net, lambda: nn.Linear(2, 1, bias=False)])
def test_without_scale_it_is_the_network(build, kind):
    model, loc, scale = model_of(build)
    x = normals(4, 2, 4, 4, seed=1) if build is conv_net else normals(4, 2, seed=1)
    x[0] = 0
    zero = torch.zeros_like(scale).requires_grad_()
    f = noisy_forward(model, loc, zero, x, kind, generator())
    assert torch.equal(f, model.net(x))
    (slope,) = torch.autograd.grad(f.sum(), zero)
    assert torch.isfinite(slope).all()


def test_reparameterised_is_the_network_at_one_draw():
    model, loc, scale = model_of(small_net)
    x, source = normals(4, 2, seed=1), generator(3)
    eps = torch.cat([torch.empty(s, dtype=F64).normal_(generator=source).reshape(-1) for s in model.shapes.values()])
    f = noisy_forward(model, loc, scale, x, "reparameterised", generator(3))
    torch.testing.assert_close(f, model(loc + scale * eps, x))
