"""Variational inference over the weights of a network: any family of normals, fitted by the ELBO.

    NELBO = -entropy(q) - E_q[log p(w)] - E_q[log p(D | w)],   log p(D) >= -NELBO

The entropy and the expectation of a normal prior are in closed form; what is left is estimated by the
draw. The families and the loop are those of `bnnlib.variational`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bnnlib._settings import check_positive, check_whole
from bnnlib.nets._fitting import Prepared, batches
from bnnlib.nets.estimators import KINDS, SampledOutputs
from bnnlib.nets.model import Model
from bnnlib.nets.posterior import Posterior
from bnnlib.nets.workspace import Workspace
from bnnlib.variational._loop import check_settings, descend
from bnnlib.variational.families import NormalFamily

_REMEDY = "standardised data (bnnlib.data.Standardized), or a prior that keeps the noise away from zero"


@dataclass(frozen=True)
class Settings:
    """What the variational methods have in common; checked before any work starts."""

    steps: int
    lr: float
    draws: int
    kl_weight: float
    warmup: int
    init_scale: float
    decay: float
    generator: torch.Generator | None
    progress: bool
    estimator: str = "reparameterised"

    def __post_init__(self) -> None:
        check_settings(self.steps, self.lr, self.draws, self.decay)
        check_positive(init_scale=self.init_scale)
        check_whole(0, warmup=self.warmup)
        if not 0 <= self.kl_weight < float("inf"):
            raise ValueError(f"kl_weight must not be negative, got {self.kl_weight}; 1 is the ELBO")
        if self.warmup >= self.steps:
            raise ValueError(f"warmup is {self.warmup} of {self.steps} steps; the full objective would never be seen")
        if self.estimator not in KINDS:
            raise ValueError(f"estimator must be one of {', '.join(KINDS)}, got {self.estimator!r}")

    def weight(self, step: int) -> float:
        """Weight of the KL at a step: it grows in equal parts to kl_weight."""
        return self.kl_weight * min(1.0, (step + 1) / (self.warmup + 1))


def run(
    model: Model, data: Prepared, family: NormalFamily, method: str, settings: Settings, target: torch.device
) -> Posterior:
    """Fit `family`, whose parameters are on `target`, and wrap what was found; `model` is on its own device."""
    work = model if target == model.device else model.to(target)
    bound = Nelbo(work, family, settings.draws, settings.generator, settings.estimator)
    record = family.loc.detach().new_zeros((settings.steps, 2))
    stream = batches(data, target)

    def step(i: int, row: Tensor) -> None:
        x, y = next(stream)
        bound.step(x, y, data.n / len(x), settings.weight(i), row)

    done, interrupted = descend(
        step,
        family.parameters,
        record,
        lr=settings.lr,
        decay=settings.decay,
        name=method,
        progress=settings.progress,
        remedy=_REMEDY,
        stacklevel=4,
    )
    nll, kl = record[:done].cpu().unbind(-1)
    history = {"nelbo": nll + settings.kl_weight * kl, "nll": nll, "kl": kl}
    diagnostics: dict[str, float | str] = {
        "kl_weight": float(settings.kl_weight),
        "steps": float(done),
        "interrupted": float(interrupted),
    }
    if settings.warmup:
        history["kl_weight"] = torch.tensor([settings.weight(i) for i in range(done)])
        diagnostics["warmup"] = float(settings.warmup)
    if settings.estimator != "reparameterised":
        diagnostics["estimator"] = settings.estimator
    return Posterior(
        model=model,
        distribution=family.settled(model.device),
        method=method,
        history=history,
        diagnostics=diagnostics,
        scaling=data.scaling,
    )


class Nelbo:
    """NELBO and its gradient in the parameters of the family, with every buffer allocated once."""

    def __init__(
        self,
        model: Model,
        family: NormalFamily,
        draws: int = 1,
        generator: torch.Generator | None = None,
        estimator: str = "reparameterised",
    ) -> None:
        self.model, self.family, self.draws, self.generator = model, family, draws, generator
        self.net = Workspace(model, gradient=True)
        self.outputs = None if estimator == "reparameterised" else SampledOutputs(model, estimator)
        family.prepare()
        self.alone = draws == 1 and self.outputs is None
        if self.alone:  # what backward leaves in the workspace is the gradient in loc: nothing is copied
            family.loc.grad = self.net.grad
        assert family.loc.grad is not None
        self.grad_loc = family.loc.grad
        # Entries with a normal prior have the KL in closed form; the others (noise, heavy tails) by the draw.
        self.closed = model.net_size if model.prior.normal else 0
        if self.closed:
            self.prior_loc = model.prior.loc.to(family.loc)
            scale = model.prior.scale.to(family.loc)
            self.prior_precision = scale**-2
            self.centred = not bool(self.prior_loc.any())
            self.shift, self.pull = torch.empty_like(self.prior_loc), torch.empty_like(self.prior_loc)
            self.constant = float(scale.log().sum()) + 0.5 * self.closed * math.log(2 * math.pi)

    @torch.no_grad()
    def step(self, x: Tensor, y: Tensor, ratio: float, weight: float, record: Tensor) -> None:
        """Leave the gradient in the parameters' grad, and (nll, kl) in `record`."""
        family = self.family
        nll, kl = record.zero_().unbind()
        if not self.alone:
            self.grad_loc.zero_()
        kl.sub_(family.begin(weight))
        for _ in range(self.draws):
            nll.add_(self._one_draw(x, y, ratio / self.draws, weight / self.draws, kl))
        if self.closed:
            self._closed_cross_entropy(weight, kl)
        family.end()

    def _one_draw(self, x: Tensor, y: Tensor, ratio: float, weight: float, kl: Tensor) -> Tensor:
        """Add the gradient at one draw; return its share of the misfit, and add to `kl` what has no closed form."""
        net = self.net
        self.family.draw_into(net.w, self.generator)
        if self.outputs is None:
            nll = net.misfit(x, y, ratio)
        else:
            net.grad.zero_()
            nll = self._sampled_outputs(self.outputs, x, y, ratio)
        if self.closed < self.family.size:
            self._open_cross_entropy(weight, kl)
        if not self.alone:
            self.grad_loc.add_(net.grad)
        self.family.pull(net.grad)
        return nll

    def _sampled_outputs(self, outputs: SampledOutputs, x: Tensor, y: Tensor, ratio: float) -> Tensor:
        """Noise in the outputs, not in the weights: the gradients in loc and scale come without a draw of w."""
        family, net = self.family, self.net
        with torch.enable_grad():
            f = outputs(family.loc, family.scale, x, self.generator)
            nll = self.model.likelihood.log_likelihood(f, y, net.u) * -ratio
            leaves = [family.loc, family.log_scale, *([net.u] if len(net.u) else [])]
            slopes = torch.autograd.grad(nll, leaves)
        self.grad_loc.add_(slopes[0])
        assert family.log_scale.grad is not None
        family.log_scale.grad.add_(slopes[1])
        if len(net.u):
            net.grad[self.model.net_size :] = slopes[2]
        return nll.detach()

    def _open_cross_entropy(self, weight: float, kl: Tensor) -> None:
        """-log p at the draw, for the entries whose prior is not normal."""
        c = self.closed
        rest = self.net.w[c:].detach().requires_grad_()
        with torch.enable_grad():
            log_prior = self._log_prior_of_rest(rest)
            (slope,) = torch.autograd.grad(log_prior, rest)
        self.net.grad[c:].sub_(slope, alpha=weight)
        kl.sub_(log_prior.detach(), alpha=1 / self.draws)

    def _log_prior_of_rest(self, rest: Tensor) -> Tensor:
        size = self.model.net_size - self.closed
        log_p = self.model.likelihood.unknown_log_prior(rest[size:])
        return log_p if size == 0 else log_p + self.model.prior.log_prob(rest[:size])

    def _closed_cross_entropy(self, weight: float, kl: Tensor) -> None:
        """-E_q[log p] of the entries with a normal prior: squared distance and variance in units of the prior."""
        loc = self.family.loc[: self.closed]
        shift = loc if self.centred else torch.sub(loc, self.prior_loc, out=self.shift)
        pull = torch.mul(shift, self.prior_precision, out=self.pull)
        around = self.family.spread(self.prior_precision, weight)
        kl.add_(torch.dot(shift, pull), alpha=0.5).add_(around + self.constant)
        self.grad_loc[: self.closed].add_(pull, alpha=weight)
