"""Mean-field variational inference: a normal for each entry of w, fitted by the ELBO.

    q(w) = prod_p N(w_p | loc_p, scale_p^2),     scale = exp(log_scale)

One draw w = loc + scale * eps a step (Kingma and Welling 2014; Blundell et al. 2015).
"""

from __future__ import annotations

import torch

from bnnlib.nets._fitting import Data, prepare
from bnnlib.nets._variational import Settings, run
from bnnlib.nets.model import Model
from bnnlib.nets.posterior import Posterior
from bnnlib.variational.families import MeanField

__all__ = ["mean_field"]


def mean_field(
    model: Model,
    data: Data,
    *,
    steps: int = 5000,
    lr: float = 0.01,
    draws: int = 1,
    kl_weight: float = 1.0,
    warmup: int = 0,
    estimator: str = "reparameterised",
    init_scale: float = 0.01,
    decay: float = 0.5,
    generator: torch.Generator | None = None,
    progress: bool = True,
    device: torch.device | str | None = None,
) -> Posterior:
    """Fit a factorised normal to the posterior of w by maximising the ELBO with Adam.

    Parameters
    ----------
    model
        What is unknown, its prior and its likelihood. Starts at the network's present parameters.
    data
        A pair of tensors, a `Standardized`, or a `DataLoader`; a mini-batch's likelihood is scaled
        by n / batch.
    steps
        Number of gradient steps.
    lr
        Adam's step size.
    draws
        Draws of w a step.
    kl_weight
        Weight of the KL term. Anything but 1 is tempering: the result is no longer an approximation
        of the posterior, and its repr says so.
    warmup
        Steps over which the weight of the KL grows to kl_weight. It changes the way, not the goal.
        From a fresh network a tenth of the steps helps: without it the fit may call the curve noise and stay there.
    estimator
        "reparameterised": one draw of w a step, for all examples. "local" and "flipout" move each
        example by itself (see `bnnlib.nets.estimators`): the same expected gradient, which scatters
        less on batches of many examples, for more time a step.
    init_scale
        Where each scale starts. Small, so that the first steps see the network and not the noise.
    decay
        Last part of the steps over which lr falls linearly to zero; the last draws of a constant
        lr are spread around the optimum.
    generator
        Source of all draws; torch's default generator if None.
    progress
        Show a progress bar.
    device
        Where to train; the result is on the model's own device.

    Returns
    -------
    Posterior
        With history `nelbo`, `nll` (one-draw estimate of -E_q log p(D | w)) and `kl`, in nats, and
        `kl_weight` a step where there was a warm-up. An interrupt from the keyboard returns what is
        there, marked as interrupted.

    Raises
    ------
    ValueError
        Bad data or settings, before training starts.
    FloatingPointError
        The loss became NaN or infinite; the message names the step.
    """
    settings = Settings(steps, lr, draws, kl_weight, warmup, init_scale, decay, generator, progress, estimator)
    prepared = prepare(model, data)
    target = torch.device(device) if device is not None else model.device
    family = MeanField(model.size, model.start().to(target), init_scale)
    return run(model, prepared, family, "mean_field", settings, target)
