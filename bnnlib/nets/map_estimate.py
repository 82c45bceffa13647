"""The best single w: the maximum of the posterior density, where most other methods start.

    w_map = argmax log p(w) + sum_i log p(y_i | f(x_i; w))

A point has no spread, so its predictions hold the noise and no ignorance.
"""

from __future__ import annotations

import torch

from bnnlib._settings import check_part, check_positive, check_whole
from bnnlib.nets._fitting import Data, batches, prepare
from bnnlib.nets._training import NegativeLogJoint, descend
from bnnlib.nets.empirical import Empirical
from bnnlib.nets.model import Model
from bnnlib.nets.posterior import Posterior

__all__ = ["map_estimate"]


def map_estimate(
    model: Model,
    data: Data,
    *,
    steps: int = 3000,
    lr: float = 0.02,
    decay: float = 0.5,
    generator: torch.Generator | None = None,
    progress: bool = True,
    device: torch.device | str | None = None,
) -> Posterior:
    """Maximise the log joint density over the flat vector w with Adam.

    Unknown noise is part of w, in its unconstrained coordinate u (its logarithm, where it only has to be positive).
    The density that is maximised is the one over u, Jacobian included. A maximum is not invariant: the best u is not
    the u of the best noise scale. The two differ by one part in the number of observations.

    Parameters
    ----------
    model
        What is unknown, its prior and its likelihood. Starts at the network's present parameters.
    data
        A pair of tensors, a `Standardized`, or a `DataLoader`; a mini-batch's likelihood is scaled by n / batch.
    steps
        Number of gradient steps.
    lr
        Adam's step size.
    decay
        Last part of the steps over which lr falls linearly to zero.
    generator
        Not used: a pair of tensors leaves nothing to chance, a loader has a generator of its own.
    progress
        Show a progress bar.
    device
        Where to train; the result is on the model's own device.

    Returns
    -------
    Posterior
        A set of one value, `Empirical`, with history `loss`, -log p(w, D) in nats (of a mini-batch: its unbiased
        estimate). An interrupt from the keyboard returns what is there, marked as interrupted.

    Raises
    ------
    ValueError
        Bad data or settings, before training starts.
    FloatingPointError
        The loss became NaN or infinite; the message names the step.
    """
    check_whole(steps=steps)
    check_positive(lr=lr)
    check_part(decay=decay)
    prepared = prepare(model, data)
    target = torch.device(device) if device is not None else model.device
    loss = NegativeLogJoint(model if target == model.device else model.to(target))
    stream = batches(prepared, target)

    def gradient() -> torch.Tensor:
        x, y = next(stream)
        return loss(x, y, prepared.n / len(x))

    record, interrupted = descend("map_estimate", loss.w, gradient, steps=steps, lr=lr, decay=decay, progress=progress)
    return Posterior(
        model=model,
        distribution=Empirical(loss.w.detach().to(model.device).unsqueeze(0).clone()),
        method="map_estimate",
        history={"loss": record},
        diagnostics={"steps": float(len(record)), "interrupted": float(interrupted)},
        scaling=prepared.scaling,
    )
