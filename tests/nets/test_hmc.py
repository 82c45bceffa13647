"""Hamiltonian Monte Carlo: the integrator's geometry, the law that its steps leave alone, adaptation, known targets."""

import math
from itertools import pairwise

import pytest
import torch
from scipy import stats
from torch import nn
from torch.distributions import Categorical, MixtureSameFamily, Normal, StudentT

from bnnlib.nets import Gaussian, Model, convergence, hmc
from bnnlib.nets._sampling import Density
from bnnlib.nets.hmc import _Run, _windows, leapfrog


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def bent(w):
    """A bent log density and its gradient, in two dimensions."""
    w = w.detach().requires_grad_()
    value = -0.5 * w[:, 0] ** 2 - 0.5 * (w[:, 1] - w[:, 0] ** 2) ** 2 - 0.1 * w[:, 1] ** 4
    (slope,) = torch.autograd.grad(value.sum(), w)
    return value.detach(), slope


def state(c=5, seed=0):
    w, r = torch.randn(2, c, 2, dtype=torch.float64, generator=seeded(seed))
    return w, r, bent(w)[1], torch.tensor([[0.5, 2.0]]).double().expand(c, 2)


def follow(size, steps, c=5):
    w, r, slope, inverse_mass = state(c)
    return leapfrog(bent, w, r, slope, torch.full((c, 1), size, dtype=torch.float64), inverse_mass, steps)


def energy(w, r, inverse_mass):
    return 0.5 * (r * r * inverse_mass).sum(-1) - bent(w)[0]


def test_the_leapfrog_by_hand():
    """One step written out, with another mass for each coordinate."""
    w, r, slope, inverse_mass = state()
    half = r + 0.15 * slope
    moved = w + 0.3 * inverse_mass * half
    end = half + 0.15 * bent(moved)[1]
    found = follow(0.3, 1)
    torch.testing.assert_close(found[0], moved, rtol=0, atol=1e-14)
    torch.testing.assert_close(found[1], end, rtol=0, atol=1e-14)
    torch.testing.assert_close(found[2], bent(moved)[0])


def test_the_leapfrog_is_reversible():
    """Turn the momentum round and come back to the start."""
    w, r, _, inverse_mass = state()
    end, momentum, _, slope = follow(0.1, 50)
    size = torch.full((5, 1), 0.1, dtype=torch.float64)
    back, again, _, _ = leapfrog(bent, end, -momentum, slope, size, inverse_mass, 50)
    assert float((end - w).abs().max()) > 0.1
    torch.testing.assert_close(back, w, rtol=0, atol=1e-10)
    torch.testing.assert_close(again, -r, rtol=0, atol=1e-10)


def test_the_leapfrog_keeps_volumes():
    """The Jacobian of (w, r) -> (w', r') has determinant one, by autograd."""
    w, r, _, inverse_mass = state(1)

    def smooth(v):
        value = -0.5 * v[:, 0] ** 2 - 0.5 * (v[:, 1] - v[:, 0] ** 2) ** 2 - 0.1 * v[:, 1] ** 4
        return value, torch.autograd.grad(value.sum(), v, create_graph=True)[0]

    def flow(z):
        at, momentum = z[:2].unsqueeze(0), z[2:].unsqueeze(0)
        size = torch.full((1, 1), 0.2, dtype=torch.float64)
        end = leapfrog(smooth, at, momentum, smooth(at)[1], size, inverse_mass, 12)
        return torch.cat([end[0][0], end[1][0]])

    jacobian = torch.autograd.functional.jacobian(flow, torch.cat([w[0], r[0]]))
    assert float(torch.linalg.det(jacobian)) == pytest.approx(1.0, abs=1e-10)
    assert float((jacobian - torch.eye(4)).abs().max()) > 0.5


def test_the_energy_error_falls_with_the_square_of_the_step():
    w, r, _, inverse_mass = state(200)
    errors = []
    for steps in (100, 200, 400):
        end, momentum, _, _ = follow(1.0 / steps, steps, c=200)
        error = energy(end, momentum, inverse_mass) - energy(w, r, inverse_mass)
        errors.append(float(error.square().mean().sqrt()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.02)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.01)


# laws -------------------------------------------------------------------------------------------------

two_hills = MixtureSameFamily(Categorical(torch.tensor([0.3, 0.7])), Normal(torch.tensor([-1.0, 1.5]), 0.6))


def nothing_learned(prior):
    """One weight, inputs of zero: the data say nothing and the posterior is the prior, whose cdf is known."""
    model = Model(nn.Linear(1, 1, bias=False).double(), Gaussian(scale=1.0), prior)
    return model, (torch.zeros(3, 1).double(), torch.ones(3, 1).double())


def p_value(draws, cdf, bins=20):
    """Chi-square of the counts in bins that are equally probable under the target."""
    counts = torch.histc(cdf(draws).double(), bins, 0.0, 1.0)
    return stats.chisquare(counts.numpy()).pvalue


@pytest.mark.parametrize("size", [0.3, 1.5])
def test_a_step_leaves_the_law_alone(size):
    """20,000 chains begin at draws from a target with two hills; after three trajectories they still are such draws.

    The large step is rejected often: without the acceptance the law would be another.
    """
    model, (x, y) = nothing_learned(two_hills)
    begin = model.sample_prior(20_000, seeded(1)).double()
    density = Density(model)
    run = _Run(lambda w: density(w, x, y), begin, 0.8, 4, seeded(2))
    run.size = torch.full_like(run.size, size)
    accepted = [float(run.step().mean()) for _ in range(3)]
    assert p_value(run.w[:, 0], two_hills.cdf) > 3e-7
    assert not torch.equal(run.w, begin)
    value, slope = density(run.w, x, y)  # what the next trajectory begins with belongs to where it begins
    torch.testing.assert_close(run.value, value)
    torch.testing.assert_close(run.slope, slope)
    assert accepted[-1] < (1.0 if size < 1 else 0.93)


def test_draws_follow_a_known_cdf():
    """Heavy tails: independent enough draws of a Student-t against scipy's cdf."""
    model, data = nothing_learned(StudentT(4.0))
    posterior = hmc(
        model, data, draws=25, thin=4, chains=400, warmup=60, leapfrog_steps=6, generator=seeded(3), progress=False
    )
    w = posterior.distribution.values[:, 0].reshape(400, 25)[:, ::6].flatten()
    assert p_value(w, lambda v: torch.as_tensor(stats.t(4).cdf(v.numpy()))) > 3e-7


@pytest.mark.slow
def test_step_sizes_and_masses_are_found():
    """Scales from 0.01 to 10: the mass finds the variances, the acceptance its target, each chain by itself."""
    sd = torch.tensor([0.01, 0.1, 1.0, 10.0], dtype=torch.float64)
    run_model = Model(nn.Linear(4, 1, bias=False).double(), Gaussian(scale=1.0), {"weight": Normal(torch.zeros(4), sd)})
    data = torch.zeros(2, 4).double(), torch.zeros(2, 1).double()
    posterior = hmc(run_model, data, draws=200, warmup=300, leapfrog_steps=8, generator=seeded(4), progress=False)
    found = posterior.distribution.values.std(0)
    torch.testing.assert_close(found, sd, rtol=0.2, atol=0)
    notes = posterior.diagnostics
    assert 0.6 < notes["accept"] < 0.97
    assert 0.3 < notes["step_size"] < 2
    assert notes["divergences"] == 0
    assert float(convergence(posterior, torch.eye(4).double()).r_hat.max()) < 1.05


def test_windows_double_and_leave_room_at_both_ends():
    assert _windows(20) == []
    for warmup in (40, 100, 500, 1000, 3333):
        edges = _windows(warmup)
        widths = [b - a for a, b in pairwise(edges)]
        assert edges[0] == int(0.15 * warmup)
        assert edges[-1] == int(0.8 * warmup)
        assert widths == sorted(widths)


def test_a_step_that_is_too_large_is_counted_not_taken():
    """An unstable trajectory goes to infinity: it is a divergence, and the chain stays."""
    model, (x, y) = nothing_learned(Normal(0.0, 1.0))
    density = Density(model)
    run = _Run(lambda w: density(w, x, y), torch.ones(3, 1).double(), 0.8, 500, seeded(5))
    before, run.size = run.divergences, torch.full_like(run.size, 50.0)
    assert float(run.step().max()) == 0
    assert run.divergences == before + 3
    assert bool((run.w == 1).all())


def test_divergences_are_counted_from_the_first_iteration_after_the_warm_up(monkeypatch):
    """Every trajectory of the warm-up and after it diverges: only those after it count, all of them."""
    original = _Run._propose

    def diverging(self, size, steps):
        found = original(self, size, steps)
        self.divergences += steps > 1  # not the search for a step size
        return found

    monkeypatch.setattr(_Run, "_propose", diverging)
    model = Model(nn.Linear(1, 1).double(), Gaussian(scale=1.0))
    data = torch.ones(4, 1).double(), torch.ones(4, 1).double()
    for warmup in (0, 7):
        settings = {"draws": 5, "warmup": warmup, "chains": 1, "leapfrog_steps": 4, "progress": False}
        assert hmc(model, data, generator=seeded(), **settings).diagnostics["divergences"] == 5


def test_temperature():
    """A cold posterior of a normal has the variance T times as large."""
    model, data = nothing_learned(Normal(0.0, 2.0))
    posterior = hmc(
        model, data, draws=100, chains=100, warmup=50, leapfrog_steps=4, temperature=0.25, generator=seeded(6),
        progress=False,
    )  # fmt: skip
    assert float(posterior.distribution.values.std()) == pytest.approx(2.0 * math.sqrt(0.25), rel=0.05)
