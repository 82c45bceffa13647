"""ivon against its authors' package, ivon-opt, which runs here beside it: from the same noise the same steps."""

from itertools import cycle, islice

import pytest
import torch
from ivon import IVON
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector
from torch.utils.data import DataLoader, TensorDataset

from bnnlib.nets import Categorical, Gaussian, Model, ivon

F64 = torch.float64
NOISE = 0.3


def normals(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def regression():
    x = normals(12, 2, seed=1)
    model = Model(network(2, 3, 1), Gaussian(scale=NOISE))
    return model, x, torch.sin(2 * x[:, :1]), lambda f, y: (f - y).square().sum(-1).mean() / (2 * NOISE**2)


def classes():
    x = normals(12, 2, seed=1)
    return Model(network(2, 5, 3), Categorical(), 0.7), x, torch.arange(12) % 3, cross_entropy


def network(*sizes):
    net = nn.Sequential(nn.Linear(*sizes[:2]), nn.Tanh(), nn.Linear(*sizes[1:])).double()
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(normals(*p.shape, seed=i))
    return net


def groups_of(model, n):
    """The package's weight decay is the prior precision over N: one group of parameters for each precision.

    torch draws up to 15 normal numbers in the same way one by one and at once, longer vectors not: the default
    prior, which makes several groups, needs a net of up to 15 parameters.
    """
    net, scales = model.net, {k: float(p.stddev.mean()) for k, p in model.prior.distributions.items()}
    if len(set(scales.values())) == 1:
        return [{"params": list(net.parameters()), "weight_decay": scales["0.weight"] ** -2 / n}]
    assert model.size < 16
    return [{"params": [p], "weight_decay": scales[name] ** -2 / n} for name, p in net.named_parameters()]


def by_the_package(model, batches, loss, n, steps, curvature, decay, kl_weight, **settings):
    """Mean and curvature of each parameter, and what the prior adds to the curvature."""
    groups = groups_of(model, n / kl_weight)
    package = IVON(groups, ess=n / kl_weight, hess_init=curvature, **settings)
    slow = int(decay * steps)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for step, (x, y) in enumerate(islice(cycle(batches), steps)):
            for group in package.param_groups:
                group["lr"] = settings["lr"] * min(1.0, (steps - step) / (slow + 1))
            with package.sampled_params(train=True):
                package.zero_grad()
                loss(model.net(x), y).backward()
            package.step()
    parts = [(g["hess"], torch.full_like(g["hess"], g["weight_decay"])) for g in package.param_groups]
    return parameters_to_vector(model.net.parameters()).detach(), *map(torch.cat, zip(*parts, strict=True))


@pytest.mark.parametrize("kl_weight", [1.0, 0.3], ids=["whole", "tempered"])
@pytest.mark.parametrize("batch", [12, 4], ids=["full batch", "mini-batches"])
@pytest.mark.parametrize("make", [regression, classes])
def test_means_and_curvatures_are_the_packages(make, batch, kl_weight):
    """Source: ivon-opt. Curvatures h are compared through s^2 = 1 / (N (h + d)), which is what a posterior has."""
    model, x, y, loss = make()
    n, steps, decay, curvature = 12, 60, 0.5, 0.5
    settings = {"lr": 0.1, "beta1": 0.8, "beta2": 0.97}
    loader = DataLoader(TensorDataset(x, y), batch_size=batch)
    posterior = ivon(
        model, loader, steps=steps, init_curvature=curvature, decay=decay, kl_weight=kl_weight, progress=False,
        generator=torch.Generator().manual_seed(5), **settings,
    )  # fmt: skip
    start = model.start()
    mean, h, d = by_the_package(model, list(loader), loss, n, steps, curvature, decay, kl_weight, **settings)
    torch.testing.assert_close(posterior.mean, mean, rtol=1e-11, atol=1e-13)
    found = posterior.distribution.variance.reciprocal() * kl_weight / n - d
    torch.testing.assert_close(found, h, rtol=1e-10, atol=1e-12)
    assert float((mean - start).abs().median()) > 0.05
    assert float((h - curvature).abs().median()) > 0.05
