"""The flat buffer: gradients of the dense networks that are run by hand, and the loop's Adam, against torch's own."""

import pytest
import torch
from torch import nn
from torch.distributions import HalfNormal

from bnnlib.nets import Bernoulli, Categorical, Gaussian, HeteroscedasticGaussian, Model, StudentT
from bnnlib.nets.workspace import Workspace
from bnnlib.variational._loop import descend

F64 = torch.float64


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def net(*layers):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*(make() for make in layers)).double()


def linear(inputs, outputs, **kind):
    return lambda: nn.Linear(inputs, outputs, **kind)


NETS = {
    "one to one": net(linear(1, 7), nn.ReLU, linear(7, 1)),
    "deep": net(linear(3, 5), nn.Tanh, linear(5, 1), nn.Sigmoid, linear(1, 4), nn.ReLU, linear(4, 2)),
    "no activation": net(linear(3, 4), linear(4, 2)),
    "activation at the end": net(linear(3, 4), nn.ReLU, linear(4, 2), nn.Tanh),
    "one layer": net(linear(3, 2)),
    "by autograd: no bias": net(linear(3, 4, bias=False), nn.ReLU, linear(4, 2)),
    "by autograd: another activation": net(linear(3, 4), nn.GELU, linear(4, 2)),
}
KINDS = {
    "Gaussian": lambda: Gaussian(scale=0.5),
    "learned noise": lambda: Gaussian(scale=HalfNormal(1.0)),
    "StudentT": lambda: StudentT(4.0, scale=HalfNormal(1.0)),
    "Bernoulli": Bernoulli,
    "Categorical": Categorical,
    "HeteroscedasticGaussian": HeteroscedasticGaussian,
}


PAIRS = [(name, kind) for name in NETS for kind in KINDS if (name, kind) != ("one to one", "HeteroscedasticGaussian")]


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_the_pass_backwards_is_autograds(name, kind):
    """Source: autograd of Model.log_likelihood, which calls the network as it is. Batches of two sizes in turn."""
    model = Model(NETS[name], KINDS[kind]())
    inputs = NETS[name][0].in_features
    outputs = NETS[name](torch.zeros(1, inputs, dtype=F64)).shape[1]
    workspace = Workspace(model, gradient=True)
    for seed, n in enumerate((6, 4, 6, 6)):
        x = normals(n, inputs, seed=seed)
        y = normals(n, outputs // 2 if kind == "HeteroscedasticGaussian" else outputs, seed=seed + 10)
        y = torch.arange(n) % outputs if kind == "Categorical" else (y > 0).double() if kind == "Bernoulli" else y
        w = (model.start() + normals(model.size, seed=seed + 20)).requires_grad_()
        workspace.w.copy_(w.detach())
        value = -2.5 * model.log_likelihood(w, x, y)
        torch.testing.assert_close(workspace.misfit(x, y, 2.5), value.detach(), rtol=1e-13, atol=1e-13)
        (slope,) = torch.autograd.grad(value, w)
        torch.testing.assert_close(workspace.grad, slope, rtol=1e-12, atol=1e-12)


def test_hooks_keep_the_network_with_autograd():
    """A hook may change what passes; by hand it would never be called."""
    hooked = net(linear(3, 2))
    hooked[0].register_forward_hook(lambda module, x, out: 2 * out)
    model = Model(hooked, Gaussian(scale=1.0))
    workspace, x, y = Workspace(model, gradient=True), normals(5, 3), normals(5, 2, seed=1)
    exact = -model.log_likelihood(model.start(), x, y)
    torch.testing.assert_close(workspace.misfit(x, y, 1.0), exact, rtol=1e-13, atol=0)


@pytest.mark.parametrize("decay", [0.0, 0.6])
def test_the_loop_takes_adams_steps(decay):
    """Source: torch.optim.Adam with the lr that the loop promises: constant, then linearly to zero."""
    own, exact = normals(9).requires_grad_(), normals(9).requires_grad_()
    idle = normals(3).requires_grad_()  # has no gradient: stays
    slopes, steps = normals(50, 9, seed=1), 50

    def step(i, record):
        own.grad = slopes[i] * (1 + own.detach())
        record.zero_()

    descend(
        step, [own, idle], torch.zeros(steps, 1), lr=0.1, decay=decay, name="test", progress=False, remedy="nothing"
    )
    adam, falling = torch.optim.Adam([exact]), int(decay * steps)
    for i in range(steps):
        adam.param_groups[0]["lr"] = 0.1 * min(1.0, (steps - i) / (falling + 1)) if falling else 0.1
        exact.grad = slopes[i] * (1 + exact.detach())
        adam.step()
    torch.testing.assert_close(own, exact, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(idle, normals(3), rtol=0, atol=0)
