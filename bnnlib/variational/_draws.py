"""Draws that keep their gradient in the parameters of q, from a given generator."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import (
    Distribution,
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)

from bnnlib._random import _borrowed, standard_normal


def reparameterised(q: Distribution, n: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw n values as a function of noise and parameters, (n, *batch_shape, *event_shape).

    Raises
    ------
    ValueError
        If q has no such function (discrete distributions, mixtures).
    """
    base = q.base_dist if isinstance(q, Independent) else q
    if not q.has_rsample:
        raise ValueError(
            f'{type(base).__name__} has no reparameterised draws; use estimator="score", which asks only for log_prob'
        )
    shape = (n, *q.batch_shape, *q.event_shape)
    if type(base) is Normal:
        return base.loc + base.scale * standard_normal(shape, base.loc, generator)
    if type(base) is MultivariateNormal and not base.batch_shape:
        noise = standard_normal(shape, base.loc, generator)
        return base.loc + noise @ base.scale_tril.T
    if type(base) is LowRankMultivariateNormal and not base.batch_shape:
        size, rank = base._unbroadcasted_cov_factor.shape
        noise = standard_normal((n, size + rank), base.loc, generator)
        own: Tensor = noise[:, :size] * base._unbroadcasted_cov_diag.sqrt()
        shared: Tensor = noise[:, size:] @ base._unbroadcasted_cov_factor.T
        own = base.loc + own + shared
        return own
    if isinstance(base, TransformedDistribution):
        value = reparameterised(base.base_dist, n, generator)
        for transform in base.transforms:
            value = transform(value)
        return value
    with _borrowed(generator):
        drawn: Tensor = q.rsample((n,))
        return drawn
