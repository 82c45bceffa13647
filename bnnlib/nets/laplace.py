"""Laplace's approximation: the best w, and a normal around it with the curvature found there.

    p(w | D)  ~  N(w_map, H^-1),     H = diag(A) + F^T F

with the generalised Gauss-Newton matrix F^T F (see `gauss_newton`). Prior precisions, one per
parameter tensor, and the noise are not guessed: they maximise the evidence

    log p(D | A, noise) ~ log p(D | w_map) + log p(w_map | A) + P/2 log 2 pi - 1/2 log det H

while w is being fitted (MacKay 1992; Foresee and Hagan 1997; Immer et al. 2021). Steps in w are
damped Gauss-Newton (Levenberg-Marquardt) steps on the same matrix, so one factorisation serves both.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from bnnlib.nets._fitting import Data, prepare, progress_bar
from bnnlib.nets.gauss_newton import Curvature, GaussNewton, LowRankPrecision, jacobian
from bnnlib.nets.model import Model
from bnnlib.nets.posterior import Posterior

__all__ = ["laplace"]

_LARGEST = 2**28  # entries of the Jacobian: 2 GiB in float64
_SMALLEST = 2e-9  # noise, in the units of the data as given


def laplace(
    model: Model,
    data: Data,
    *,
    evidence: bool = True,
    steps: int = 300,
    burn_in: int = 60,
    tolerance: float = 0.02,
    generator: torch.Generator | None = None,
    progress: bool = True,
    device: torch.device | str | None = None,
) -> Posterior:
    """Maximum a posteriori, then the full Gauss-Newton curvature around it; predictions in closed form.

    Parameters
    ----------
    model
        Its weight priors must be normal. Starts at the network's present parameters.
    data
        A pair of tensors, a `Standardized` or a `DataLoader` (read once, as a whole).
    evidence
        True: prior precisions (one per parameter tensor, starting at the model's prior) are found by
        maximising the evidence. False: the model's prior is kept as it is. Noise that is unknown in
        the model is found by the evidence and its prior either way.
    steps
        Largest number of Gauss-Newton steps.
    burn_in
        First steps, in which prior and noise stay where they are. Found too early, a small evidence
        explains the signal as noise and the fit never recovers.
    tolerance
        Stop when the log evidence has changed by less than this, in nats, over five steps.
    generator
        Not used: the method has no randomness. Kept so that all methods are called alike.

    Returns
    -------
    Posterior
        Linearised, with history `log_evidence` (NaN in the burn-in), `noise` (standard deviation; NaN
        where the likelihood has no unknown one) and `damping`; in the diagnostics `log_evidence`,
        `effective_parameters` and, by tensor name, the fitted prior's standard deviation.

    Raises
    ------
    ValueError
        Bad data; priors that are not normal; a Jacobian beyond 2 GiB.
    FloatingPointError
        The noise is unknown and goes to zero, because the data can be fitted exactly.
    """
    for name, whole in (("steps", steps), ("burn_in", burn_in)):
        if isinstance(whole, bool) or not isinstance(whole, int) or whole < (name == "steps"):
            raise ValueError(f"{name} must be a whole number, got {whole}")
    prepared = prepare(model, data)
    if not model.prior.normal:
        raise ValueError(
            f"laplace needs normal priors on the weights, got {model.prior}; use mean_field, or a normal prior"
        )
    x, y = prepared.everything()
    home = model.device
    target = torch.device(device) if device is not None else home
    state = _State(model.to(target, torch.float64), _double(x.to(target)), _double(y.to(target)))
    history: list[tuple[float, float, float]] = []
    interrupted = False
    try:
        for step in progress_bar(steps, "laplace", progress):
            state.move()
            found = state.update(prior=evidence) if step >= burn_in else math.nan
            history.append((found, state.noise_sd(), state.damping))
            if step >= burn_in + 10 and abs(found - history[-6][0]) < tolerance:
                break
    except KeyboardInterrupt:
        interrupted = True
        warnings.warn(
            f"laplace was interrupted after {len(history)} steps; the result is what was reached", stacklevel=2
        )
    log_evidence, effective = state.evidence()
    record = torch.tensor(history, dtype=torch.float64).reshape(-1, 3)
    return Posterior(
        model=model,
        distribution=state.distribution(home, model.dtype),
        method="laplace",
        history=dict(zip(("log_evidence", "noise", "damping"), record.unbind(-1), strict=True)),
        diagnostics={
            "log_evidence": log_evidence,
            "effective_parameters": effective,
            "steps": float(len(history)),
            "interrupted": float(interrupted),
            **state.prior_sd(),
        },
        scaling=prepared.scaling,
        linearized=True,
    )


class _State:
    """w, prior precisions and noise of a fit in progress, in float64."""

    def __init__(self, model: Model, x: Tensor, y: Tensor) -> None:
        self.model, self.x, self.y = model, x, y
        sizes = torch.tensor([s.numel() for s in model.shapes.values()], device=x.device)
        self.tensor_of = torch.repeat_interleave(torch.arange(len(sizes), device=x.device), sizes)
        start = model.start()
        self.w, self.u = start[: model.net_size].clone(), start[model.net_size :].clone()
        self.prior_loc, self.base = model.prior.loc.to(self.w), model.prior.scale.to(self.w) ** -2
        self.multiplier = torch.ones_like(sizes, dtype=torch.float64)  # of the given precision, by tensor
        self.damping = 1e-2
        with torch.no_grad():
            rows = model(start, x).numel()
        if rows * model.net_size > _LARGEST:
            raise ValueError(
                f"the full Gauss-Newton matrix needs a Jacobian of {rows} x {model.net_size} entries; "
                "use fewer points, a smaller net, or mean_field"
            )
        if len(self.u):
            self.u = self._early_noise(self.u)
        self._linearize()
        self.energy = self._energy(self.w)

    # pieces ------------------------------------------------------------------------------------

    def _full(self, w: Tensor) -> Tensor:
        return torch.cat([w, self.u])

    def _linearize(self) -> None:
        with torch.no_grad():
            self.f = self.model(self._full(self.w), self.x)
        self.matrix = GaussNewton(self.base, self.tensor_of, jacobian(self.model, self._full(self.w), self.x))

    def _root(self) -> Tensor:
        return self.model.likelihood.fisher_sqrt(self.f, self.u)

    def _distance(self, w: Tensor) -> Tensor:
        """Squared distance from the prior mean in units of the given prior, by tensor."""
        return torch.zeros_like(self.multiplier).index_add(0, self.tensor_of, self.base * (w - self.prior_loc) ** 2)

    def _energy(self, w: Tensor) -> Tensor:
        """Negative log joint up to constants, at the present prior and noise."""
        with torch.no_grad():
            f = self.model(self._full(w), self.x)
            misfit = -self.model.likelihood.log_prob(f, self.y, self.u).sum()
            return misfit + 0.5 * (self.multiplier * self._distance(w)).sum()

    def _early_noise(self, u: Tensor) -> Tensor:
        """Noise of a tenth of the targets' spread, or the prior's mean if that is smaller."""
        spread = self.y.std(correction=0)
        if spread == 0:
            return u
        wanted, point = (0.1 * spread).log(), u.clone()
        for _ in range(50):
            point.requires_grad_()
            gap = self.model.likelihood.log_scale(point) - wanted
            (slope,) = torch.autograd.grad(gap.sum(), point)
            point = (point - gap / slope).detach()
        return torch.where(self.model.likelihood.log_scale(u) < wanted, u, point)

    # steps -------------------------------------------------------------------------------------

    def move(self) -> None:
        """One damped Gauss-Newton step that lowers the energy; more damping until it does."""
        f = self.f.clone().requires_grad_()
        (slope_f,) = torch.autograd.grad(self.model.likelihood.log_prob(f, self.y, self.u).sum(), f)
        slope = torch.einsum("nkp,nk->p", self.matrix.jac, slope_f)
        slope -= self.base * self.multiplier[self.tensor_of] * (self.w - self.prior_loc)
        root = self._root()
        for _ in range(12):
            step = self.matrix.solve(root, self.multiplier, slope, self.damping)
            energy = self._energy(self.w + step)
            if bool(energy <= self.energy):  # False for NaN
                self.w, self.energy = self.w + step, energy
                self.damping = max(self.damping / 3, 1e-8)
                self._linearize()
                return
            self.damping = 4 * max(self.damping, 1e-4)
        # No step helps at this prior and noise: rounding, or a kink of a ReLU. Left high, the damping would
        # hold w where it is after the evidence has moved them.
        self.damping = 1.0

    def update(self, prior: bool) -> float:
        """Move the noise, and with `prior` the prior precisions, towards the largest evidence; return what it was."""
        curvature = self.matrix.curvature(self._root(), self.multiplier)
        before = self._evidence(curvature)
        if len(self.u):
            self._update_noise(curvature.leverage)
        if prior:
            # MacKay's fixed point: precision = effective parameters / squared distance from the prior mean.
            self.multiplier = (curvature.effective / self._distance(self.w)).clamp(1e-6, 1e6)
        self.energy = self._energy(self.w)
        return before

    def _update_noise(self, leverage: Tensor) -> None:
        """Newton steps in u. For normal noise they end at var = squared residuals / (N - effective parameters)."""
        for _ in range(20):
            first, second = self._noise_derivatives(leverage)
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

    def _noise_derivatives(self, leverage: Tensor) -> tuple[Tensor, Tensor]:
        """First and second derivative in u of the log evidence, the effective parameters held where they are."""
        u = self.u.clone().requires_grad_()
        log_scale = self.model.likelihood.log_scale(u)
        taken = leverage.sum(0) if len(log_scale) > 1 else leverage.sum().unsqueeze(0)
        fit = self.model.likelihood.log_prob(self.f, self.y, u).sum()
        objective = fit + self.model.likelihood.unknown_log_prior(u) + (taken * log_scale).sum()
        (first,) = torch.autograd.grad(objective, u, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), u)  # the noise coordinates do not interact
        return first.detach(), second

    # results -----------------------------------------------------------------------------------

    def _evidence(self, curvature: Curvature) -> float:
        return float(self.model.likelihood.unknown_log_prior(self.u) - self.energy - 0.5 * curvature.log_det)

    def evidence(self) -> tuple[float, float]:
        """Laplace's estimate of log p(D) with the log prior density of the noise, in nats; effective parameters."""
        curvature = self.matrix.curvature(self._root(), self.multiplier)
        return self._evidence(curvature), float(curvature.effective.sum())

    def noise_sd(self) -> float:
        """Mean noise standard deviation in the units of the data as given, NaN where the likelihood has none."""
        return float(self.model.likelihood.log_scale(self.u).exp().mean()) if len(self.u) else math.nan

    def prior_sd(self) -> dict[str, float]:
        """Standard deviation of the prior by tensor name; a mean where the given one varies within a tensor."""
        sd = (self.base * self.multiplier[self.tensor_of]).rsqrt()
        sizes = [s.numel() for s in self.model.shapes.values()]
        return {f"prior_sd {k}": float(v.mean()) for k, v in zip(self.model.shapes, sd.split(sizes), strict=True)}

    def distribution(self, device: torch.device, dtype: torch.dtype) -> MultivariateNormal | LowRankPrecision:
        """Normal over w: weights with precision H, noise coordinates with the curvature of the evidence."""
        root, size = self._root(), self.model.net_size
        factor, loc = self.matrix.factor(root), self._full(self.w)
        diagonal = self.base * self.multiplier[self.tensor_of]
        noise_precision = self.u.new_zeros(0)
        if len(self.u):
            _, second = self._noise_derivatives(self.matrix.curvature(root, self.multiplier).leverage)
            noise_precision = (-second).clamp_min(1e-6)
        if self.matrix.wide:
            diagonal = torch.cat([diagonal, noise_precision])
            padded = torch.nn.functional.pad(factor, (0, len(self.u)))
            return LowRankPrecision(loc.to(device), diagonal.to(device), padded.to(device))
        precision = factor.T @ factor
        precision.diagonal().add_(diagonal)
        # H flipped in both directions is L L^T; L^-1 flipped back and transposed is the covariance's lower triangle.
        flipped = torch.linalg.cholesky(precision.flip((0, 1))).flip((0, 1))
        tril = torch.diag(torch.cat([torch.ones_like(diagonal), noise_precision.rsqrt()]))
        tril[:size, :size] = torch.linalg.solve_triangular(flipped.mT, tril[:size, :size].clone(), upper=False)
        return MultivariateNormal(loc.to(device, dtype), scale_tril=tril.to(device, dtype))


def _double(v: Tensor) -> Tensor:
    return v.double() if v.is_floating_point() else v
