"""The boxes of book/batchnorm/as_noise.ipynb: each test holds for what is true and fails for what is often written."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gaussian_nll_loss

from bnnlib.nets import Gaussian, Model


def made(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(dropout: float = 0.0, eps: float = 1e-5) -> nn.Sequential:
    """Two BatchNorms with the statistics of some batches."""
    torch.manual_seed(0)
    layers = [nn.Linear(3, 16), nn.BatchNorm1d(16, eps=eps), nn.ReLU(), nn.Dropout(dropout)]
    net = nn.Sequential(*layers, nn.Linear(16, 16), nn.BatchNorm1d(16, eps=eps), nn.ReLU(), nn.Linear(16, 1)).double()
    with torch.no_grad():
        for seed in range(50):
            net(made(seed, 32, 3))
    return net.eval()


def active_dropout(net: nn.Module) -> nn.Module:
    for module in net.eval().modules():
        if isinstance(module, nn.Dropout):
            module.train()
    return net


def asked(net: nn.Module, mates: Tensor) -> Tensor:
    torch.manual_seed(1)  # the same dropout masks each time
    with torch.no_grad():
        return net(torch.cat([made(99, 1, 3), mates]))[0]


@pytest.mark.misreading("S1.16")
def test_train_mode_for_dropout_lets_requests_leak_and_writes_them_into_the_statistics():
    net, mates = network(dropout=0.3), (made(100, 7, 3), 5 + made(101, 7, 3))
    before = copy.deepcopy(net.state_dict())
    sound, leaky = active_dropout(copy.deepcopy(net)), copy.deepcopy(net).train()
    assert torch.equal(asked(sound, mates[0]), asked(sound, mates[1]))
    torch.manual_seed(2)
    assert not torch.equal(sound(mates[0]), sound(mates[0])), "dropout is active"
    assert all(torch.equal(v, before[k]) for k, v in sound.state_dict().items())
    assert abs(float(asked(leaky, mates[0]) - asked(leaky, mates[1]))) > 0.01
    assert float((leaky[1].running_mean - before["1.running_mean"]).abs().max()) > 0.1
    # The leak outlives the request: the same question in evaluation mode has another answer.
    assert abs(float(asked(leaky.eval(), mates[0]) - asked(copy.deepcopy(net).eval(), mates[0]))) > 0.01


@pytest.mark.misreading("S2.24")
def test_training_mode_has_no_log_likelihood_to_split_into_mini_batches():
    """Equal batches partition the data: terms add up to one number in evaluation mode, and to another for each size."""
    net, x, y = network(), made(0, 60, 3), made(1, 60, 1)
    model = Model(net, Gaussian(scale=0.5))
    whole = model.log_likelihood(model.start(), x, y).item()

    def total(mode: nn.Module, size: int) -> float:
        with torch.no_grad():
            parts = zip(x.split(size), y.split(size), strict=True)
            losses = [
                gaussian_nll_loss(mode(a), b, torch.full_like(b, 0.25), full=True, reduction="sum") for a, b in parts
            ]
        return -float(sum(losses))

    for size in (3, 10, 60):
        assert total(net, size) == pytest.approx(whole, rel=1e-10)
    split = [total(copy.deepcopy(net).train(), size) for size in (3, 10, 60)]
    assert min(abs(a - b) for a, b in ((split[0], split[1]), (split[1], split[2]))) > 0.5
    with pytest.raises(ValueError, match="depend on its batch-mates"):
        Model(copy.deepcopy(net).train(), Gaussian(scale=0.5))


@pytest.mark.misreading("S2.24")
def test_before_batchnorm_a_normal_prior_acts_only_through_the_step():
    """W -> 10 W: same outputs, a prior lower by 99 |W|^2 / 2 s^2, a gradient ten times smaller and orthogonal to W."""
    x, y, nets = made(0, 60, 3), made(1, 60, 1), [network(eps=1e-12).train(), network(eps=1e-12).train()]
    with torch.no_grad():
        nets[1][0].weight *= 10
        nets[1][0].bias *= 10
    torch.testing.assert_close(nets[0](x), nets[1](x), rtol=1e-7, atol=1e-7)
    slopes = [torch.autograd.grad((net(x) - y).square().mean(), net[0].weight)[0] for net in nets]
    torch.testing.assert_close(slopes[0], 10 * slopes[1], rtol=1e-6, atol=1e-9)
    assert abs(float((slopes[0] * nets[0][0].weight.detach()).sum())) < 1e-9
    assert float(slopes[0].abs().max()) > 1e-3
    models = [Model(net, Gaussian(scale=0.5), prior=0.5, batchnorm="reestimate", reestimate_on=x) for net in nets]
    prior = [float(m.log_prior(m.start())) for m in models]
    squares = sum(float(p.detach().square().sum()) for p in (nets[0][0].weight, nets[0][0].bias))
    assert prior[0] - prior[1] == pytest.approx(99 * squares / (2 * 0.5**2), rel=1e-9)
    assert math.isclose(*(float(m.log_likelihood(m.start(), x, y)) for m in models), rel_tol=1e-7)
