"""Stochastic gradient Hamiltonian Monte Carlo: its law on a normal by a Lyapunov equation, its cycles, its settings."""

import math
import sys

import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov
from torch import nn
from torch.distributions import HalfNormal

from bnnlib.data import Standardized, quintic
from bnnlib.nets import Gaussian, Model, sghmc
from bnnlib.nets._sampling import Density


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def one_weight(n=40):
    """y ~ N(w, 1), w ~ N(0, 1): the posterior is normal with precision n + 1."""
    y = 0.5 + torch.randn(n, 1, generator=seeded(1), dtype=torch.float64)
    model = Model(nn.Linear(1, 1, bias=False).double(), Gaussian(scale=1.0), 1.0)
    return model, torch.ones(n, 1, dtype=torch.float64), y


def stationary_var(eps, lam, alpha):
    """Variance of w under the linear recursion of (w, v) at a constant step, from its Lyapunov equation."""
    turn = torch.tensor([[1 - eps * lam, 1 - alpha], [-eps * lam, 1 - alpha]], dtype=torch.float64)
    noise = 2 * alpha * eps * torch.ones(2, 2, dtype=torch.float64)
    return solve_discrete_lyapunov(turn.numpy(), noise.numpy())[0, 0]


@pytest.mark.parametrize(("part", "alpha"), [(0.5, 0.2), (0.05, 0.1), (0.25, 1.0)])
@pytest.mark.slow
def test_the_law_at_a_constant_step(part, alpha, monkeypatch):
    """Against the Lyapunov equation, with the cosine held at one."""
    monkeypatch.setattr(sys.modules["bnnlib.nets.sghmc"], "_fall", lambda part: 1.0)
    model, x, y = one_weight()
    size = part * 4 / 41
    posterior = sghmc(
        model, (x, y), cycles=1, cycle_steps=600, draws=6, chains=4000, friction=alpha, step_size=size,
        precondition=False, start=torch.zeros(4000, 1).double(), generator=seeded(2), progress=False,
    )  # fmt: skip
    w = posterior.distribution.values.reshape(4000, 6)[:, -1]
    exact = stationary_var(size, 41.0, alpha)
    assert float(w.var()) == pytest.approx(exact, rel=5 * math.sqrt(2 / 4000))
    assert float(w.mean()) == pytest.approx(float(y.sum()) / 41, abs=5 * math.sqrt(exact / 4000))


@pytest.mark.slow
def test_small_steps_give_the_posterior():
    """The Lyapunov variance goes to 1 / lam, and the draws at the end of a cycle have it."""
    assert stationary_var(1e-4 / 41, 41.0, 0.1) == pytest.approx(1 / 41, rel=1e-3)
    model, x, y = one_weight()
    posterior = sghmc(
        model, (x, y), cycles=1, cycle_steps=1000, draws=1, chains=5000, step=0.05, generator=seeded(3), progress=False
    )
    assert float(posterior.distribution.values.var()) == pytest.approx(1 / 41, rel=5 * math.sqrt(2 / 5000) + 0.01)


def watch(monkeypatch, **settings):
    """Positions at which the gradient was asked for, in order."""
    seen, original = [], Density.__call__

    def spy(self, w, *args):
        seen.append(w.clone())
        return original(self, w, *args)

    monkeypatch.setattr(Density, "__call__", spy)
    model, x, y = one_weight()
    settings = {"cycles": 2, "cycle_steps": 100, "draws": 10, "chains": 50, "step": 0.1} | settings
    start = torch.zeros(settings["chains"], 1).double()
    posterior = sghmc(model, (x, y), start=start, generator=seeded(4), progress=False, **settings)
    return torch.stack(seen[1:]), posterior


def test_steps_fall_within_each_cycle(monkeypatch):
    path, _ = watch(monkeypatch)
    moves = path.diff(dim=0).abs().mean((1, 2))
    for cycle in (moves[:100], moves[100:]):
        assert float(cycle[60:].mean()) < 0.7 * float(cycle[5:40].mean())
        assert float(cycle[-5:].mean()) < 0.2 * float(cycle[5:40].mean())
    assert float(moves[100:140].mean()) > 3 * float(moves[95:99].mean())


def test_draws_come_from_the_second_half_of_each_cycle(monkeypatch):
    path, posterior = watch(monkeypatch)
    kept = posterior.distribution.values.reshape(50, 20)
    for k in range(19):  # the state after step i is where step i + 1 asks
        where = (path[:, 0, 0] == kept[0, k]).nonzero().flatten().tolist()
        assert len(where) == 1
        assert (where[0] - 1) % 100 >= 49
        assert (where[0] - 1) // 100 == k // 10
    assert posterior.diagnostics["draws"] == 20


def test_a_cycle_begins_with_a_step_that_is_still_stable():
    """A warm-up that ends before the noise is found leaves a step for a fraction of the curvature to come."""
    task = quintic(200, generator=seeded())
    net = nn.Sequential(nn.Linear(1, 300), nn.ReLU(), nn.Linear(300, 1))
    for i, p in enumerate(net.parameters()):
        p.data = torch.randn(p.shape, generator=seeded(i)) / 10
    settings = {"cycle_steps": 500, "draws": 5, "chains": 1, "warmup": 60, "progress": False}
    wide, data = Model(net, Gaussian(scale=HalfNormal(1.0))), Standardized(task.x, task.y)
    one, two = (sghmc(wide, data, cycles=c, generator=seeded(5), **settings) for c in (1, 2))
    assert torch.equal(two.distribution.values[:5], one.distribution.values)
    assert two.diagnostics["step_size"] < 0.2 * one.diagnostics["step_size"]
    assert float(two.history["log_joint"].min()) > float(one.history["log_joint"].min()) - 100


def test_a_step_that_is_still_stable_is_kept(monkeypatch):
    """A curvature that stays changes nothing, to the last bit; one grown sixfold takes the step back to its part."""
    model, x, y = one_weight()
    settings = {"cycles": 2, "cycle_steps": 20, "draws": 5, "chains": 3, "step": 0.1, "progress": False}
    settings |= {"start": torch.zeros(3, 1).double()}
    module = sys.modules["bnnlib.nets.sghmc"]
    found, original = [], module.stiffness
    for factor in (1.0, 4.9, 6.0):
        monkeypatch.setattr(module, "stiffness", lambda *args, f=factor, **more: f * original(*args, **more))
        found.append(sghmc(model, (x, y), generator=seeded(6), **settings))
    assert torch.equal(found[0].distribution.values, found[1].distribution.values)
    assert found[2].diagnostics["step_size"] == pytest.approx(found[0].diagnostics["step_size"] / 6, rel=1e-12)


def test_exploration_draws_no_noise(monkeypatch):
    """Without noise, chains that begin at one place stay together; with it, they part."""
    path, _ = watch(monkeypatch, exploration=0.5)
    assert float(path[50].std()) == 0
    assert float(path[60].std()) > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cycles": 0}, "cycles must be a whole number, at least 1, got 0"),
        ({"cycle_steps": 20, "draws": 11}, "draws must fit into half a cycle of 20 steps, got 11"),
        ({"exploration": 0.6}, "exploration is a part of the cycle, between 0 and 0.5, got 0.6"),
        ({"friction": 0.0}, "friction is the part of the momentum lost at each step, above 0, at most 1, got 0.0"),
        ({"step": math.inf}, "step must be positive and finite, got inf"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    model, x, y = one_weight()
    with pytest.raises(ValueError, match=message):
        sghmc(model, (x, y), progress=False, **settings)


def test_a_step_beyond_the_limit_stops_with_its_number():
    model, x, y = one_weight()
    with pytest.raises(FloatingPointError, match=r"sghmc: the log density of chain 0 is .* at step \d+; try a smaller"):
        sghmc(model, (x, y), step_size=100.0, precondition=False, progress=False)
