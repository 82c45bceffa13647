"""Conjugate updates of a normal distribution: its mean alone, or its mean and precision together.

A precision is 1 / variance. Precisions of independent sources add, which is the whole of `normal_normal`.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, Gamma, Normal, StudentT, constraints
from torch.distributions.utils import broadcast_all

from bnnlib.bayes._checks import check_data, check_prior

__all__ = ["NormalGamma", "normal_gamma", "normal_normal"]

_ONE = torch.Size()  # the shape of a single draw


def normal_normal(prior: Normal, data: Tensor, *, scale: float | Tensor) -> Normal:
    """Posterior of a mean when the noise is known.

        mu ~ N(m, s^2),  x_i ~ N(mu, scale_i^2)
        1 / s_n^2 = 1 / s^2 + sum_i 1 / scale_i^2
        m_n = s_n^2 (m / s^2 + sum_i x_i / scale_i^2)

    Parameters
    ----------
    prior
        Normal over the mean, of any batch shape.
    data
        Observations, shape (n, *batch).
    scale
        Standard deviation of the noise, in the units of the data: one number, or one an observation.

    Returns
    -------
    Normal
        Posterior of the mean, in the prior's dtype.

    Raises
    ------
    TypeError
        The prior is no Normal.
    ValueError
        Empty data, NaN, a scale that is not positive or does not fit the data.

    Examples
    --------
    >>> import torch
    >>> from bnnlib.bayes import normal_normal
    >>> from torch.distributions import Normal
    >>> normal_normal(Normal(0.0, 1.0), torch.tensor([1.0, 3.0]), scale=1.0).mean
    tensor(1.3333)
    """
    check_prior(prior, Normal)
    check_data(data, prior.batch_shape)
    noise = torch.as_tensor(scale, dtype=prior.loc.dtype, device=prior.loc.device)
    if not bool(((noise > 0) & torch.isfinite(noise)).all()):
        raise ValueError(f"scale is the noise's standard deviation, positive and finite; got {scale}")
    try:
        weights = (noise**-2).expand(data.shape)
    except RuntimeError:
        raise ValueError(
            f"scale of shape {tuple(noise.shape)} does not fit data of shape {tuple(data.shape)}"
        ) from None
    precision = prior.scale**-2 + weights.sum(0)
    loc = (prior.loc * prior.scale**-2 + (weights * data.to(prior.loc)).sum(0)) / precision
    return Normal(loc, precision**-0.5)


class NormalGamma(Distribution):
    """Joint distribution of a mean mu and a precision tau, the conjugate one for normal data.

        tau ~ Gamma(concentration, rate),     mu | tau ~ N(loc, 1 / (count tau))

    A value has shape (..., 2): mu, then tau.

    Parameters
    ----------
    loc
        Centre of mu, in the units of the data.
    count
        How many observations the belief in `loc` is worth.
    concentration
        Shape of the Gamma over the precision; that belief is worth 2 * concentration observations.
    rate
        Rate of that Gamma, in squared units of the data: concentration / rate is the mean precision.

    Raises
    ------
    ValueError
        A count, concentration or rate that is not positive.

    Source: Murphy (2007), Conjugate Bayesian analysis of the Gaussian distribution, section 3.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real,
        "count": constraints.positive,
        "concentration": constraints.positive,
        "rate": constraints.positive,
    }
    support: ClassVar[constraints.Constraint] = constraints.cat([constraints.real, constraints.positive], dim=-1)
    has_rsample = True

    def __init__(
        self,
        loc: float | Tensor,
        count: float | Tensor,
        concentration: float | Tensor,
        rate: float | Tensor,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.count, self.concentration, self.rate = broadcast_all(loc, count, concentration, rate)
        super().__init__(self.loc.shape, torch.Size([2]), validate_args=validate_args)

    @property
    def precision(self) -> Gamma:
        """Marginal of the precision tau."""
        return Gamma(self.concentration, self.rate)

    @property
    def location(self) -> StudentT:
        """Marginal of the mean mu: a Student-t, the normal averaged over what its precision may be."""
        return StudentT(2 * self.concentration, self.loc, (self.rate / (self.concentration * self.count)).sqrt())

    @property
    def mean(self) -> Tensor:
        """E[mu] and E[tau], shape (*batch, 2). E[mu] is undefined (NaN) for concentration <= 1/2."""
        return torch.stack([self.location.mean, self.precision.mean], -1)

    @property
    def variance(self) -> Tensor:
        """Var[mu] and Var[tau], shape (*batch, 2); Var[mu] is infinite for concentration <= 1."""
        return torch.stack([self.location.variance, self.precision.variance], -1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Joint log density of (mu, tau), shape (...) for a value of shape (..., 2)."""
        mu, tau = value.unbind(-1)
        scale = (self.count * tau) ** -0.5
        log_p: Tensor = Normal(self.loc, scale).log_prob(mu) + self.precision.log_prob(tau)
        return log_p

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = _ONE) -> Tensor:
        """Draw (mu, tau): the precision first, then the mean given it."""
        tau = self.precision.rsample(torch.Size(sample_shape))
        mu = self.loc + (self.count * tau) ** -0.5 * torch.randn_like(tau)
        return torch.stack([mu, tau], -1)

    def expand(self, batch_shape: torch.Size | list[int] | tuple[int, ...], _instance: object = None) -> NormalGamma:
        """The same distribution, repeated to a larger batch shape."""
        shape = torch.Size(batch_shape)
        loc, count, concentration, rate = (
            p.expand(shape) for p in (self.loc, self.count, self.concentration, self.rate)
        )
        return NormalGamma(loc, count, concentration, rate, validate_args=False)

    def entropy(self) -> Tensor:
        """E[-log p(mu, tau)] in nats: the Gamma's entropy and the mean entropy of the normal."""
        mean_log_tau = torch.digamma(self.concentration) - self.rate.log()
        given_tau: Tensor = 0.5 * (1 + math.log(2 * math.pi) - self.count.log() - mean_log_tau)
        total: Tensor = given_tau + self.precision.entropy()
        return total


def normal_gamma(prior: NormalGamma, data: Tensor) -> NormalGamma:
    """Posterior of an unknown mean and an unknown precision.

        loc_n           = (count loc + sum x_i) / (count + n)
        count_n         = count + n
        concentration_n = concentration + n / 2
        rate_n          = rate + sum (x_i - mean)^2 / 2 + count n (mean - loc)^2 / (2 count_n)

    Parameters
    ----------
    prior
        NormalGamma over mean and precision, of any batch shape.
    data
        Observations, shape (n, *batch).

    Returns
    -------
    NormalGamma
        Posterior, in the prior's dtype.

    Raises
    ------
    TypeError
        The prior is no NormalGamma.
    ValueError
        Empty data, NaN, shapes that do not fit.

    Source: Murphy (2007), section 3.

    Examples
    --------
    >>> import torch
    >>> from bnnlib.bayes import NormalGamma, normal_gamma
    >>> normal_gamma(NormalGamma(0.0, 1.0, 1.0, 1.0), torch.tensor([1.0, 3.0])).rate
    tensor(3.3333)
    """
    check_prior(prior, NormalGamma)
    check_data(data, prior.batch_shape)
    x, n = data.to(prior.loc), len(data)
    mean = x.mean(0)
    count = prior.count + n
    spread = (x - mean).square().sum(0) + prior.count * n * (mean - prior.loc) ** 2 / count
    return NormalGamma(
        prior.loc + n * (mean - prior.loc) / count, count, prior.concentration + n / 2, prior.rate + spread / 2
    )
