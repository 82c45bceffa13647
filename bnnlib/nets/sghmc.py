"""Stochastic gradient Hamiltonian Monte Carlo: SGD with momentum plus noise, with a step size that goes in cycles.

    r <- (1 - alpha) * r + h * grad log p(w, D) + sqrt(2 * alpha) * xi,     h = sqrt(eps * M)
    w <- w + h * r

(Chen, Fox and Guestrin 2014, whose v is h * r). The friction alpha takes out the energy that the noise
brings in. Within each cycle eps falls like a cosine: large steps leave for another mode, small ones
draw there (Zhang et al. 2020). What is carried from step to step is the momentum r. Carrying v would
carry the speed of larger steps into smaller ones: on a normal that leaves a quarter too much variance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bnnlib._settings import check_positive, check_whole
from bnnlib.nets._fitting import Data, batches, prepare, progress_bar
from bnnlib.nets._sampling import Density, ascend, chain_posterior, check_finite, metric, noise, starts, stiffness
from bnnlib.nets.model import Model
from bnnlib.nets.posterior import Posterior

__all__ = ["sghmc"]

_ADVICE = "try a smaller step, a longer warmup, or standardised data (bnnlib.data.Standardized)"


def sghmc(
    model: Model,
    data: Data,
    *,
    cycles: int = 10,
    cycle_steps: int = 1000,
    draws: int = 50,
    chains: int = 4,
    warmup: int = 1000,
    exploration: float = 0.0,
    friction: float = 0.1,
    step: float = 0.1,
    step_size: float | None = None,
    precondition: bool = True,
    temperature: float = 1.0,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
    progress: bool = True,
    device: torch.device | str | None = None,
) -> Posterior:
    """Draw from an approximation of the posterior of w by stochastic gradient Hamiltonian Monte Carlo.

    Parameters
    ----------
    model
        What is unknown, its prior and its likelihood.
    data
        A pair of tensors, a `Standardized`, or a `DataLoader`; a mini-batch's likelihood is scaled
        by n / batch. All chains see the same batches.
    cycles
        Times that the step size falls from its largest value to nearly zero.
    cycle_steps
        Steps a cycle.
    draws
        Draws that each chain keeps in each cycle, evenly over its second half.
    chains
        Chains, run side by side in one batch.
    warmup
        Steps of gradient ascent (Adam) before the first cycle; none where a `start` is given.
    exploration
        First part of each cycle that goes without noise, as an optimiser would, to change modes
        sooner; at most one half, since nothing is kept there.
    friction
        Part alpha of the momentum that is lost at each step.
    step
        Largest eps of a cycle as a part of the largest stable one, 4 / (largest curvature), found after the
        warm-up and divided by n / batch for the mini-batch's noise. Where unknown noise falls during a cycle, the
        curvature grows: a chain whose eps is over half of what is stable when a cycle begins has it found anew.
    step_size
        Or the largest eps itself.
    precondition
        True: M holds one number for each parameter tensor, one over the typical length of the Hessian's
        rows, found after the warm-up and then fixed. False: M = 1.
    temperature
        Of the posterior: p(w | D)^(1/T), normalised. Anything but 1 is tempering, and the repr says so.
    start
        Where the chains start, (chains, P). None: draws from the prior.
    generator
        Source of all draws; torch's default generator if None.
    progress
        Show a progress bar.
    device
        Where to compute; the result is on the model's own device.

    Returns
    -------
    Posterior
        An `Empirical`, chain after chain, each with cycles * draws draws. History `log_joint` (of the
        batch at each kept draw, mean over chains); diagnostics `step_size` (the largest of the last cycle, mean
        over chains). An interrupt from the keyboard returns what is there, marked as interrupted.

    Raises
    ------
    ValueError
        Bad data or settings, before any work starts.
    FloatingPointError
        The log density became NaN or infinite; the message names the step.
    """
    _check_settings(cycles, cycle_steps, draws, chains, warmup, exploration, friction)
    check_positive(temperature=temperature, step=step, **({} if step_size is None else {"step_size": step_size}))
    prepared = prepare(model, data)
    target = torch.device(device) if device is not None else model.device
    density = Density(model if target == model.device else model.to(target), temperature)
    stream = batches(prepared, target)

    def batch() -> tuple[Tensor, Tensor, float]:
        x, y = next(stream)
        return x, y, prepared.n / len(x)

    w = starts(density.model, chains, start, generator)
    kept = w.new_empty((cycles * draws, chains, model.size))
    record, size = w.new_full((cycles * draws,), torch.nan), w.new_zeros(chains, 1)
    # A step is kept where this list says so, counted within its cycle.
    keep = {cycle_steps - 1 - (k * (cycle_steps // 2)) // draws for k in range(draws)}
    done = 0
    bar = progress_bar(cycles * cycle_steps, "sghmc", progress)
    try:
        w = ascend(density, w, batch, warmup if start is None else 0)
        x, y, ratio = batch()
        check_finite(density(w, x, y, ratio)[0], 0, "sghmc", _ADVICE)
        m, largest = metric(density, w, batch, precondition, generator)
        size = (4 * step / (largest * ratio))[:, None] if step_size is None else torch.full_like(size, step_size)
        r = torch.zeros_like(w)
        for i in bar:
            at = i % cycle_steps
            part = at / cycle_steps
            if i and not at and step_size is None:
                size = _still_stable(size, step, density, w, (x, y, ratio), m)
            h = (size * _fall(part) * m).sqrt()
            value, slope = density(w, *batch())
            r = (r * (1 - friction)).addcmul_(h, slope)
            if part >= exploration:
                r.add_(noise(tuple(w.shape), w, generator), alpha=math.sqrt(2 * friction))
            w = torch.addcmul(w, h, r)
            if i % 100 == 0 or at in keep:
                check_finite(value, i, "sghmc", _ADVICE)
            if at in keep:
                check_finite(w.sum(-1), i, "sghmc", _ADVICE)
                kept[done], record[done] = w, value.mean()
                done += 1
    except KeyboardInterrupt:
        pass
    return chain_posterior(
        model,
        "sghmc",
        kept[:done],
        history={"log_joint": record[:done].cpu()},
        diagnostics={
            "warmup": float(warmup),
            "cycles": float(cycles),
            "cycle_steps": float(cycle_steps),
            "temperature": float(temperature),
            "step_size": float(size.mean()),
        },
        scaling=prepared.scaling,
        planned=cycles * draws,
        last=w,
    )


def _still_stable(
    size: Tensor, step: float, density: Density, w: Tensor, batch: tuple[Tensor, Tensor, float], m: Tensor
) -> Tensor:
    """Largest eps (C, 1) of a cycle that begins at w: that of the last cycle, unless the curvature has outgrown it."""
    # A generator of its own, and a batch seen before: looking must not change what is drawn.
    v = noise(tuple(w.shape), w, torch.Generator().manual_seed(0))
    limit = 4 / (stiffness(density, w, lambda: batch, m, v, rounds=10) * batch[2])[:, None]
    return torch.where(size > 0.5 * limit, step * limit, size)


def _fall(part: float) -> float:
    """The step's part of its largest value after this part of a cycle: from one to zero along a cosine."""
    return 0.5 * (1 + math.cos(math.pi * part))


def _check_settings(
    cycles: int, cycle_steps: int, draws: int, chains: int, warmup: int, exploration: float, friction: float
) -> None:
    check_whole(1, cycles=cycles, cycle_steps=cycle_steps, draws=draws, chains=chains)
    check_whole(0, warmup=warmup)
    if draws > cycle_steps // 2:
        raise ValueError(f"draws must fit into half a cycle of {cycle_steps} steps, got {draws}; make cycles longer")
    if not 0 <= exploration <= 0.5:
        raise ValueError(f"exploration is a part of the cycle, between 0 and 0.5, got {exploration}")
    if not 0 < friction <= 1:
        raise ValueError(f"friction is the part of the momentum lost at each step, above 0, at most 1, got {friction}")
