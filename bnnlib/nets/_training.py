"""What the methods that train by steps share: -log p(w, D) with its gradient, and a loop of Adam's steps around it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from bnnlib.nets.model import Model
from bnnlib.nets.workspace import Workspace
from bnnlib.variational._loop import descend as adam

__all__ = ["NegativeLogJoint", "check_finite", "descend", "report_interrupt"]

_REMEDY = "standardised data (bnnlib.data.Standardized), or a prior that keeps the noise away from zero"


class NegativeLogJoint:
    """-log p(w) - ratio * log p(y | x, w) at the content of a flat buffer, with its gradient in another one.

    Parameters
    ----------
    model
        What w means.
    excess
        For a q(w) that is spread around w: its variance in each network parameter, as a multiple of w^2. Then the
        prior's part is E_q[log p(w)], in closed form; priors must be normal.

    Attributes
    ----------
    w, grad
        The buffer, shape (P,), and the gradient, which is `w.grad` too, so that an optimiser can work on `w` itself.
    """

    def __init__(self, model: Model, excess: Tensor | None = None) -> None:
        self.model, self.net, self.excess = model, Workspace(model, gradient=True), excess
        self.w, self.grad = self.net.w, self.net.grad
        self.w.grad = self.grad
        # Normal priors have their gradient written by hand; autograd does the others and the noise.
        self.closed = model.net_size if model.prior.normal else 0
        if self.closed:
            self.loc = model.prior.loc.to(self.w)
            scale = model.prior.scale.to(self.w)
            self.precision = scale**-2
            self.constant = float(scale.log().sum()) + 0.5 * self.closed * math.log(2 * math.pi)

    @torch.no_grad()
    def __call__(self, x: Tensor, y: Tensor, ratio: float) -> Tensor:
        """Value in nats, a scalar without gradient; `grad` holds the gradient until the next call."""
        total = self.net.misfit(x, y, ratio)
        c = self.closed
        if c:
            weights = self.w[:c]
            shift = weights - self.loc
            pull = shift * self.precision
            total += 0.5 * torch.dot(shift, pull) + self.constant
            self.grad[:c].add_(pull)
            if self.excess is not None:
                pull = weights * self.precision * self.excess
                total += 0.5 * torch.dot(weights, pull)
                self.grad[:c].add_(pull)
        if c < len(self.w):
            rest = self.w[c:].detach().requires_grad_()
            size = self.model.net_size - c
            with torch.enable_grad():
                log_p = self.model.likelihood.unknown_log_prior(rest[size:])
                if size:
                    log_p = log_p + self.model.prior.log_prob(rest[:size])
                (slope,) = torch.autograd.grad(log_p, rest)
            total -= log_p.detach()
            self.grad[c:].sub_(slope)
        return total


def descend(
    name: str,
    w: Tensor,
    gradient: Callable[[], Tensor],
    *,
    steps: int,
    lr: float,
    decay: float,
    progress: bool,
    members: int | None = None,
) -> tuple[Tensor, bool]:
    """Take Adam's steps on w, in place, by the loop that the variational fits use.

    Parameters
    ----------
    gradient
        Fills `w.grad` and returns the loss, shape () or one entry a member.
    decay
        Last part of the steps over which lr falls linearly to zero.

    Returns
    -------
    tuple
        The losses of the steps that were done, (steps,) or (steps, members), on the CPU, and whether the keyboard
        interrupted them.

    Raises
    ------
    FloatingPointError
        The loss or w became NaN or infinite.
    """
    record = w.detach().new_zeros((steps, members or 1))

    def step(_: int, row: Tensor) -> None:
        row.copy_(gradient())

    done, interrupted = adam(
        step,
        [w],
        record,
        lr=lr,
        decay=decay,
        name=name,
        progress=progress,
        remedy=_REMEDY,
        stacklevel=4,
    )
    if not bool(torch.isfinite(w).all()):
        raise FloatingPointError(f"w has NaN or infinite values after step {done - 1}; try a smaller lr (now {lr})")
    losses = record[:done].cpu()
    return (losses if members else losses[:, 0]), interrupted


def report_interrupt(name: str, done: int, steps: int) -> None:
    """Warn that a run was cut short by the keyboard."""
    warnings.warn(f"{name} was interrupted after {done} of {steps} steps; the result is what was reached", stacklevel=4)


def check_finite(losses: list[Tensor], first: int, lr: float) -> None:
    """Raise FloatingPointError, with the step and what to try, where a loss is not finite."""
    if not losses:
        return
    bad = ~torch.isfinite(torch.stack(losses)).reshape(len(losses), -1).all(-1)
    if bool(bad.any()):
        at = int(bad.nonzero()[0])
        raise FloatingPointError(
            f"the loss is {losses[at].sum().item()} at step {first + at}; try a smaller lr (now {lr}), {_REMEDY}"
        )
