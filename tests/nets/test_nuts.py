"""The No-U-Turn Sampler by Pyro: the density that it is given, options that reach it, interrupts between chains."""

import builtins
import math

import pytest
import torch
from torch import nn
from torch.distributions import HalfNormal

from bnnlib.nets import Gaussian, Model, nuts
from bnnlib.nets._sampling import Density


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def task(n=30):
    """y ~ N(w, 1), w ~ N(0, 1): the posterior is normal with precision n + 1."""
    y = 0.5 + torch.randn(n, 1, generator=seeded(1), dtype=torch.float64)
    return Model(nn.Linear(1, 1, bias=False).double(), Gaussian(scale=1.0), 1.0), torch.ones(n, 1).double(), y


@pytest.mark.slow
def test_a_normal_within_monte_carlo_error():
    model, x, y = task()
    posterior = nuts(model, (x, y), draws=500, warmup=100, generator=seeded(2), progress=False)
    w = posterior.distribution.values[:, 0]
    ess = 300.0  # of 1,000 draws of one weight: less than ArviZ finds
    assert float(w.mean()) == pytest.approx(float(y.sum()) / 31, abs=5 * math.sqrt(1 / 31 / ess))
    assert float(w.var()) == pytest.approx(1 / 31, rel=5 * math.sqrt(2 / ess))
    assert posterior.diagnostics["divergences"] == 0
    assert 0.6 < posterior.diagnostics["accept"] <= 1


def test_settings_reach_pyro():
    """A short tree asks for few gradients; a demanding acceptance leads to small steps."""
    model, x, y = task()
    calls, original = [0], Density.log_prob

    def counted(self, *args):
        calls[0] += 1
        return original(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Density, "log_prob", counted)
        settings = {"draws": 40, "warmup": 40, "chains": 1, "progress": False, "start": torch.ones(1, 1).double()}
        nuts(model, (x, y), max_tree_depth=1, generator=seeded(3), **settings)
        assert calls[0] < 80 * 2 + 60
        careful = nuts(model, (x, y), target_accept=0.99, generator=seeded(3), **settings)
        quick = nuts(model, (x, y), target_accept=0.6, generator=seeded(3), **settings)
    assert careful.diagnostics["step_size"] < quick.diagnostics["step_size"]


def test_an_interrupt_in_the_second_chain_keeps_the_first(monkeypatch):
    model, x, y = task()
    settings = {"draws": 20, "warmup": 10, "progress": False, "start": torch.ones(2, 1).double()}
    whole = nuts(model, (x, y), generator=seeded(4), **settings)
    calls, original = [0], Density.log_prob

    def counted(self, *args):
        calls[0] += 1
        if calls[0] > limit:
            raise KeyboardInterrupt
        return original(self, *args)

    limit = 10**9
    monkeypatch.setattr(Density, "log_prob", counted)
    nuts(model, (x, y), generator=seeded(4), **settings)
    limit, calls[0] = calls[0] - 10, 0
    with pytest.warns(UserWarning, match="nuts was interrupted after 1 of 2 chains"):
        part = nuts(model, (x, y), generator=seeded(4), **settings)
    assert part.diagnostics["chains"] == 1
    assert torch.equal(part.distribution.values, whole.distribution.values[:20])
    limit, calls[0] = limit // 2 - 10, 0
    with pytest.warns(UserWarning, match=r"after \d+ of 20 draws of the first chain"):
        part = nuts(model, (x, y), generator=seeded(4), **settings)
    n = len(part.distribution.values)
    assert 0 < n < 20
    assert torch.equal(part.distribution.values, whole.distribution.values[:n])


def test_without_pyro_the_error_says_what_to_do(monkeypatch):
    original = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("pyro"):
            raise ModuleNotFoundError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    model, x, y = task()
    with pytest.raises(ModuleNotFoundError, match="pip install pyro-ppl, or use hmc"):
        nuts(model, (x, y), progress=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tree_depth": 0}, "max_tree_depth must be a whole number, at least 1, got 0"),
        ({"target_accept": 1.0}, "target_accept must lie strictly between 0 and 1, got 1.0"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    model, x, y = task()
    with pytest.raises(ValueError, match=message):
        nuts(model, (x, y), progress=False, **settings)


def test_the_noise_is_drawn_too():
    model = Model(nn.Linear(1, 1, bias=False), Gaussian(scale=HalfNormal(1.0)), 1.0)
    x, y = torch.ones(200, 1), 0.3 * torch.randn(200, 1, generator=seeded(5))
    posterior = nuts(model, (x, y), draws=100, warmup=60, chains=1, generator=seeded(6), progress=False)
    noise = posterior.distribution.values[:, -1].exp()
    assert float(noise.mean()) == pytest.approx(float(y.std()), rel=0.06)
