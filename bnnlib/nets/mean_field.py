"""Mean-field variational inference: a normal for each entry of w, fitted by the ELBO.

    q(w) = prod_p N(w_p | loc_p, scale_p^2),     scale = exp(log_scale)
    NELBO = KL(q || p(w)) - E_q[log p(D | w)],   log p(D) >= -NELBO

One draw w = loc + scale * eps a step (Kingma and Welling 2014; Blundell et al. 2015). The KL of two
normals and its gradient are written by hand:

    dKL/dloc = (loc - m) / s^2,     dKL/dscale = scale / s^2 - 1 / scale.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from bnnlib.nets._fitting import Data, batches, prepare, progress_bar
from bnnlib.nets.model import Model
from bnnlib.nets.posterior import Posterior
from bnnlib.nets.workspace import Workspace

__all__ = ["mean_field"]


def mean_field(
    model: Model,
    data: Data,
    *,
    steps: int = 5000,
    lr: float = 0.01,
    draws: int = 1,
    kl_weight: float = 1.0,
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
        With history `nelbo`, `nll` (one-draw estimate of -E_q log p(D | w)) and `kl`, in nats. An
        interrupt from the keyboard returns what is there, marked as interrupted.

    Raises
    ------
    ValueError
        Bad data or settings, before training starts.
    FloatingPointError
        The loss became NaN or infinite; the message names the step.
    """
    _check_settings(steps, lr, draws, kl_weight, init_scale, decay)
    prepared = prepare(model, data)
    home = model.device
    target = torch.device(device) if device is not None else home
    work = model if target == home else model.to(target)

    loc = work.start()
    log_scale = torch.full_like(loc, math.log(init_scale))
    bound = _Nelbo(work, loc, log_scale, draws, kl_weight, generator)
    optimizer = torch.optim.Adam([loc, log_scale], lr=lr, fused=True)
    record = loc.new_zeros((steps, 2))
    stream = batches(prepared, target)
    done, interrupted = 0, False
    constant = steps - int(decay * steps)
    try:
        for step in progress_bar(steps, "mean field", progress):
            x, y = next(stream)
            bound.step(x, y, prepared.n / len(x), record[step])
            if step >= constant:
                optimizer.param_groups[0]["lr"] = lr * (steps - step) / (steps - constant + 1)
            optimizer.step()
            done = step + 1
            if done % 100 == 0 or done == steps:
                _check_finite(record[:done], lr)
    except ValueError:
        _check_finite(record[: done + 1], lr)  # a NaN that torch's own checks of arguments met first
        raise
    except KeyboardInterrupt:
        interrupted = True
        warnings.warn(
            f"mean_field was interrupted after {done} of {steps} steps; the result is what was reached", stacklevel=2
        )
    nll, kl = record[:done].cpu().unbind(-1)
    scale = _scale(log_scale.detach()).to(home)
    return Posterior(
        model=model,
        distribution=Independent(Normal(loc.detach().to(home), scale), 1),
        method="mean_field",
        history={"nelbo": nll + kl_weight * kl, "nll": nll, "kl": kl},
        diagnostics={"kl_weight": float(kl_weight), "steps": float(done), "interrupted": float(interrupted)},
        scaling=prepared.scaling,
    )


class _Nelbo:
    """NELBO and its gradient in loc and log_scale, with every buffer allocated once.

    Written in log_scale, the gradient needs one exponential and no logarithm a step:

        dKL/dlog_scale = scale^2 / s^2 - 1.
    """

    def __init__(
        self,
        model: Model,
        loc: Tensor,
        log_scale: Tensor,
        draws: int,
        kl_weight: float,
        generator: torch.Generator | None,
    ) -> None:
        self.model, self.loc, self.log_scale = model, loc, log_scale
        self.draws, self.kl_weight, self.generator = draws, kl_weight, generator
        self.net = Workspace(model, gradient=True)
        # One draw a step: what backward leaves in the workspace is the gradient in loc, nothing is copied.
        self.grad_loc = loc.grad = self.net.grad if draws == 1 else torch.zeros_like(loc)
        self.grad_log = log_scale.grad = torch.zeros_like(loc)
        self.scale, self.move = torch.empty_like(loc), torch.empty_like(loc)
        # Entries with a normal prior have the KL in closed form; the others (noise, heavy tails) by the draw.
        self.closed = model.net_size if model.prior.normal else 0
        if self.closed:
            self.prior_loc = model.prior.loc.to(loc)
            self.prior_precision = model.prior.scale.to(loc) ** -2
            self.constant = float(model.prior.scale.to(loc).log().sum()) - 0.5 * self.closed

    @torch.no_grad()
    def step(self, x: Tensor, y: Tensor, ratio: float, record: Tensor) -> None:
        """Write the gradient into loc.grad and log_scale.grad, and (nll, kl) into `record`."""
        _scale(self.log_scale, out=self.scale)
        record.zero_()
        if self.draws > 1:
            self.grad_loc.zero_()
        self.grad_log.zero_()
        for _ in range(self.draws):
            self._one_draw(x, y, ratio / self.draws, record)
        if self.closed:
            self._closed_kl(record)

    def _one_draw(self, x: Tensor, y: Tensor, ratio: float, record: Tensor) -> None:
        net = self.net
        self.move.normal_(generator=self.generator).mul_(self.scale)  # scale * eps
        torch.add(self.loc, self.move, out=net.w)
        net.grad.zero_()
        with torch.enable_grad():
            nll = self.model.likelihood.log_likelihood(net(x), y, net.u) * -ratio
            nll.backward()
        record[0] += nll.detach()
        if self.closed < len(self.loc):
            self._open_kl(record)
        if self.draws > 1:
            self.grad_loc.add_(net.grad)
        self.grad_log.addcmul_(net.grad, self.move)

    def _open_kl(self, record: Tensor) -> None:
        """E_q[log q - log p] where p is not normal: entropy of q in closed form, log p by the draw."""
        c, weight = self.closed, self.kl_weight / self.draws
        rest = self.net.w[c:].detach().requires_grad_()
        with torch.enable_grad():
            log_prior = self._log_prior_of_rest(rest)
            (slope,) = torch.autograd.grad(log_prior, rest)
        self.net.grad[c:].sub_(slope, alpha=weight)
        self.grad_log[c:].sub_(weight)  # the entropy grows by one nat with each unit of log_scale
        entropy = self.log_scale[c:].sum() + 0.5 * len(rest) * (1 + math.log(2 * math.pi))
        record[1] += (-entropy - log_prior.detach()) / self.draws

    def _log_prior_of_rest(self, rest: Tensor) -> Tensor:
        size = self.model.net_size - self.closed
        log_p = self.model.likelihood.unknown_log_prior(rest[size:])
        return log_p if size == 0 else log_p + self.model.prior.log_prob(rest[:size])

    def _closed_kl(self, record: Tensor) -> None:
        c, weight = self.closed, self.kl_weight
        shift, scale = self.loc[:c] - self.prior_loc, self.scale[:c]
        pull = shift * self.prior_precision
        ratio = (scale * scale).mul_(self.prior_precision)
        record[1] += 0.5 * (torch.dot(shift, pull) + ratio.sum()) - self.log_scale[:c].sum() + self.constant
        self.grad_loc[:c].add_(pull, alpha=weight)
        self.grad_log[:c].add_(ratio.sub_(1), alpha=weight)


def _scale(log_scale: Tensor, out: Tensor | None = None) -> Tensor:
    # A scale that underflows to zero has no density.
    return torch.exp(log_scale, out=out).clamp_min_(torch.finfo(log_scale.dtype).tiny)


def _check_settings(steps: int, lr: float, draws: int, kl_weight: float, init_scale: float, decay: float) -> None:
    for name, whole in (("steps", steps), ("draws", draws)):
        if isinstance(whole, bool) or not isinstance(whole, int) or whole < 1:
            raise ValueError(f"{name} must be a whole number, at least 1, got {whole}")
    for name, positive in (("lr", lr), ("init_scale", init_scale)):
        if not 0 < positive < float("inf"):
            raise ValueError(f"{name} must be positive and finite, got {positive}")
    if not 0 <= kl_weight < float("inf"):
        raise ValueError(f"kl_weight must not be negative, got {kl_weight}; 1 is the ELBO")
    if not 0 <= decay <= 1:
        raise ValueError(f"decay is a part of the steps, between 0 and 1, got {decay}")


def _check_finite(record: Tensor, lr: float) -> None:
    bad = ~torch.isfinite(record).all(-1)
    if bool(bad.any()):
        step = int(bad.nonzero()[0])
        raise FloatingPointError(
            f"the loss is {record[step].sum().item()} at step {step}; try a smaller lr (now {lr}), standardised data "
            "(bnnlib.data.Standardized), or a prior that keeps the noise away from zero"
        )
