"""Laplace's approximation with the whole Gauss-Newton matrix: damped Gauss-Newton steps, then the evidence on it."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from bnnlib.nets._laplace_state import State
from bnnlib.nets.gauss_newton import Curvature, GaussNewton, LowRankPrecision, jacobian
from bnnlib.nets.model import Model

__all__ = ["FullState"]

_LARGEST = 2**28  # entries of the Jacobian: 2 GiB in float64


class FullState(State):
    """A fit in progress whose Jacobian is held as a whole. Steps in w are Levenberg-Marquardt steps on H itself."""

    def __init__(self, model: Model, x: Tensor, y: Tensor) -> None:
        super().__init__(model, model.start())
        self.x, self.y = x, y
        self.damping = 1e-2
        with torch.no_grad():
            rows = model(model.start(), x[:1]).numel() * len(x)
        if rows * model.net_size > _LARGEST:
            raise ValueError(
                f"the full Gauss-Newton matrix needs a Jacobian of {rows} x {model.net_size} entries; "
                'use structure="kronecker", "diagonal" or "last_layer", fewer points, or a smaller net'
            )
        self.early_noise()
        self.linearize()

    def linearize(self) -> None:
        """Outputs, Jacobian and energy at the present w."""
        with torch.no_grad():
            self.f = self.model(self.full(self.w), self.x)
            self.energy = self.energy_of(self.f, self.w)
        self.matrix = GaussNewton(self.base, self.tensor_of, jacobian(self.model, self.full(self.w), self.x))

    def _energy(self, w: Tensor) -> Tensor:
        with torch.no_grad():
            return self.energy_of(self.model(self.full(w), self.x), w)

    def move(self) -> None:
        """One damped Gauss-Newton step that lowers the energy; more damping until it does."""
        f = self.f.clone().requires_grad_()
        (slope_f,) = torch.autograd.grad(self.model.likelihood.log_prob(f, self.y, self.u).sum(), f)
        slope = torch.einsum("nkp,nk->p", self.matrix.jac, slope_f)
        slope -= self.precision * (self.w - self.prior_loc)
        root = self.root()
        for _ in range(12):
            step = self.matrix.solve(root, self.multiplier, slope, self.damping)
            energy = self._energy(self.w + step)
            if bool(energy <= self.energy):  # False for NaN
                self.w = self.w + step
                self.damping = max(self.damping / 3, 1e-8)
                self.linearize()
                return
            self.damping = 4 * max(self.damping, 1e-4)
        # No step helps at this prior and noise: rounding, or a kink of a ReLU. Left high, the damping would
        # hold w where it is after the evidence has moved them.
        self.damping = 1.0

    def fit(self, bar: Iterable[int], count: int, burn_in: int, lr: float, tolerance: float, evidence: bool) -> None:
        """Steps until the evidence rests. `count` and `lr` are for fits by Adam."""
        for step in bar:
            self.move()
            found = self.update(prior=evidence) if step >= burn_in else math.nan
            self.history.append((found, self.noise_sd(), self.damping))
            self.done = step + 1
            if step >= burn_in + 10 and abs(found - self.history[-6][0]) < tolerance:
                return

    def curvature(self) -> Curvature:
        return self.matrix.curvature(self.root(), self.multiplier)

    def distribution(self, dense: bool = False) -> MultivariateNormal | LowRankPrecision:
        """Normal over w: weights with precision H, noise coordinates with the curvature of the evidence.

        With more weights than outputs it is kept as diagonal and factor, unless `dense`.
        """
        factor, loc, size = self.matrix.factor(self.root()), self.full(self.w), self.model.net_size
        diagonal, noise_precision = self.precision, self.noise_precision(self.curvature())
        if self.matrix.wide and not dense:
            padded = torch.nn.functional.pad(factor, (0, len(self.u)))
            return LowRankPrecision(loc, torch.cat([diagonal, noise_precision]), padded)
        precision = factor.T @ factor
        precision.diagonal().add_(diagonal)
        # H flipped in both directions is L L^T; L^-1 flipped back and transposed is the covariance's lower triangle.
        flipped = torch.linalg.cholesky(precision.flip((0, 1))).flip((0, 1))
        tril = torch.diag(torch.cat([torch.ones_like(diagonal), noise_precision.rsqrt()]))
        tril[:size, :size] = torch.linalg.solve_triangular(flipped.mT, tril[:size, :size].clone(), upper=False)
        return MultivariateNormal(loc, scale_tril=tril)
