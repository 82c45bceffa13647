"""The boxes of the chapter on priors."""

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from bnnlib.nets import Gaussian, Model


@pytest.mark.misreading("S1.17")
def test_a_shared_hyperparameter_is_another_prior_than_one_for_each_weight():
    """Source: E[z^4] = 3 for a standard normal z, so E[(s z)^4] / E[(s z)^2]^2 is 9 where s and z are normal."""
    generator = torch.Generator().manual_seed(0)
    hidden, nets = 100, 40_000
    units = torch.ones(1, hidden, dtype=torch.float64)
    z = torch.randn(nets, hidden, generator=generator, dtype=torch.float64) / hidden**0.5
    spread = torch.randn(nets, hidden, generator=generator, dtype=torch.float64).abs()

    def kurtosis(f):
        return ((f**4).mean() / (f**2).mean() ** 2).item()

    own = kurtosis((units * spread * z).sum(-1))
    shared = kurtosis((units * spread[:, :1] * z).sum(-1))
    assert own == pytest.approx(3 + 6 / hidden, abs=5 * (24 / nets) ** 0.5)
    assert shared == pytest.approx(9, abs=2)
    assert shared - own > 4


@pytest.mark.misreading("S1.17")
def test_integrating_the_hyperparameter_out_leaves_no_normal():
    """p(w) = int N(w; 0, s^2) p(s) ds, by a grid in s, against the histogram of w drawn with s first and w then."""
    generator = torch.Generator().manual_seed(1)
    s = torch.randn(200_000, generator=generator, dtype=torch.float64).abs()
    w = s * torch.randn(200_000, generator=generator, dtype=torch.float64)
    grid = torch.linspace(5e-4, 6, 12_000, dtype=torch.float64)
    weight = 2 * Normal(0.0, 1.0).log_prob(grid).exp()
    weight = weight / weight.sum()
    for edge in (0.5, 1.0, 2.0, 3.0):
        inside = (weight * torch.erf(edge / grid / 2**0.5)).sum().item()
        assert (w.abs() < edge).double().mean().item() == pytest.approx(inside, abs=5 * 0.5 / 200_000**0.5)
    assert (w.abs() > 3).double().mean() > 3 * 0.0027  # of a normal with the same variance


@pytest.mark.misreading("S1.18")
def test_the_batch_size_has_no_place_in_the_density():
    """The mean of the mini-batch log joint is the same number for each size of batch: it is no unknown."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 4), nn.PReLU(), nn.Linear(4, 1)).double()
    model = Model(net, Gaussian(scale=0.5))
    x, y, w = torch.randn(24, 1).double(), torch.randn(24, 1).double(), model.start()
    whole = model.log_joint(w, x, y)
    for batch in (2, 6, 12):
        parts = zip(x.split(batch), y.split(batch), strict=True)
        mean = torch.stack([model.log_joint(w, a, b, n=24) for a, b in parts]).mean()
        torch.testing.assert_close(mean, whole, rtol=0, atol=1e-10)


@pytest.mark.misreading("S1.18")
def test_what_takes_part_is_what_the_flat_vector_and_the_buffers_hold():
    net = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.PReLU(), nn.Linear(4, 1))
    net(torch.randn(16, 1))
    model = Model(net, Gaussian(scale=0.5), batchnorm="frozen")
    assert list(model.shapes) == ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "3.weight", "3.bias"]
    x, w = torch.randn(5, 1), model.start()
    before = model(w, x)
    model.net[1].running_mean += 1.0  # a number that is not drawn, and takes part
    assert not torch.allclose(model(w, x), before)
