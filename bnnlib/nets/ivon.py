"""Variational learning at the cost of Adam: a factorised normal whose variances follow from the curvature (IVON).

    q(w) = N(m, diag(s^2)),     s^2 = 1 / (N (h + d)),     d = prior precision / N

One draw w ~ q a step. With g the gradient of the mean loss of a point at w (Shen et al. 2024):

    c  =  g (w - m) / s^2                                    curvature without a second derivative (Price's theorem)
    h <-  b2 h + (1 - b2) c + (1 - b2)^2 (h - c)^2 / (2 (h + d))      the last term keeps h + d positive
    m <-  m - lr (mean of g + d (m - prior mean)) / (h + d)

Where it rests, the gradients of the ELBO in m and s are zero: it is the mean-field optimum.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from bnnlib._random import fill_normal
from bnnlib._settings import check_part, check_positive, check_whole
from bnnlib.nets._fitting import Data, batches, prepare, progress_bar
from bnnlib.nets.model import Model
from bnnlib.nets.posterior import Posterior
from bnnlib.nets.workspace import Workspace

__all__ = ["ivon"]


def ivon(
    model: Model,
    data: Data,
    *,
    steps: int = 5000,
    lr: float = 0.1,
    beta1: float = 0.9,
    beta2: float | None = None,
    init_curvature: float = 1.0,
    kl_weight: float = 1.0,
    decay: float = 0.5,
    generator: torch.Generator | None = None,
    progress: bool = True,
    device: torch.device | str | None = None,
) -> Posterior:
    """Fit a factorised normal to the posterior of w by the improved variational online Newton method.

    Parameters
    ----------
    model
        What is unknown, its prior and its likelihood. Starts at the network's present parameters. Priors that are
        not normal, that of the noise among them, count as part of the loss.
    data
        A pair of tensors, a `Standardized`, or a `DataLoader`; a mini-batch's likelihood is scaled by n / batch.
    steps
        Number of steps, one gradient each.
    lr
        Step size in units of init_curvature: the first steps are lr * gradient, later ones lr * init_curvature of
        Newton's. The default is for a fresh network, which has far to go. From one that is already trained a third
        to a half of it is calmer: one draw's gradient is noisy, and long steps lose units for good.
    beta1, beta2
        How slowly the means of gradient and curvature move; the curvature remembers M = 1 / (1 - beta2) steps. It
        has to forget init_curvature, which takes several M: a run of only a few M ends with the q of its start, far
        too narrow. With a small M the curvature is noisy, and too large on average. None: M is a tenth of the steps,
        at least 20 and at most 2,000 (beta2 = 0.9995).
    init_curvature
        Where h starts, a curvature of the mean loss of a point. Large: a narrow q and short steps at first.
    kl_weight
        Weight of the KL term. Anything but 1 is tempering, and the result's repr says so.
    decay
        Last part of the steps over which lr falls linearly to zero.
    generator
        Source of all draws; torch's default generator if None.

    Returns
    -------
    Posterior
        With history `nll`, the one-draw estimate of -E_q log p(D | w) in nats. An interrupt from the keyboard
        returns what is there, marked as interrupted.

    Raises
    ------
    ValueError
        Bad data or settings, before training starts.
    FloatingPointError
        The loss became NaN or infinite; the message names the step.
    """
    _check_settings(steps, lr, beta1, beta2, init_curvature, kl_weight, decay)
    if beta2 is None:
        beta2 = 1 - 1 / min(max(steps / 10, 20), 2000)
    prepared = prepare(model, data)
    home = model.device
    target = torch.device(device) if device is not None else home
    work = model if target == home else model.to(target)
    state = _State(work, prepared.n, beta1, beta2, init_curvature, kl_weight, generator)
    record = state.mean.new_zeros(steps)
    stream = batches(prepared, target)
    done, interrupted = 0, False
    constant = steps - int(decay * steps)
    try:
        for step in progress_bar(steps, "ivon", progress):
            x, y = next(stream)
            record[step] = state.gradient(x, y)
            left = 1.0 if step < constant else (steps - step) / (steps - constant + 1)
            state.move(lr * left)
            done = step + 1
            if done % 100 == 0 or done == steps:
                _check_finite(record[:done], state, done, lr)
    except ValueError:
        _check_finite(record[:done], state, done, lr)  # a NaN that torch's own checks of arguments met first
        raise
    except KeyboardInterrupt:
        interrupted = True
        warnings.warn(
            f"ivon was interrupted after {done} of {steps} steps; the result is what was reached", stacklevel=2
        )
    return Posterior(
        model=model,
        distribution=Independent(Normal(state.mean.to(home), state.scale().to(home)), 1),
        method="ivon",
        history={"nll": record[:done].cpu()},
        diagnostics={"kl_weight": float(kl_weight), "steps": float(done), "interrupted": float(interrupted)},
        scaling=prepared.scaling,
    )


class _State:
    """Mean, curvature and momentum of a fit in progress. Every buffer is allocated once."""

    def __init__(
        self,
        model: Model,
        n: int,
        beta1: float,
        beta2: float,
        init_curvature: float,
        kl_weight: float,
        generator: torch.Generator | None,
    ) -> None:
        self.model, self.n, self.generator = model, n, generator
        self.beta1, self.beta2, self.kl_weight, self.steps = beta1, beta2, kl_weight, 0
        self.net = Workspace(model, gradient=True)
        self.mean = model.start()
        self.curvature = torch.full_like(self.mean, init_curvature)
        self.momentum, self.move_by = torch.zeros_like(self.mean), torch.empty_like(self.mean)
        # Entries with a normal prior have it in d; the others (noise, heavy tails) in the loss.
        self.closed = model.net_size if model.prior.normal else 0
        self.pull, self.centre = torch.zeros_like(self.mean), torch.zeros_like(self.mean)
        if self.closed:
            self.pull[: self.closed] = kl_weight * model.prior.scale.to(self.mean) ** -2 / n
            self.centre[: self.closed] = model.prior.loc.to(self.mean)
        # Short steps first, whatever the loss is: the step size is meant in units of the curvature it starts at.
        self.unit = init_curvature + self.pull
        self.total = self.curvature + self.pull
        self.strength = n / kl_weight

    def scale(self) -> Tensor:
        """Standard deviation of q, (P,)."""
        return (self.strength * self.total).rsqrt()

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """Draw w, leave the gradient of the loss there in net.grad; return -log p(D | w), estimated from the batch."""
        net = self.net
        torch.mul(self.total, self.strength, out=self.move_by).rsqrt_()
        self.move_by.mul_(fill_normal(net.grad, self.generator))  # s * eps, in memory that is free until backward
        with torch.no_grad():
            torch.add(self.mean, self.move_by, out=net.w)
        nll = net.misfit(x, y, self.n / len(x))
        if self.closed < len(self.mean):
            rest = net.w[self.closed :].detach().requires_grad_()
            (slope,) = torch.autograd.grad(self._log_prior_of_rest(rest), rest)
            net.grad[self.closed :].sub_(slope, alpha=self.kl_weight)
        net.grad.div_(self.n)
        return nll

    def _log_prior_of_rest(self, rest: Tensor) -> Tensor:
        size = self.model.net_size - self.closed
        log_p = self.model.likelihood.unknown_log_prior(rest[size:])
        return log_p if size == 0 else log_p + self.model.prior.log_prob(rest[:size])

    @torch.no_grad()
    def move(self, lr: float) -> None:
        """Update curvature and mean by the gradient that is in net.grad."""
        grad, keep = self.net.grad, 1 - self.beta2
        self.steps += 1
        self.momentum.lerp_(grad, 1 - self.beta1)
        # With t = (1 - b2) (c - h) / (h + d), the new h + d is the old one times 1 + t + t^2 / 2, at least a half.
        estimate = self.move_by.mul_(grad).mul_(self.strength)  # c / (h + d)
        t = estimate.mul_(keep).sub_((self.curvature / self.total).mul_(keep))
        self.total.mul_(t.add(0.5 * t * t).add_(1))
        torch.sub(self.total, self.pull, out=self.curvature)
        step = self.momentum.div(1 - self.beta1**self.steps)
        step.addcmul_(self.pull, self.mean - self.centre).div_(self.total).mul_(self.unit)
        self.mean.sub_(step, alpha=lr)


def _check_settings(
    steps: int, lr: float, beta1: float, beta2: float | None, init_curvature: float, kl_weight: float, decay: float
) -> None:
    check_whole(steps=steps)
    check_positive(lr=lr, init_curvature=init_curvature, kl_weight=kl_weight)
    for name, part in (("beta1", beta1), ("beta2", beta2)):
        if part is not None and not 0 <= part < 1:
            raise ValueError(f"{name} says how much of the past is kept, at least 0 and below 1, got {part}")
    check_part(decay=decay)


def _check_finite(record: Tensor, state: _State, done: int, lr: float) -> None:
    bad = (~torch.isfinite(record)).nonzero()
    if len(bad) or not bool(torch.isfinite(state.mean).all() & torch.isfinite(state.total).all()):
        step = int(bad[0]) if len(bad) else done
        what = f"loss is {record[step].item()}" if len(bad) else "weights are NaN"
        raise FloatingPointError(
            f"the {what} at step {step}; try a smaller lr (now {lr}), a larger init_curvature, standardised data "
            "(bnnlib.data.Standardized), or a prior that keeps the noise away from zero"
        )
