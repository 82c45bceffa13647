"""R-hat and effective sample size: known chains, the right axes, functions and weights, the stored long runs."""

import builtins
import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bnnlib.nets import Gaussian, Model, Posterior, convergence, hmc
from bnnlib.nets.empirical import Empirical

ROOT = Path(__file__).parents[2]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def chains_of(values):
    """Chains (C, D, 2) of slope and offset of a line."""
    c, d, p = values.shape
    model = Model(nn.Linear(1, 1).double(), Gaussian(scale=1.0))
    return Posterior(model, Empirical(values.reshape(c * d, p)), "test", {}, {"chains": float(c), "draws": float(d)})


def test_independent_chains_agree_and_shifted_ones_do_not():
    """4,000 independent draws are worth about 4,000; one chain moved by s = 1 sd gives sqrt(1 + s^2 / 4 + ...)."""
    values = torch.randn(4, 1000, 2, generator=seeded(), dtype=torch.float64)
    x = torch.tensor([[0.0], [1.0], [-2.0]], dtype=torch.float64)
    good = convergence(chains_of(values), x)
    assert good.r_hat.shape == good.ess.shape == good.ess_tail.shape == (3, 1)
    assert float((good.r_hat - 1).abs().max()) < 0.005
    assert 3000 < float(good.ess.min()) < 5500
    values[0, :, 0] += 1.0
    moved = convergence(chains_of(values))
    assert moved.r_hat.shape == (2,)
    # Between the chains: variance of (1, 0, 0, 0) with divisor 3.
    assert float(moved.r_hat[0]) == pytest.approx(math.sqrt(1 + 0.25), abs=0.04)
    assert float(moved.r_hat[1]) < 1.005


def test_effective_sample_size_of_a_known_process():
    """An autoregressive chain with coefficient a is worth (1 - a) / (1 + a) of its length."""
    a, noise = 0.8, torch.randn(4, 6000, 2, generator=seeded(1), dtype=torch.float64)
    values = noise.clone()
    for t in range(1, 6000):
        values[:, t] = a * values[:, t - 1] + math.sqrt(1 - a * a) * noise[:, t]
    found = convergence(chains_of(values))
    torch.testing.assert_close(found.ess, torch.full((2,), 24000 * 0.2 / 1.8, dtype=torch.float64), rtol=0.15, atol=0)
    assert "4 chains of 6000" in repr(found)


def test_copies_of_one_function_agree_in_function_only():
    """Chains with their hidden units exchanged and signs flipped: the same functions, other weights."""
    net = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    model = Model(net, Gaussian(scale=1.0))
    centre = torch.tensor([1.0, 2, 3, 0.5, -0.5, 0, 1, -1, 2, 0.3], dtype=torch.float64)
    one = centre + 0.1 * torch.randn(2, 300, 10, generator=seeded(2), dtype=torch.float64)
    order = torch.tensor([2, 0, 1, 5, 3, 4, 8, 6, 7, 9])
    one[1] = -one[1][:, order]
    one[1][:, 9] *= -1
    posterior = Posterior(model, Empirical(one.reshape(600, 10)), "test", {}, {"chains": 2.0, "draws": 300.0})
    x = torch.linspace(-1, 1, 7).double().unsqueeze(-1)
    assert float(convergence(posterior, x).r_hat.max()) < 1.02
    assert float(convergence(posterior).r_hat[:9].max()) > 1.5


def test_what_has_no_chains_is_refused():
    values = torch.randn(4, 10, 2, generator=seeded(), dtype=torch.float64)
    posterior = chains_of(values)
    single = Posterior(posterior.model, posterior.distribution, "ensemble")
    with pytest.raises(ValueError, match=r"needs the chains of a sampler \(hmc, nuts, sgld, sghmc\), not ensemble"):
        convergence(single)
    with pytest.raises(ValueError, match="at least four draws a chain, got 3"):
        convergence(chains_of(values[:, :3]))


def test_without_arviz_the_error_says_what_to_do(monkeypatch):
    original = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "arviz":
            raise ModuleNotFoundError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ModuleNotFoundError, match="pip install arviz"):
        convergence(chains_of(torch.zeros(2, 5, 2).double()))


# stored runs ------------------------------------------------------------------------------------------


def script():
    spec = importlib.util.spec_from_file_location("make_mcmc", ROOT / "tests" / "reference" / "make_mcmc.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_mcmc"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["quintic_gap", "diabetes"])
def test_the_stored_run_is_of_this_task_and_has_converged(name):
    make = script()
    task = make.TASKS[name]()
    with np.load(make.FOLDER / f"{name}.npz") as stored:
        for part in ("x", "y", "x_test", "y_test", "grid"):
            torch.testing.assert_close(torch.as_tensor(stored[part]), getattr(task, part), rtol=1e-5, atol=1e-5)
        assert stored["r_hat"].max() < 1.01
        posterior = Posterior.load(make.FOLDER / f"{name}.pt", task.model)
        said = posterior.predict(task.grid)
        # The stored few draws against the moments of all.
        error = said.epistemic / len(posterior.distribution.values) ** 0.5
        assert float(((said.mean - torch.as_tensor(stored["mean"])) / error).abs().max()) < 6
        torch.testing.assert_close(said.aleatoric.mean(), torch.tensor(stored["aleatoric"].mean()), rtol=0.02, atol=0)
    for file in make.FOLDER.glob(f"{name}.*"):
        assert file.stat().st_size < 300_000


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps"), [("quintic_gap", 100), ("diabetes", 40)])
def test_a_short_run_agrees_with_the_stored_one(name, steps):
    """Another seed: means within five standard errors by the short run's own ESS, NLL to 0.01 nats."""
    make = script()
    task = make.TASKS[name]()
    posterior = hmc(
        task.model, task.data, draws=150, warmup=200, leapfrog_steps=steps, generator=seeded(11), progress=False
    )
    grid = task.grid[::10]
    ess = convergence(posterior, grid).ess
    said = posterior.predict(grid)
    with np.load(make.FOLDER / f"{name}.npz") as stored:
        mean = torch.as_tensor(stored["mean"])[::10]
    assert float(((said.mean - mean) * ess.sqrt() / said.epistemic).abs().max()) < 5
    notes = Posterior.load(make.FOLDER / f"{name}.pt", task.model).diagnostics
    for key, value in make.scores(task, posterior).items():
        if key.startswith("nll") and "inside" not in key:
            assert value == pytest.approx(notes[key], abs=0.015)
