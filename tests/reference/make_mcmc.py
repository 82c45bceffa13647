"""Make the long HMC runs that the book's chapters compare other methods with.

    python tests/reference/make_mcmc.py quintic_gap diabetes

writes book/nets/reference/NAME.pt, a posterior with thinned draws, and NAME.npz, the data and what all draws say.
About a quarter of an hour on one core for each.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import HalfNormal

from bnnlib.data import Standardized, quintic
from bnnlib.metrics import coverage, crps, nll, rmse
from bnnlib.nets import Gaussian, Model, Posterior, convergence, hmc
from bnnlib.nets.empirical import Empirical

FOLDER = Path(__file__).parents[2] / "book" / "nets" / "reference"
GAP = (0.2, 1.2)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass(frozen=True)
class Task:
    """Training and test points in the original units, points to look at, and the model."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    grid: Tensor
    model: Model

    @property
    def data(self) -> Standardized:
        return Standardized(self.x, self.y)


def network(inputs: int) -> Model:
    """20 tanh units, the default prior and learned noise. Samplers do not start at the network's own parameters."""
    net = nn.Sequential(nn.Linear(inputs, 20), nn.Tanh(), nn.Linear(20, 1))
    return Model(net, Gaussian(scale=HalfNormal(1.0)))


def quintic_gap() -> Task:
    """200 points of the curve with normal noise of 0.58 and none between 0.2 and 1.2; 2,000 new points everywhere."""
    every = quintic(266, "normal", 0.58, generator=seeded(0))
    kept = ~((every.x > GAP[0]) & (every.x < GAP[1]))[:, 0]
    new = quintic(2000, "normal", 0.58, spacing="random", generator=seeded(1))
    grid = torch.linspace(-2.5, 2.5, 200).unsqueeze(-1)
    return Task(every.x[kept], every.y[kept], new.x, new.y, grid, network(1))


def diabetes() -> Task:
    """Scikit-learn's diabetes data: ten measurements and the disease a year later, 353 people, and 89 to test."""
    from sklearn.datasets import load_diabetes

    x, y = (torch.as_tensor(v, dtype=torch.float32) for v in load_diabetes(return_X_y=True))
    order = torch.randperm(len(x), generator=seeded(0))
    train, test = order[:353], order[353:]
    y = y.unsqueeze(-1)
    return Task(x[train], y[train], x[test], y[test], x[test], network(10))


# Steps a trajectory, iterations of warm-up and after it, draws that go into the file.
SETTINGS = {"quintic_gap": (200, 1000, 4000, 500), "diabetes": (100, 1000, 2000, 250)}
TASKS = {"quintic_gap": quintic_gap, "diabetes": diabetes}
CHAINS = 16


def make(name: str) -> None:
    task = TASKS[name]()
    steps, warmup, draws, stored = SETTINGS[name]
    began = time.perf_counter()
    posterior = hmc(
        task.model, task.data, draws=draws, chains=CHAINS, warmup=warmup, leapfrog_steps=steps, generator=seeded(2)
    )
    seconds = time.perf_counter() - began
    found = convergence(posterior, task.grid)
    print(name, found, posterior.diagnostics)
    everything = CHAINS * draws
    said = posterior.predict(task.grid, draws=everything)
    low, high = thinned(posterior, 8000).predict(task.grid, draws=8000).interval(0.95)
    np.savez_compressed(
        FOLDER / f"{name}.npz",
        **{k: getattr(task, k).numpy() for k in ("x", "y", "x_test", "y_test", "grid")},
        **{k: getattr(said, k).numpy() for k in ("mean", "epistemic", "aleatoric", "total")},
        low=low.numpy(),
        high=high.numpy(),
        r_hat=found.r_hat.numpy(),
        ess=found.ess.numpy(),
    )
    few = thinned(posterior, stored)
    few.diagnostics.update(  # type: ignore[attr-defined]
        {
            "r_hat": float(found.r_hat.max()),
            "ess": float(found.ess.min()),
            "seconds": seconds,
            **scores(task, thinned(posterior, 8000)),
        }
    )
    few.save(FOLDER / f"{name}.pt")
    print({k: round(v, 4) for k, v in few.diagnostics.items()})


def thinned(posterior: Posterior, count: int) -> Posterior:
    """The same posterior with `count` of its draws, evenly spaced through all chains."""
    values = posterior.distribution.values  # type: ignore[attr-defined]
    pick = torch.linspace(0, len(values) - 1, count).round().long()
    notes = {k: v for k, v in posterior.diagnostics.items() if k not in ("chains", "draws")}
    return Posterior(posterior.model, Empirical(values[pick].clone()), posterior.method, {}, notes, posterior.scaling)


def scores(task: Task, posterior: Posterior) -> dict[str, float]:
    """What the predictive says of the test points; for the curve inside and outside its gap."""
    parts = {"": torch.ones(len(task.x_test), dtype=torch.bool)}
    if task.x_test.shape[1] == 1:
        inside = ((task.x_test > GAP[0]) & (task.x_test < GAP[1]))[:, 0]
        parts = {"_outside": ~inside, "_inside": inside}
    found = {}
    for part, rows in parts.items():
        said = posterior.predict(task.x_test[rows], draws=8000)
        for ask in (nll, rmse, coverage, crps):
            found[f"{ask.__name__}{part}"] = float(ask(said, task.y_test[rows]))
    return found


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or TASKS:
        make(name)
