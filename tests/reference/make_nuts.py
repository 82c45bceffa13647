"""A second source for the long HMC run: the same posterior by Pyro's NUTS.

    python tests/reference/make_nuts.py

writes book/nets/reference/quintic_gap_nuts.pt, 500 draws. About ten minutes on one core.
"""

from __future__ import annotations

import torch

from bnnlib.nets import convergence, nuts
from make_mcmc import FOLDER, quintic_gap

if __name__ == "__main__":
    task = quintic_gap()
    found = nuts(task.model, task.data, draws=250, warmup=250, chains=2, generator=torch.Generator().manual_seed(5))
    print(convergence(found, task.grid))
    found.save(FOLDER / "quintic_gap_nuts.pt")
