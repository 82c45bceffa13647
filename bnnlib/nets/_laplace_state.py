"""What every structure of Laplace's approximation knows: w, the prior's precisions, the noise, and how both are found.

The evidence is maximised in the prior precisions by MacKay's fixed point,

    precision = effective parameters / squared distance from the prior mean,

and in the noise by Newton steps with the effective parameters held where they are; for normal noise they
end at var = squared residuals / (N - effective parameters) (MacKay 1992).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bnnlib.nets.gauss_newton import Curvature
from bnnlib.nets.model import Model

__all__ = ["State", "double"]

_SMALLEST = 2e-9  # noise, in the units of the data as given


class State:
    """w, prior precisions and noise of a fit in progress, in float64.

    Attributes
    ----------
    w, u
        Network parameters (P',) and noise coordinates (M,).
    base, multiplier
        The given prior precision (P',), and what the evidence multiplies it by, one number a parameter tensor (T,).
    f, y
        Outputs at w (N, outputs) and targets of all points.
    done, history
        Steps taken, and (log evidence, noise, damping) each time that they were looked at.
    """

    f: Tensor
    y: Tensor
    energy: Tensor
    damping = math.nan

    def __init__(self, model: Model, w: Tensor) -> None:
        self.model = model
        sizes = torch.tensor([s.numel() for s in model.shapes.values()], device=w.device)
        self.tensor_of = torch.repeat_interleave(torch.arange(len(sizes), device=w.device), sizes)
        self.w, self.u = w[: model.net_size].clone(), w[model.net_size :].clone()
        self.prior_loc, self.base = model.prior.loc.to(self.w), model.prior.scale.to(self.w) ** -2
        self.multiplier = torch.ones_like(sizes, dtype=torch.float64)
        self.done, self.history = 0, list[tuple[float, float, float]]()

    def full(self, w: Tensor) -> Tensor:
        """Network parameters with the present noise coordinates behind them, (P,)."""
        return torch.cat([w, self.u])

    @property
    def precision(self) -> Tensor:
        """Present prior precision of each network parameter, (P',)."""
        return self.base * self.multiplier[self.tensor_of]

    def root(self) -> Tensor:
        """Square root of the Fisher information of the outputs, (N, outputs, outputs)."""
        return self.model.likelihood.fisher_sqrt(self.f, self.u)

    def distance(self, w: Tensor) -> Tensor:
        """Squared distance from the prior mean in units of the given prior, by tensor, (T,)."""
        return torch.zeros_like(self.multiplier).index_add(0, self.tensor_of, self.base * (w - self.prior_loc) ** 2)

    def energy_of(self, f: Tensor, w: Tensor) -> Tensor:
        """Negative log joint up to constants, at the present prior and noise."""
        misfit = -self.model.likelihood.log_prob(f, self.y, self.u).sum()
        return misfit + 0.5 * (self.multiplier * self.distance(w)).sum()

    def early_noise(self) -> None:
        """Noise of a tenth of the targets' spread, or the prior's mean if that is smaller."""
        if not len(self.u) or self.y.std(correction=0) == 0:
            return
        wanted, point = (0.1 * self.y.std(correction=0)).log(), self.u.clone()
        for _ in range(50):
            point.requires_grad_()
            gap = self.model.likelihood.log_scale(point) - wanted
            (slope,) = torch.autograd.grad(gap.sum(), point)
            point = (point - gap / slope).detach()
        self.u = torch.where(self.model.likelihood.log_scale(self.u) < wanted, self.u, point)

    def stop(self) -> None:
        """Make what an interrupted fit left whole."""

    # the evidence ------------------------------------------------------------------------------

    def curvature(self) -> Curvature:
        """What the evidence needs to know of the matrix at the present w, prior and noise."""
        raise NotImplementedError

    def update(self, prior: bool) -> float:
        """Move the noise, and with `prior` the prior precisions, towards the largest evidence; return what it was."""
        curvature = self.curvature()
        before = self.log_evidence(curvature)
        if len(self.u):
            self._update_noise(curvature.leverage)
        if prior:
            self.multiplier = (curvature.effective / self.distance(self.w)).clamp(1e-6, 1e6)
        with torch.no_grad():
            self.energy = self.energy_of(self.f, self.w)
        return before

    def _update_noise(self, leverage: Tensor) -> None:
        for _ in range(20):
            first, second = self.noise_derivatives(leverage)
            step = (first / second.abs().clamp_min(1e-6)).clamp(-1.0, 1.0)
            self.u = self.u + step
            smallest = float(self.model.likelihood.log_scale(self.u).exp().min())
            if smallest < _SMALLEST:
                raise FloatingPointError(
                    f"the noise went to {smallest:.1g}: the network fits the targets exactly. Give the likelihood "
                    "a known noise, or a prior that keeps it away from zero (Gamma on the precision)"
                )
            if float(step.abs().max()) < 1e-10:
                return

    def noise_derivatives(self, leverage: Tensor) -> tuple[Tensor, Tensor]:
        """First and second derivative in u of the log evidence, the effective parameters held where they are."""
        u = self.u.clone().requires_grad_()
        log_scale = self.model.likelihood.log_scale(u)
        taken = leverage.sum(0) if len(log_scale) > 1 else leverage.sum().unsqueeze(0)
        fit = self.model.likelihood.log_prob(self.f, self.y, u).sum()
        objective = fit + self.model.likelihood.unknown_log_prior(u) + (taken * log_scale).sum()
        (first,) = torch.autograd.grad(objective, u, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), u)  # the noise coordinates do not interact
        return first.detach(), second

    def noise_precision(self, curvature: Curvature) -> Tensor:
        """Curvature of the log evidence in the noise coordinates, (M,)."""
        if not len(self.u):
            return self.u.new_zeros(0)
        return (-self.noise_derivatives(curvature.leverage)[1]).clamp_min(1e-6)

    def log_evidence(self, curvature: Curvature) -> float:
        """Laplace's estimate of log p(D) with the log prior density of the noise, in nats."""
        return float(self.model.likelihood.unknown_log_prior(self.u) - self.energy - 0.5 * curvature.log_det)

    # what is told ------------------------------------------------------------------------------

    def noise_sd(self) -> float:
        """Mean noise standard deviation in the units of the data as given, NaN where the likelihood has none."""
        return float(self.model.likelihood.log_scale(self.u).exp().mean()) if len(self.u) else math.nan

    def prior_sd(self) -> dict[str, float]:
        """Standard deviation of the prior by tensor name; a mean where the given one varies within a tensor."""
        sizes = [s.numel() for s in self.model.shapes.values()]
        parts = self.precision.rsqrt().split(sizes)
        return {f"prior_sd {k}": float(v.mean()) for k, v in zip(self.model.shapes, parts, strict=True)}


def double(v: Tensor) -> Tensor:
    """Floating-point numbers in float64; whole numbers, such as labels and tokens, as they are."""
    return v.double() if v.is_floating_point() else v
