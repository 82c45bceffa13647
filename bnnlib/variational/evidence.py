"""The log evidence by importance sampling: q as a proposal, its mistake weighed away.

p(x) = E_q[w],   w = p(x, z) / q(z);    ELBO = E_q[log w] <= log E_q[w] = log p(x).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from bnnlib._random import draw
from bnnlib._settings import check_whole
from bnnlib.variational._checks import LogJoint, check_single, evaluate
from bnnlib.variational.families import Family

__all__ = ["Evidence", "importance_evidence"]


@dataclass(frozen=True)
class Evidence:
    """An estimate of log p(x), and whether to trust it.

    Attributes
    ----------
    log_evidence
        In nats; `float(e)` is this.
    standard_error
        Of log_evidence, by the delta method: sd(w) / (mean(w) sqrt(S)). Itself an estimate, and too
        small where a few draws carry the weight.
    elbo
        Mean of log w, the bound of the same draws.
    ess
        (sum w)^2 / sum w^2: the draws that count, 1 to S.
    max_weight
        The largest share of one draw. Above some per cent the estimate hangs on single draws.
    """

    log_evidence: float
    standard_error: float
    elbo: float
    ess: float
    max_weight: float

    def __float__(self) -> float:
        return self.log_evidence


@torch.no_grad()
def importance_evidence(
    log_joint: LogJoint, q: Distribution | Family, draws: int = 10_000, *, generator: torch.Generator | None = None
) -> Evidence:
    """log p(x) from draws of q; it needs no tuning beyond a q with tails as wide as the posterior's.

    Parameters
    ----------
    log_joint
        z of shape (S, D) to log p(x, z) of shape (S,), all constants included.
    q
        A torch distribution without batch shape, or a family of this room.
    draws
        Number S of draws, at least 2.
    generator
        Source of the draws.

    Returns
    -------
    Evidence
        Exact with error zero where q is the posterior.

    Raises
    ------
    ValueError
        Too few draws, a log joint of the wrong shape, or one that is -inf at every draw.

    Source: Owen (2013), chapter 9.
    """
    check_whole(2, draws=draws)
    if isinstance(q, Family):
        q = q.distribution()
    check_single(q)
    z = draw(q, draws, generator)
    log_w: Tensor = (evaluate(log_joint, z) - q.log_prob(z)).double()
    if bool((log_w == -torch.inf).all()):
        raise ValueError("log_joint is -inf at every draw of q: the posterior lies elsewhere")
    log_evidence = torch.logsumexp(log_w, 0) - math.log(draws)
    ratio = (log_w - log_evidence).exp()  # mean 1
    return Evidence(
        log_evidence=log_evidence.item(),
        standard_error=(ratio.std() / draws**0.5).item(),
        elbo=log_w.mean().item(),
        ess=(ratio.sum() ** 2 / ratio.square().sum()).item(),
        max_weight=(ratio.max() / draws).item(),
    )
