"""Hamiltonian Monte Carlo: draws from the posterior itself, by rolling along it.

    H(w, r) = -log p(w, D) + 1/2 r^T M^-1 r,     r ~ N(0, M)

A trajectory of leapfrog steps follows the energy H and ends far from where it began; the error that
the steps make is undone by accepting with probability min(1, exp(H_old - H_new)) (Duane et al. 1987;
Neal 2011). Chains are rows of one batch. Step size and mass are each chain's own: hidden units have
other numbers in other chains, so their scales cannot be shared.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from bnnlib._settings import check_fraction, check_positive, check_whole
from bnnlib.nets._fitting import Data, prepare, progress_bar
from bnnlib.nets._sampling import Density, ascend, chain_posterior, check_finite, noise, on_host, starts
from bnnlib.nets.model import Model
from bnnlib.nets.posterior import Posterior

__all__ = ["hmc"]

Potential = Callable[[Tensor], tuple[Tensor, Tensor]]

_DIVERGED = 1000.0  # nats of energy error: the step left the region where it is stable
_ADVICE = "give standardised data (bnnlib.data.Standardized) or another start"


def hmc(
    model: Model,
    data: Data,
    *,
    draws: int = 500,
    chains: int = 4,
    warmup: int = 500,
    leapfrog_steps: int = 60,
    thin: int = 1,
    target_accept: float = 0.8,
    temperature: float = 1.0,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
    progress: bool = True,
    device: torch.device | str | None = None,
) -> Posterior:
    """Draw from the posterior of w by Hamiltonian Monte Carlo on all data, in float64.

    Parameters
    ----------
    model
        What is unknown, its prior and its likelihood.
    data
        A pair of tensors, a `Standardized`, or a `DataLoader` (read once, as a whole).
    draws
        Draws that each chain keeps.
    chains
        Chains, run side by side in one batch.
    warmup
        Iterations before the first draw, in which step size and mass are found. They are kept after.
    leapfrog_steps
        Gradients a trajectory, on average. Each trajectory has a random number of them, from a half to one and a
        half of this, so that no direction comes back to its beginning every time.
    thin
        Iterations a kept draw.
    target_accept
        Acceptance that the step size is adapted to.
    temperature
        Of the posterior: p(w | D)^(1/T), normalised. Anything but 1 is tempering, and the repr says so.
    start
        Where the chains start, (chains, P). None: draws from the prior, moved uphill for 200 steps.
    generator
        Source of all draws; torch's default generator if None.
    progress
        Show a progress bar.
    device
        Where to compute; the result is on the model's own device.

    Returns
    -------
    Posterior
        An `Empirical`, chain after chain. History `accept` and `log_joint` (kept draws, mean over chains);
        diagnostics `accept`, `step_size` (mean over chains), `divergences` (after the warm-up), `gradients`.
        An interrupt from the keyboard returns what is there, marked as interrupted.

    Raises
    ------
    ValueError
        Bad data or settings, before any work starts.
    FloatingPointError
        The log density is not finite where a chain starts.
    """
    check_whole(1, draws=draws, chains=chains, leapfrog_steps=leapfrog_steps, thin=thin)
    check_whole(0, warmup=warmup)
    check_positive(temperature=temperature)
    check_fraction(target_accept=target_accept)
    prepared = prepare(model, data)
    x, y = prepared.everything()
    target = torch.device(device) if device is not None else model.device
    work = model.to(target, torch.float64)
    x, y = _double(x.to(target)), _double(y.to(target))
    density = Density(work, temperature)

    def potential(w: Tensor) -> tuple[Tensor, Tensor]:
        return density(w, x, y)

    w = starts(work, chains, start, generator)
    check_finite(potential(w)[0], 0, "hmc", _ADVICE)
    kept = w.new_empty((draws, chains, model.size))
    record = w.new_empty((draws, 2))
    done, run = 0, _Run(potential, w, target_accept, leapfrog_steps, generator)
    try:
        if start is None:
            run.move_to(ascend(density, w, lambda: (x, y, 1.0), 200))
        schedule = _windows(warmup)
        for i in progress_bar(warmup + draws * thin, "hmc", progress):
            if i == warmup:
                run.divergences = 0
            accept = run.step()
            if i < warmup:
                run.adapt(accept, i, schedule)
            if i == warmup - 1:
                run.freeze()
            if i >= warmup and (i - warmup) % thin == thin - 1:
                kept[done] = run.w
                record[done, 0], record[done, 1] = accept.mean(), run.value.mean()
                done += 1
    except KeyboardInterrupt:
        pass
    history = dict(zip(("accept", "log_joint"), record[:done].cpu().unbind(-1), strict=True))
    return chain_posterior(
        model,
        "hmc",
        kept[:done],
        history=history,
        diagnostics={
            "warmup": float(warmup),
            "thin": float(thin),
            "temperature": float(temperature),
            "accept": float(history["accept"].mean()) if done else math.nan,
            "step_size": float(run.size.mean()),
            "divergences": float(run.divergences),
            "gradients": float(run.gradients),
        },
        scaling=prepared.scaling,
        planned=draws,
        last=run.w,
    )


def leapfrog(
    potential: Potential, w: Tensor, r: Tensor, slope: Tensor, size: Tensor, inverse_mass: Tensor, steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Follow the energy for `steps` steps; reversible, and it keeps volumes.

        r += size/2 * slope,    w += size * r / m,    r += size/2 * slope

    Parameters
    ----------
    potential
        Log density and its gradient: (C, P) -> (C,), (C, P).
    w, r, slope
        Position, momentum and gradient at w, (C, P).
    size
        Step size, (C, 1).
    inverse_mass
        Diagonal of M^-1, (C, P).

    Returns
    -------
    tuple
        Position, momentum, log density (C,) and gradient at the end.
    """
    r = torch.addcmul(r, size, slope, value=0.5)
    move = size * inverse_mass
    for step in range(steps):
        w = torch.addcmul(w, move, r)
        value, slope = potential(w)
        r = torch.addcmul(r, size, slope, value=0.5 if step == steps - 1 else 1.0)
    return w, r, value, slope


class _Run:
    """C chains with their step sizes and masses."""

    def __init__(
        self, potential: Potential, w: Tensor, target: float, leapfrog_steps: int, generator: torch.Generator | None
    ) -> None:
        self.potential, self.target, self.length, self.generator = potential, target, leapfrog_steps, generator
        self.host = on_host(generator)
        self.inverse_mass = torch.ones_like(w)
        self.gradients = self.divergences = self.tried = 0
        self.size = self.centre = self.log_average = self.error = torch.zeros_like(w[:, 0])
        self.count, self.mean, self.squares = 0, torch.zeros_like(w), torch.zeros_like(w)
        self.move_to(w)

    def move_to(self, w: Tensor) -> None:
        """Start again from w with the masses as they are."""
        self.w = w
        self.value, self.slope = self.potential(w)
        self._restart()

    # trajectories ------------------------------------------------------------------------------

    def step(self) -> Tensor:
        """One trajectory for every chain; returns the probabilities (C,) with which they were accepted."""
        low = max(1, self.length // 2)
        steps = int(torch.randint(low, max(low + 1, 2 * self.length - low + 1), (), generator=self.host))
        w, value, slope, accept = self._propose(self.size, steps)
        uniform = torch.rand(len(w), dtype=w.dtype, generator=self.host).to(w.device)
        taken = uniform < accept
        self.w = torch.where(taken[:, None], w, self.w)
        self.slope = torch.where(taken[:, None], slope, self.slope)
        self.value = torch.where(taken, value, self.value)
        return accept

    def _propose(self, size: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        r = noise(tuple(self.w.shape), self.w, self.generator) * self.inverse_mass.rsqrt()
        before = self.value - self._kinetic(r)
        w, r, value, slope = leapfrog(self.potential, self.w, r, self.slope, size[:, None], self.inverse_mass, steps)
        self.gradients += steps
        gain = (value - self._kinetic(r)) - before
        gain = torch.where(torch.isfinite(gain) & torch.isfinite(slope).all(-1), gain, gain.new_tensor(-math.inf))
        self.divergences += int((gain < -_DIVERGED).sum())
        return w, value, slope, gain.clamp_max(0).exp()

    def _kinetic(self, r: Tensor) -> Tensor:
        return 0.5 * (r * r * self.inverse_mass).sum(-1)

    # adaptation --------------------------------------------------------------------------------

    def adapt(self, accept: Tensor, i: int, schedule: list[int]) -> None:
        """Step sizes by dual averaging (Hoffman and Gelman 2014); masses from the variance within each window."""
        self.tried += 1
        t = self.tried
        self.error = self.error.lerp(self.target - accept, 1 / (t + 10))
        log_size = self.centre - self.error * t**0.5 / 0.05
        self.log_average = self.log_average.lerp(log_size, t**-0.75)
        self.size = log_size.exp()
        if not schedule or not schedule[0] <= i < schedule[-1]:
            return
        self.count += 1
        away = self.w - self.mean
        self.mean = self.mean + away / self.count
        self.squares = self.squares + away * (self.w - self.mean)
        if i + 1 in schedule[1:]:
            n = self.count
            # A little towards a small multiple of one, as few draws say little of a variance.
            self.inverse_mass = (self.squares / (n - 1) * n + 5e-3) / (n + 5)
            self.count, self.mean, self.squares = 0, torch.zeros_like(away), torch.zeros_like(away)
            self._restart()

    def _restart(self) -> None:
        """A step size that is accepted half the time, by halving, as the centre of a new search."""
        size = torch.ones(len(self.w), dtype=self.w.dtype, device=self.w.device)
        for _ in range(40):
            low = self._propose(size, 1)[3] < 0.5
            if not bool(low.any()):
                break
            size = torch.where(low, size / 2, size)
        self.size, self.centre = size, (10 * size).log()
        self.log_average, self.error, self.tried = size.log(), torch.zeros_like(size), 0

    def freeze(self) -> None:
        """From here on the step sizes stay: draws of an adapting chain are not draws from the posterior."""
        self.size = self.log_average.exp()


def _windows(warmup: int) -> list[int]:
    """Iterations at which windows of mass adaptation begin and end: after 15 %, each twice the last, until 80 %."""
    first, last = int(0.15 * warmup), int(0.8 * warmup)
    if warmup < 40:
        return []
    edges, width = [first], 25
    while edges[-1] + 3 * width <= last:
        edges.append(edges[-1] + width)
        width *= 2
    return [*edges, last]


def _double(v: Tensor) -> Tensor:
    return v.double() if v.is_floating_point() else v
