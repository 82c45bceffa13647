"""Stochastic gradient Langevin dynamics: gradient steps plus just enough noise to become a sampler.

    w <- w + eps/2 * M * grad log p(w, D) + sqrt(eps * M) * xi,     xi ~ N(0, I)

(Welling and Teh 2011), with the gradient of a mini-batch scaled by n / batch. No step is ever
rejected, so the step size leaves a bias. On a normal with precision lam, M = 1 and the full gradient

    var = 1 / (lam * (1 - eps * lam / 4))     instead of     1 / lam,

without limit at eps = 4 / lam. The step is measured against that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bnnlib._settings import check_positive, check_whole
from bnnlib.nets._fitting import Data, batches, prepare, progress_bar
from bnnlib.nets._sampling import Density, ascend, chain_posterior, check_finite, metric, noise, starts
from bnnlib.nets.model import Model
from bnnlib.nets.posterior import Posterior

__all__ = ["sgld"]

_ADVICE = "try a smaller step, or standardised data (bnnlib.data.Standardized)"


def sgld(
    model: Model,
    data: Data,
    *,
    draws: int = 500,
    chains: int = 4,
    warmup: int = 2000,
    thin: int = 20,
    step: float = 0.1,
    step_size: float | None = None,
    precondition: bool = True,
    temperature: float = 1.0,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
    progress: bool = True,
    device: torch.device | str | None = None,
) -> Posterior:
    """Draw from an approximation of the posterior of w by stochastic gradient Langevin dynamics.

    Parameters
    ----------
    model
        What is unknown, its prior and its likelihood.
    data
        A pair of tensors, a `Standardized`, or a `DataLoader`; a mini-batch's likelihood is scaled
        by n / batch. All chains see the same batches.
    draws
        Draws that each chain keeps.
    chains
        Chains, run side by side in one batch.
    warmup
        Steps before the first draw. Without a `start`, the first half is gradient ascent (Adam), to where
        the posterior has its mass.
    thin
        Steps a kept draw.
    step
        Step size as a part of the largest stable one, 4 / (largest curvature), found after the ascent
        and divided by n / batch for the mini-batch's noise. In the stiffest direction the full
        gradient's variance is too large by 1 / (1 - step), in all others by less.
    step_size
        Or eps itself.
    precondition
        True: M holds one number for each parameter tensor, one over the typical length of the Hessian's
        rows, found after the ascent and then fixed. False: M = 1.
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
        An `Empirical`, chain after chain. History `log_joint` (of the last batch before each kept draw, mean over
        chains); diagnostics `step_size` (mean over chains of eps). An interrupt from the keyboard
        returns what is there, marked as interrupted.

    Raises
    ------
    ValueError
        Bad data or settings, before any work starts.
    FloatingPointError
        The log density became NaN or infinite; the message names the step.
    """
    check_whole(1, draws=draws, chains=chains, thin=thin)
    check_whole(0, warmup=warmup)
    check_positive(temperature=temperature, step=step, **({} if step_size is None else {"step_size": step_size}))
    prepared = prepare(model, data)
    target = torch.device(device) if device is not None else model.device
    density = Density(model if target == model.device else model.to(target), temperature)
    stream = batches(prepared, target)

    def batch() -> tuple[Tensor, Tensor, float]:
        x, y = next(stream)
        return x, y, prepared.n / len(x)

    w = starts(density.model, chains, start, generator)
    kept = w.new_empty((draws, chains, model.size))
    record, size = w.new_full((draws,), torch.nan), w.new_zeros(chains, 1)
    done = 0
    climb = warmup // 2 if start is None else 0
    bar = progress_bar(warmup - climb + draws * thin, "sgld", progress)
    try:
        w = ascend(density, w, batch, climb)
        x, y, ratio = batch()
        check_finite(density(w, x, y, ratio)[0], 0, "sgld", _ADVICE)
        m, largest = metric(density, w, batch, precondition, generator)
        size = (4 * step / (largest * ratio))[:, None] if step_size is None else torch.full_like(size, step_size)
        drift, spread = 0.5 * size * m, (size * m).sqrt()
        for i in bar:
            value, slope = density(w, *batch())
            w = torch.addcmul(w, drift, slope).addcmul_(spread, noise(tuple(w.shape), w, generator))
            past = i - (warmup - climb)
            if i % 100 == 0 or past % thin == thin - 1:
                check_finite(value, i + climb, "sgld", _ADVICE)
            if past >= 0 and past % thin == thin - 1:
                check_finite(w.sum(-1), i + climb, "sgld", _ADVICE)
                kept[done], record[done] = w, value.mean()
                done += 1
    except KeyboardInterrupt:
        pass
    return chain_posterior(
        model,
        "sgld",
        kept[:done],
        history={"log_joint": record[:done].cpu()},
        diagnostics={
            "warmup": float(warmup),
            "thin": float(thin),
            "temperature": float(temperature),
            "step_size": float(size.mean()),
        },
        scaling=prepared.scaling,
        planned=draws,
        last=w,
    )
