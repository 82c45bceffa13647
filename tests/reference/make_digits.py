"""Make the long HMC run on digits that the chapter on posteriors compares other methods with.

    python tests/reference/make_digits.py

writes book/nets/reference/digits.npz: the run's class probabilities at the test digits, and how it converged. About
five minutes on one core.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from bnnlib.metrics import nll
from bnnlib.nets import Categorical, Model, convergence, hmc

FOLDER = Path(__file__).parents[2] / "book" / "nets" / "reference"


def task() -> tuple[Model, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """600 digits to fit, 1,197 to test, a network of 20 ReLU units with N(0, 1) on every weight."""
    x, y = (torch.as_tensor(v) for v in load_digits(return_X_y=True))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = (x[order] / 16).float(), y[order]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))
    return Model(net, Categorical(), prior=1.0), (x[:600], y[:600]), (x[600:], y[600:])


def main() -> None:
    model, train, test = task()
    long = hmc(
        model, train, draws=500, chains=8, warmup=500, leapfrog_steps=60, generator=torch.Generator().manual_seed(1)
    )
    found = convergence(long, test[0][:200])
    said = long.predict(test[0], draws=4000)
    print(found, float(found.r_hat.max()), float(found.ess.min()), nll(said, test[1]))
    np.savez_compressed(
        FOLDER / "digits.npz",
        probs=said.probs.numpy().astype(np.float32),
        r_hat=float(found.r_hat.max()),
        ess=float(found.ess.min()),
        nll=nll(said, test[1]),
    )


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    main()
