"""The Kullback-Leibler divergence: how many nats q is away from p, measured by q.

KL(q || p) = E_q[log q(z) - log p(z)] >= 0,   zero only for q = p, not symmetric.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, LowRankMultivariateNormal, MultivariateNormal, Normal
from torch.distributions import kl_divergence as torch_kl

from bnnlib._random import draw
from bnnlib._settings import check_whole
from bnnlib.variational._draws import reparameterised

__all__ = ["Estimate", "kl"]


@dataclass(frozen=True, repr=False)
class Estimate:
    """A number and how well it is known; `float(e)` is the number.

    Attributes
    ----------
    value
        In nats, of the batch shape.
    standard_error
        Of the Monte Carlo mean; zero where the value is exact.
    exact
        True for a closed form.
    """

    value: Tensor
    standard_error: Tensor
    exact: bool

    def __float__(self) -> float:
        return float(self.value.detach())

    def __repr__(self) -> str:
        if self.value.numel() > 1:
            return f"Estimate(shape={tuple(self.value.shape)}, exact={self.exact})"
        spread = "exact" if self.exact else f"standard_error={float(self.standard_error.detach()):.2g}"
        return f"Estimate({float(self):.6g}, {spread})"


def kl(
    q: Distribution | Tensor,
    p: Distribution | Tensor,
    *,
    draws: int = 10_000,
    generator: torch.Generator | None = None,
) -> Estimate:
    """KL(q || p) in nats: the first argument is the one that the expectation is taken over.

    Parameters
    ----------
    q, p
        Two torch distributions, or two tables of probabilities of equal shape (each sums to 1; the
        probabilities of grid cells are such a table).
    draws
        Draws from q where there is no closed form.
    generator
        Source of these draws.

    Returns
    -------
    Estimate
        Closed form where torch has one, for tables, and for any pair of normals in full, low-rank or
        factorised form; else the Monte Carlo mean with its standard error. Infinite where q has
        probability that p does not have. Keeps the gradient in the parameters of q and p.

    Raises
    ------
    ValueError
        Tables that are no probabilities, shapes that do not fit, a draw count below 2.
    TypeError
        A distribution against a table.

    Source: Kullback and Leibler (1951).

    Examples
    --------
    >>> from torch.distributions import Normal
    >>> kl(Normal(0.0, 1.0), Normal(1.0, 1.0))
    Estimate(0.5, exact)
    """
    if isinstance(q, Tensor) and isinstance(p, Tensor):
        return _exact(_table_kl(q, p))
    if not isinstance(q, Distribution) or not isinstance(p, Distribution):
        raise TypeError(
            f"q and p must be two distributions or two tables of probabilities, got {type(q).__name__} "
            f"and {type(p).__name__}"
        )
    if q.event_shape != p.event_shape:
        raise ValueError(
            f"q is over values of shape {tuple(q.event_shape)}, p of {tuple(p.event_shape)}; they must be the same"
        )
    q, p = _same_kind(q, p)
    try:
        return _exact(torch_kl(q, p))
    except NotImplementedError:
        return _by_draws(q, p, draws, generator)


def _exact(value: Tensor) -> Estimate:
    return Estimate(value, torch.zeros_like(value.detach()), True)


def _table_kl(q: Tensor, p: Tensor) -> Tensor:
    if q.shape != p.shape:
        raise ValueError(f"the tables have shapes {tuple(q.shape)} and {tuple(p.shape)}; they must be the same")
    for name, table in (("q", q), ("p", p)):
        total = float(table.detach().sum())
        if not bool((table >= 0).all()) or abs(total - 1) > 1e-4:
            raise ValueError(
                f"{name} must hold probabilities, none negative, with sum 1; the smallest is "
                f"{float(table.detach().min()):.4g}, the sum {total:.6g}"
            )
    there = q > 0  # 0 log 0 = 0, and no gradient through it
    return torch.where(there, q * (torch.where(there, q, 1).log() - torch.where(there, p, 1).log()), 0).sum()


def _same_kind(q: Distribution, p: Distribution) -> tuple[Distribution, Distribution]:
    """A factorised normal beside a correlated one as a correlated one: torch has no closed form for the mixed pair."""
    full = (MultivariateNormal, LowRankMultivariateNormal)

    def factorised(d: Distribution) -> bool:
        return isinstance(d, Independent) and type(d.base_dist) is Normal and len(d.event_shape) == 1

    def whole(d: Distribution) -> Distribution:
        base = cast(Any, d).base_dist
        return MultivariateNormal(base.loc, scale_tril=torch.diag_embed(base.scale))

    if factorised(q) and isinstance(p, full):
        return whole(q), p
    if factorised(p) and isinstance(q, full):
        return q, whole(p)
    return q, p


def _by_draws(q: Distribution, p: Distribution, draws: int, generator: torch.Generator | None) -> Estimate:
    check_whole(2, draws=draws)
    z = reparameterised(q, draws, generator) if q.has_rsample else draw(q, draws, generator)
    inside = cast(Any, p.support).check(z)
    if bool(inside.all()):
        log_p = p.log_prob(z)
    else:  # log p is -inf there, which torch's check of arguments does not let it say
        shape = torch.broadcast_shapes(z.shape[: z.dim() - len(p.event_shape)], (draws, *p.batch_shape))
        log_p = z.new_full(shape, -torch.inf)
    ratio = q.log_prob(z) - log_p
    return Estimate(ratio.mean(0), ratio.detach().std(0) / draws**0.5, False)
