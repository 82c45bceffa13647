"""mean_field: the KL's warm-up, and noise in the outputs instead of the weights."""

import pytest
import torch
from torch import nn
from torch.distributions import HalfNormal

from bnnlib.nets import Gaussian, Model, mean_field
from bnnlib.nets._variational import Nelbo
from bnnlib.variational import MeanField

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=F64)


def small_net():
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    for i, p in enumerate(net.parameters()):
        p.data = 0.3 * normals(*p.shape, seed=10 + i)
    return net


def run(model, data, seed=0, **settings):
    return mean_field(model, data, generator=generator(seed), **{"steps": 50, "progress": False, **settings})


def one_step(model, loc, log_scale, x, y, weight):
    family = MeanField(model.size, loc, log_scale.exp())
    Nelbo(model, family, 1, generator()).step(x, y, 1.0, weight, torch.zeros(2, dtype=F64))
    return family.loc.grad


def test_the_weight_of_the_kl_warms_up():
    """It grows in equal parts and ends at kl_weight; the recorded bound is the one that is aimed at."""
    model, x, y = Model(small_net(), Gaussian(scale=0.5)), normals(12, 2), normals(12, 1, seed=1)
    warmed, plain = run(model, (x, y), warmup=9, kl_weight=0.5), run(model, (x, y), kl_weight=0.5)
    h = warmed.history
    torch.testing.assert_close(h["kl_weight"], 0.5 * (torch.arange(50) + 1).clamp_max(10) / 10)
    torch.testing.assert_close(h["nelbo"], h["nll"] + 0.5 * h["kl"])
    assert warmed.diagnostics["warmup"] == 9
    assert "kl_weight" not in plain.history
    assert not torch.equal(warmed.mean, plain.mean)
    # The gradient of the first step has a tenth of the KL's.
    loc, log_scale = model.start() + 0.1, normals(model.size, seed=2)
    none, tenth, one = (one_step(model, loc, log_scale, x, y, k) for k in (0.0, 0.1, 1.0))
    torch.testing.assert_close(tenth - none, 0.1 * (one - none), rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="the full objective would never be seen"):
        run(model, (x, y), warmup=50)


@pytest.mark.parametrize("noise", [0.4, HalfNormal(1.0)], ids=["known", "unknown"])
@pytest.mark.parametrize("estimator", ["local", "flipout"])
def test_sampled_outputs_have_the_same_gradient_in_expectation(estimator, noise):
    """Against draws of w: 500 steps each, five standard errors, for a net in which each example has its own noise."""
    model, x, y = Model(small_net(), Gaussian(scale=noise), 0.7), normals(6, 2), normals(6, 1, seed=1)
    loc, scale = model.start() + 0.1, torch.full((model.size,), 0.2, dtype=F64)
    means = []
    for kind in ("reparameterised", estimator):
        family, record, steps = MeanField(model.size, loc, scale), torch.zeros(2, dtype=F64), []
        bound = Nelbo(model, family, 1, generator(3), kind)
        for _ in range(500):
            bound.step(x, y, 2.0, 1.0, record)
            steps.append(torch.cat([family.loc.grad, family.log_scale.grad, record]))
        means.append((torch.stack(steps).mean(0), torch.stack(steps).var(0) / 500))
    (a, a_var), (b, b_var) = means
    assert bool(((a - b).abs() <= 5 * (a_var + b_var).sqrt() + 1e-10).all())


def test_an_estimator_is_recorded_and_checked():
    model, x, y = Model(small_net(), Gaussian(scale=HalfNormal(1.0))), normals(12, 2), normals(12, 1, seed=1)
    posterior = run(model, (x, y), estimator="local")
    assert posterior.diagnostics["estimator"] == "local"
    assert torch.equal(posterior.mean, run(model, (x, y), estimator="local").mean)
    assert run(model, (x, y), estimator="flipout", draws=3).history["nelbo"].shape == (50,)
    with pytest.raises(ValueError, match="estimator must be one of reparameterised, local, flipout"):
        run(model, (x, y), estimator="magic")
