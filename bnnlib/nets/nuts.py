"""The No-U-Turn Sampler, by Pyro: an independent implementation to hold the others against.

A trajectory of Hamiltonian dynamics grows until it turns back, so its length needs no tuning
(Hoffman and Gelman 2014). Pyro runs it on the very log joint of the model, one chain after the other.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor
from tqdm import TqdmWarning

from bnnlib._random import _borrowed
from bnnlib._settings import check_fraction, check_whole
from bnnlib.nets._fitting import Data, prepare, progress_bar
from bnnlib.nets._sampling import Density, ascend, chain_posterior, check_finite, on_host, starts
from bnnlib.nets.model import Model
from bnnlib.nets.posterior import Posterior

__all__ = ["nuts"]


def nuts(
    model: Model,
    data: Data,
    *,
    draws: int = 500,
    chains: int = 2,
    warmup: int = 500,
    max_tree_depth: int = 8,
    target_accept: float = 0.8,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
    progress: bool = True,
    device: torch.device | str | None = None,
) -> Posterior:
    """Draw from the posterior of w by Pyro's No-U-Turn Sampler on all data, in float64.

    Parameters
    ----------
    model
        What is unknown, its prior and its likelihood.
    data
        A pair of tensors, a `Standardized`, or a `DataLoader` (read once, as a whole).
    draws
        Draws that each chain keeps.
    chains
        Chains, one after the other.
    warmup
        Iterations of each chain in which step size and a diagonal mass are found.
    max_tree_depth
        A trajectory has at most 2^max_tree_depth gradients.
    target_accept
        Acceptance that the step size is adapted to.
    start
        Where the chains start, (chains, P). None: draws from the prior, moved uphill for 200 steps.
    generator
        Source of all draws; torch's default generator if None. Pyro draws from torch's global state,
        which is lent to it and put back.
    progress
        Show a progress bar.
    device
        Where to compute; the result is on the model's own device.

    Returns
    -------
    Posterior
        An `Empirical`, chain after chain. Diagnostics `accept` (mean), `step_size` (mean over chains),
        `divergences` (after the warm-up). An interrupt from the keyboard returns the whole chains that
        are there, or what the first chain has.

    Raises
    ------
    ModuleNotFoundError
        Pyro is not installed.
    ValueError
        Bad data or settings, before any work starts.
    FloatingPointError
        The log density is not finite where a chain starts.
    """
    check_whole(1, draws=draws, chains=chains, max_tree_depth=max_tree_depth)
    check_whole(0, warmup=warmup)
    check_fraction(target_accept=target_accept)
    pyro_mcmc = _pyro()
    prepared = prepare(model, data)
    x, y = prepared.everything()
    target = torch.device(device) if device is not None else model.device
    work = model.to(target, torch.float64)
    x, y = (v.to(target).double() if v.is_floating_point() else v.to(target) for v in (x, y))
    density = Density(work)
    w = starts(work, chains, start, generator)
    check_finite(density(w, x, y)[0], 0, "nuts", "give standardised data (bnnlib.data.Standardized) or another start")

    def potential(values: dict[str, Tensor]) -> Tensor:
        return -density.log_prob(values["w"].unsqueeze(0), x, y)[0]

    found: list[list[Tensor]] = []
    notes: list[dict[str, float]] = []
    stopped = False
    try:
        if start is None:
            w = ascend(density, w, lambda: (x, y, 1.0), 200)
        bar = progress_bar(chains * (warmup + draws), "nuts", progress)
        with bar, _borrowed(on_host(generator)):
            for chain in range(chains):
                found.append([])

                def keep(kernel: Any, values: dict[str, Tensor], stage: str, i: int) -> None:
                    bar.update()
                    if not stage.startswith("Warmup"):
                        found[-1].append(values["w"].detach().clone())

                kernel = pyro_mcmc.NUTS(
                    potential_fn=potential, target_accept_prob=target_accept, max_tree_depth=max_tree_depth
                )
                run = pyro_mcmc.MCMC(
                    kernel,
                    num_samples=draws,
                    warmup_steps=warmup,
                    initial_params={"w": w[chain]},
                    hook_fn=keep,
                    disable_progbar=True,
                )
                run.run()
                notes.append(_notes(kernel, run))
    except KeyboardInterrupt:
        stopped = True
    whole = [f for f in found if len(f) == draws] or [f for f in found[:1] if f]
    reached = None
    if stopped and whole:
        first = f"{len(whole[0])} of {draws} draws of the first chain"
        reached = f"{len(whole)} of {chains} chains" if len(whole[0]) == draws else first
    kept = torch.stack([torch.stack(f) for f in whole], 1) if whole else w.new_empty((0, chains, model.size))
    return chain_posterior(
        model,
        "nuts",
        kept,
        history={},
        diagnostics={
            "warmup": float(warmup),
            **{k: sum(n[k] for n in notes) / len(notes) if notes else math.nan for k in ("accept", "step_size")},
            "divergences": sum(n["divergences"] for n in notes),
        },
        scaling=prepared.scaling,
        planned=draws,
        last=w,
        reached=reached,
    )


def _notes(kernel: Any, run: Any) -> dict[str, float]:
    found = run.diagnostics()
    return {
        "accept": float(found["acceptance rate"]["chain 0"]),
        "divergences": float(len(found["divergences"]["chain 0"])),
        "step_size": float(kernel.step_size),
    }


def _pyro() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TqdmWarning)  # Pyro's import asks tqdm for notebook widgets
            from pyro.infer import mcmc
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("nuts runs Pyro's sampler: pip install pyro-ppl, or use hmc") from error
    return mcmc
