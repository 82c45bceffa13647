"""Dropout as an approximate posterior: a distribution over networks of which some units are missing.

    q(w):  w = loc * mask / (1 - p),     maximise  E_q[log p(D | w)] + E_q[log p(w)]  over loc

(Gal and Ghahramani 2016). The entropy of the masks does not depend on loc, so this is the ELBO up to a constant. The
prior is the weight decay: with N(m, s^2), -E_q[log p(w)] is ((loc - m)^2 + loc^2 p / (1 - p)) / (2 s^2) and a constant.
The spread is tied to p and to the size of the weights; with p given it does not vanish as data come in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bnnlib._random import _borrowed as borrowed
from bnnlib._random import place
from bnnlib._settings import check_part, check_positive, check_whole
from bnnlib.nets._fitting import Data, Prepared, batches, prepare
from bnnlib.nets._masks import find_masks
from bnnlib.nets._training import NegativeLogJoint, descend
from bnnlib.nets.masked import Masked
from bnnlib.nets.model import Model
from bnnlib.nets.posterior import Posterior

__all__ = ["dropout"]


def dropout(
    model: Model,
    data: Data,
    *,
    p: float | Sequence[float] | None = None,
    steps: int = 3000,
    lr: float = 0.02,
    decay: float = 0.5,
    held_out: float = 0.2,
    generator: torch.Generator | None = None,
    progress: bool = True,
    device: torch.device | str | None = None,
) -> Posterior:
    """Train with dropout, and keep it as a distribution over w: one mask is one function.

    Only the Dropout layers are switched on, each point with a mask of its own while training. BatchNorm and all else
    stay as they are in the model. The noise is learned as a point.

    Parameters
    ----------
    model
        Its net has `nn.Dropout` layers, or for channels `nn.Dropout2d` and the like, each of whose outputs goes into
        one Linear or convolution; between them only Flatten, ReLU, or for channels pooling. Priors must be normal.
    data
        A pair of tensors, a `Standardized`, or a `DataLoader`; a mini-batch's likelihood is scaled by n / batch.
    p
        Probability of switching a unit off. None: the layers' own. A number: for all layers. A list: each is trained on
        a part of the data, and the one with the highest log density of the rest is taken, trained on everything.
    steps, lr, decay
        Adam's steps, their size, and the last part of them over which lr falls linearly to zero.
    held_out
        For a list: the part of the data that is held out.
    generator
        Source of masks, and of the split.
    progress
        Show a progress bar.
    device
        Where to train; the result is on the model's own device.

    Returns
    -------
    Posterior
        Over `Masked` networks, with history `loss` in nats (with the masks of the step); in the diagnostics `p`, and
        for a list the mean held-out negative log density of each, in the units that the network is trained in. An
        interrupt from the keyboard returns the network that was being trained, marked as interrupted.

    Raises
    ------
    ValueError
        Bad data or settings; a net without Dropout, or with one that is no mask of one layer's inputs, by its name.
    FloatingPointError
        The loss became NaN or infinite; the message names the step.
    """
    check_whole(steps=steps)
    check_positive(lr=lr)
    check_part(decay=decay)
    grid = None if p is None else [p] if isinstance(p, float | int) else list(p)
    _check_grid(grid, held_out)
    prepared = prepare(model, data)
    if not model.prior.normal:
        raise ValueError(f"dropout needs normal priors on the weights, got {model.prior}; use mean_field")
    masks = find_masks(model, prepared.x[:2])
    fit = partial(_fit, model, generator=generator, steps=steps, lr=lr, decay=decay, progress=progress, device=device)
    chosen, scores = None if grid is None else grid[0], dict[float, float]()
    trained: Posterior | None = None
    if grid is not None and len(grid) > 1:
        train, (x, y) = _split(prepared, held_out, generator)
        for value in grid:
            trained = fit(prepare(model, train), masks, value)
            score = trained.predict(x, draws=100, generator=generator).log_prob(y)
            scores[value] = -float(score.mean())
            if trained.diagnostics["interrupted"]:
                break
        chosen = min(scores, key=lambda value: scores[value])
    # Who stops the search among the p wants no more steps: what is there was trained without the held-out points.
    if trained is None or not trained.diagnostics["interrupted"]:
        trained = fit(prepared, masks, chosen)
    found = {f"held_out_nll p={value:g}": score for value, score in scores.items()}
    return replace(trained, diagnostics={**trained.diagnostics, **found}, scaling=prepared.scaling)


def _fit(
    model: Model,
    prepared: Prepared,
    masks: Masked,
    p: float | None,
    *,
    generator: torch.Generator | None,
    steps: int,
    lr: float,
    decay: float,
    progress: bool,
    device: torch.device | str | None,
) -> Posterior:
    """Train at one p, or at the layers' own: a posterior in the units that the network is trained in."""
    q = masks if p is None else Masked(masks.loc, masks.group, torch.full_like(masks.p, p))
    home, target = model.device, torch.device(device) if device is not None else model.device
    loss = NegativeLogJoint(model if target == home else model.to(target), q.excess[: model.net_size].to(target))
    for module in loss.net.net.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.train()
            module.p = module.p if p is None else p
    stream = batches(prepared, target)

    def gradient() -> Tensor:
        x, y = next(stream)
        return loss(x, y, prepared.n / len(x))

    with borrowed(generator):  # nn.Dropout draws from torch's global generator only
        record, interrupted = descend("dropout", loss.w, gradient, steps=steps, lr=lr, decay=decay, progress=progress)
    return Posterior(
        model=model,
        distribution=Masked(loss.w.detach().to(home).clone(), q.group, q.p),
        method="dropout",
        history={"loss": record},
        diagnostics={"p": float(q.p.mean()), "steps": float(len(record)), "interrupted": float(interrupted)},
    )


def _split(prepared: Prepared, part: float, generator: torch.Generator | None) -> tuple[Data, tuple[Tensor, Tensor]]:
    """Data to train on, in mini-batches where the data came in such, and a pair to look at."""
    x, y = prepared.everything()
    order = torch.randperm(len(x), generator=generator, device=place(generator, x)).to(x.device)
    test, train = order.split([max(1, round(part * len(x))), len(x) - max(1, round(part * len(x)))])
    if prepared.loader is None:
        return (x[train], y[train]), (x[test], y[test])
    dataset = TensorDataset(x[train], y[train])
    loader = DataLoader(dataset, batch_size=len(prepared.x), shuffle=True, generator=generator)
    return loader, (x[test], y[test])


def _check_grid(grid: list[float] | None, held_out: float) -> None:
    if grid is not None and (not grid or not all(0 <= v < 1 for v in grid)):
        raise ValueError(f"p is a probability in [0, 1), or a list of such; got {grid}")
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is a part of the data, between 0 and 1, got {held_out}")
