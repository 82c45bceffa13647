"""Variational inference with a low-rank covariance: a factorised normal and a few directions of its own.

    q(w) = N(w | loc, S (I + C C^T) S),     S = diag(s),  C of shape (P, rank)

Between `mean_field` (rank 0) and `full_rank`, for (2 + rank) P numbers. The directions have to be found first: in equal
steps it can stay behind `mean_field`. About twice the steps bring it level or ahead, hence its default.
"""

from __future__ import annotations

import torch

from bnnlib.nets._fitting import Data, prepare
from bnnlib.nets._variational import Settings, run
from bnnlib.nets.model import Model
from bnnlib.nets.posterior import Posterior
from bnnlib.variational.families import LowRank

__all__ = ["low_rank"]


def low_rank(
    model: Model,
    data: Data,
    *,
    rank: int = 10,
    steps: int = 10_000,
    lr: float = 0.01,
    draws: int = 1,
    kl_weight: float = 1.0,
    warmup: int = 0,
    init_scale: float = 0.01,
    decay: float = 0.5,
    generator: torch.Generator | None = None,
    progress: bool = True,
    device: torch.device | str | None = None,
) -> Posterior:
    """Fit a normal with a covariance of diagonal plus low rank to the posterior of w by maximising the ELBO.

    Parameters
    ----------
    model, data
        As for `mean_field`.
    rank
        Number of directions in which entries of w move together, 1 to P.
    steps, lr, draws, kl_weight, warmup, init_scale, decay, generator, progress, device
        As for `mean_field`; on where to start see `full_rank`.

    Returns
    -------
    Posterior
        A `LowRankMultivariateNormal`, with the history of `mean_field`.

    Raises
    ------
    ValueError
        Bad data or settings, before training starts.
    FloatingPointError
        The loss became NaN or infinite; the message names the step.

    Source: Ong, Nott and Smith (2018).
    """
    settings = Settings(steps, lr, draws, kl_weight, warmup, init_scale, decay, generator, progress)
    prepared = prepare(model, data)
    target = torch.device(device) if device is not None else model.device
    family = LowRank(model.size, rank, model.start().to(target), init_scale)
    return run(model, prepared, family, "low_rank", settings, target)
