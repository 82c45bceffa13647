"""Stochastic variational inference: any log joint, any family, one loop (Kucukelbir et al. 2017)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from bnnlib.variational._checks import LogJoint, check_estimator
from bnnlib.variational._loop import check_settings, descend
from bnnlib.variational.elbo import elbo
from bnnlib.variational.families import Family

__all__ = ["Fit", "fit"]


@dataclass(frozen=True, repr=False)
class Fit:
    """The member of a family that a fit found.

    Attributes
    ----------
    distribution
        A torch distribution over z, event shape (D,), without gradient.
    family
        The family at its last parameters; `fit` can go on from it.
    history
        `nelbo`, shape (steps,): the mean over the step's draws, in nats.
    diagnostics
        `steps` done, `interrupted`.
    """

    distribution: Distribution
    family: Family
    history: Mapping[str, Tensor]
    diagnostics: Mapping[str, float]

    def __repr__(self) -> str:
        note = ", interrupted" if self.diagnostics["interrupted"] else ""
        return f"Fit({self.family}, {int(self.diagnostics['steps'])} steps{note})"


def fit(
    log_joint: LogJoint,
    family: Family,
    *,
    steps: int = 2000,
    lr: float = 0.01,
    draws: int = 1,
    estimator: str = "reparameterised",
    baseline: float | str | None = None,
    decay: float = 0.5,
    generator: torch.Generator | None = None,
    progress: bool = True,
) -> Fit:
    """Raise the ELBO by Adam, one noisy gradient a step.

    Parameters
    ----------
    log_joint
        z of shape (S, D) to log p(x, z) of shape (S,). For mini-batches: log p(z) + n / batch times
        the batch's log likelihood, the batch chosen anew at each call.
    family
        Where to start, and what may be reached. It is not changed.
    steps, lr
        Number of gradient steps, Adam's step size.
    draws
        Draws of z a step.
    estimator, baseline
        How the gradient is estimated, see `elbo`.
    decay
        Last part of the steps over which lr falls linearly to zero.
    generator
        Source of all draws; torch's default generator if None.
    progress
        Show a progress bar.

    Returns
    -------
    Fit
        An interrupt from the keyboard returns what is there, marked as interrupted.

    Raises
    ------
    ValueError
        Bad settings, or a log joint that does not take the family's draws, before the first step.
    FloatingPointError
        The log joint became NaN or infinite; the message names z or the step.

    Examples
    --------
    >>> from bnnlib.variational import MeanField
    >>> found = fit(lambda z: -0.5 * z.square().sum(-1), MeanField(3), steps=10, progress=False)
    >>> found.distribution.mean.shape
    torch.Size([3])
    """
    if not isinstance(family, Family):
        raise TypeError(f"family must be MeanField, FullRank, LowRank or Flow, got {type(family).__name__}")
    check_settings(steps, lr, draws, decay)
    check_estimator(estimator)
    family = copy.deepcopy(family)
    _try_once(log_joint, family, estimator)

    def step(_: int, record: Tensor) -> None:
        for p in family.parameters:
            p.grad = None
        bound = elbo(log_joint, family, draws, estimator=estimator, baseline=baseline, generator=generator).mean()
        (-bound).backward()
        record[0] = -bound.detach()

    record = family.parameters[0].new_zeros((steps, 1)).detach()
    done, interrupted = descend(
        step,
        family.parameters,
        record,
        lr=lr,
        decay=decay,
        name="fit",
        progress=progress,
        remedy="a family that starts with a smaller scale, or unknowns of about unit size",
    )
    return Fit(
        distribution=family.settled(),
        family=family,
        history={"nelbo": record[:done, 0]},
        diagnostics={"steps": float(done), "interrupted": float(interrupted)},
    )


def _try_once(log_joint: LogJoint, family: Family, estimator: str) -> None:
    """One evaluation at the start, with draws of its own, so that a misfit is named before any work."""
    source = torch.Generator(device=family.parameters[0].device).manual_seed(0)
    try:
        elbo(log_joint, family, 2, estimator=estimator, generator=source)
    except (RuntimeError, IndexError, ValueError) as error:
        if str(error).startswith("log_joint"):
            raise
        raise ValueError(
            f"log_joint failed at draws of {family}, shape (2, {family.size}): {error}. Is the family of the size "
            "that the model asks for?"
        ) from error
