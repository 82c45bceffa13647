"""Have the chains converged? R-hat and effective sample size of what is asked for: function values.

    R-hat = sqrt(variance of all draws / variance within chains),    near 1 when chains agree

Weights are the wrong thing to ask. Hidden units can be exchanged and their signs flipped without any
change to the function, so chains that describe one and the same posterior of functions may sit in
different copies of it in weight space.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bnnlib.nets.empirical import Empirical
from bnnlib.nets.posterior import Posterior

__all__ = ["Convergence", "convergence"]


@dataclass(frozen=True, repr=False)
class Convergence:
    """R-hat and effective sample sizes, one for each quantity that was asked about.

    Attributes
    ----------
    r_hat
        Rank-normalised split R-hat. Above 1.01, the chains do not agree yet. NaN for what never varies.
    ess
        Effective sample size in the bulk: as many independent draws would give means as exact.
    ess_tail
        The same for the 5 % and 95 % quantiles.
    chains, draws
        Number of chains and of draws a chain.
    """

    r_hat: Tensor
    ess: Tensor
    ess_tail: Tensor
    chains: int
    draws: int

    def __repr__(self) -> str:
        return (
            f"Convergence({self.chains} chains of {self.draws}: R-hat at most {float(self.r_hat.max()):.3f}, "
            f"ESS at least {float(self.ess.min()):.0f} in the bulk, {float(self.ess_tail.min()):.0f} in the tails)"
        )


def convergence(posterior: Posterior, x: Tensor | None = None) -> Convergence:
    """R-hat and effective sample size of a sampler's chains, by ArviZ.

    Parameters
    ----------
    posterior
        From hmc, nuts, sgld or sghmc, with at least four draws a chain.
    x
        Inputs in the original units, (N, ...): the function values there are asked about, (N, outputs). None: the
        entries of w themselves, (P,), which need not agree between chains that agree in every prediction.

    Returns
    -------
    Convergence

    Raises
    ------
    ModuleNotFoundError
        ArviZ is not installed.
    ValueError
        The posterior has no chains, or fewer than four draws in each.

    Notes
    -----
    Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021).
    """
    az = _arviz()
    chains, draws = int(posterior.diagnostics.get("chains", 0)), int(posterior.diagnostics.get("draws", 0))
    if not isinstance(posterior.distribution, Empirical) or chains * draws != len(posterior.distribution.values):
        raise ValueError(f"convergence needs the chains of a sampler (hmc, nuts, sgld, sghmc), not {posterior.method}")
    if draws < 4:
        raise ValueError(f"convergence needs at least four draws a chain, got {draws}")
    values = posterior.distribution.values if x is None else posterior.functions(x, chains * draws)
    # float64 before the ranks: float32 values tie.
    columns = values.reshape(chains, draws, -1).double().cpu().numpy()
    numbers = [
        [float(ask(columns[..., i])) for i in range(columns.shape[-1])]
        for ask in (az.rhat, az.ess, lambda v: az.ess(v, method="tail"))
    ]
    r_hat, ess, ess_tail = torch.tensor(numbers, dtype=torch.float64).reshape(3, *values.shape[1:])
    return Convergence(r_hat, ess, ess_tail, chains, draws)


def _arviz() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # about ArviZ's next version
            import arviz
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("convergence asks ArviZ: pip install arviz") from error
    return arviz
