"""How noisy an estimate of the ELBO's gradient is, in the parameters of q."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal

from bnnlib._settings import check_whole
from bnnlib.variational._checks import LogJoint
from bnnlib.variational.elbo import elbo
from bnnlib.variational.families import Family

__all__ = ["GradientVariance", "gradient_variance"]


@dataclass(frozen=True)
class GradientVariance:
    """Mean and variance of a gradient estimate over repeats, one entry a parameter of q.

    Attributes
    ----------
    mean, variance
        Shape (P,), all parameters in a row.
    standard_error
        Of the mean, (P,).
    names
        What each entry is, such as "loc[0]".
    """

    mean: Tensor
    variance: Tensor
    standard_error: Tensor
    names: tuple[str, ...]


def gradient_variance(
    log_joint: LogJoint,
    q: Distribution | Family,
    *,
    estimator: str = "reparameterised",
    draws: int = 1,
    repeats: int = 1000,
    baseline: float | str | None = None,
    generator: torch.Generator | None = None,
) -> GradientVariance:
    """Estimate the ELBO's gradient `repeats` times, from `draws` draws each; q stays as it is.

    Parameters
    ----------
    log_joint, estimator, draws, baseline, generator
        As for `elbo`.
    q
        A torch distribution, differentiated in its own parameters (loc and scale of a `Normal`, loc and
        scale_tril of a `MultivariateNormal`), or a family, in its flat parameters.
    repeats
        Number of estimates.

    Returns
    -------
    GradientVariance
        Mean and variance a parameter.

    Raises
    ------
    ValueError
        draws or repeats too small, and all that `elbo` raises.
    """
    check_whole(draws=draws)
    check_whole(2, repeats=repeats)
    named = _Copy(q)
    estimates = []
    for _ in range(repeats):
        bound = elbo(
            log_joint, named.distribution(), draws, estimator=estimator, baseline=baseline, generator=generator
        ).mean()
        gradients = torch.autograd.grad(bound, list(named.leaves.values()), allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for p, g in zip(named.leaves.values(), gradients, strict=True)]
        estimates.append(torch.cat([g.reshape(-1) for g in parts]))
    stacked = torch.stack(estimates)
    variance = stacked.var(0)
    return GradientVariance(stacked.mean(0), variance, (variance / repeats).sqrt(), named.entries())


class _Copy:
    """A copy of q whose parameters are leaves, and can be named."""

    def __init__(self, q: Distribution | Family) -> None:
        self.family, self.base, self.wrap = None, None, 0
        if isinstance(q, Family):
            self.family = copy.deepcopy(q)
            names = {id(v): k for k, v in vars(self.family).items() if isinstance(v, Tensor)}
            found = enumerate(self.family.parameters)
            self.leaves = {names.get(id(p), f"parameter {i}"): p for i, p in found}
            return
        if not isinstance(q, Distribution):
            raise TypeError(f"q must be a torch Distribution or a family of this room, got {type(q).__name__}")
        base = q
        if isinstance(q, Independent):
            base, self.wrap = q.base_dist, q.reinterpreted_batch_ndims
        self.base = type(base)
        given = ["loc", "scale_tril"] if isinstance(base, MultivariateNormal) else list(base.arg_constraints)
        # Of two ways to give one parameter (probs or logits), the one that q was made from.
        given = [n for n in given if n in vars(base)]
        values = {n: getattr(base, n) for n in given}
        if not values or not all(isinstance(v, Tensor) and v.is_floating_point() for v in values.values()):
            raise TypeError(f"{self.base.__name__}'s parameters cannot be told apart; give a family of this room")
        self.leaves = {n: v.detach().clone().requires_grad_() for n, v in values.items()}

    def distribution(self) -> Distribution:
        if self.family is not None:
            return self.family.distribution()
        assert self.base is not None
        made: Distribution = cast(Any, self.base)(**self.leaves)
        return Independent(made, self.wrap) if self.wrap else made

    def entries(self) -> tuple[str, ...]:
        def places(name: str, p: Tensor) -> list[str]:
            where = torch.cartesian_prod(*[torch.arange(s) for s in p.shape]).reshape(p.numel(), -1).tolist()
            return [f"{name}[{', '.join(str(i) for i in w)}]" for w in where]

        return tuple(e for n, p in self.leaves.items() for e in (places(n, p) if p.dim() else [n]))
