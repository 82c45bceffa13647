"""Variational inference with a full covariance: one normal over all of w, fitted by the ELBO.

    q(w) = N(w | loc, L L^T),     L = diag(s) (I + u C),  C strictly lower triangular,  u = min(1, 10 / P)

It sees that weights depend on each other, for P (P + 3) / 2 numbers instead of 2 P: for small networks. Each number in
C carries the noise of Adam's steps, and a variance of q sums up to P of them. The factor u keeps that sum small;
without it the larger family would end with the lower bound.
"""

from __future__ import annotations

import torch

from bnnlib.nets._fitting import Data, prepare
from bnnlib.nets._variational import Settings, run
from bnnlib.nets.model import Model
from bnnlib.nets.posterior import Posterior
from bnnlib.variational.families import FullRank

__all__ = ["full_rank"]


def full_rank(
    model: Model,
    data: Data,
    *,
    steps: int = 5000,
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
    """Fit one normal with a full covariance to the posterior of w by maximising the ELBO with Adam.

    Parameters
    ----------
    model, data
        As for `mean_field`.
    steps, lr, draws, kl_weight, warmup, init_scale, decay, generator, progress, device
        As for `mean_field`. Start from the weights of `map_estimate`, or give a warm-up of a tenth of the steps: from a
        fresh network without one the fit may call the curve noise and stay there.

    Returns
    -------
    Posterior
        A `MultivariateNormal`, with the history of `mean_field`.

    Raises
    ------
    ValueError
        Bad data or settings, before training starts.
    FloatingPointError
        The loss became NaN or infinite; the message names the step.

    Source: Kucukelbir et al. (2017), section 2.4.
    """
    settings = Settings(steps, lr, draws, kl_weight, warmup, init_scale, decay, generator, progress)
    prepared = prepare(model, data)
    target = torch.device(device) if device is not None else model.device
    family = FullRank(model.size, model.start().to(target), init_scale)
    return run(model, prepared, family, "full_rank", settings, target)
