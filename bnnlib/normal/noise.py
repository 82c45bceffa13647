"""Normal noise of unknown size: a Gamma distribution on its precision, and what that predicts.

The precision tau = 1 / sigma^2 is what a Gamma is conjugate for, with the mean known. Mean and precision
together are `bnnlib.bayes.normal_gamma`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Gamma, StudentT

from bnnlib.normal._checks import finite

__all__ = ["noise_precision", "noise_predictive"]


def noise_precision(prior: Gamma, residuals: Tensor) -> Gamma:
    """Posterior of the precision of zero-mean normal noise, from a Gamma prior. Exact.

        tau ~ Gamma(a, b),  r_i ~ N(0, 1/tau)   gives   tau | r ~ Gamma(a + n/2, b + sum_i r_i^2 / 2)

    Parameters
    ----------
    prior
        Gamma over the precision 1 / sigma^2, with torch's (concentration, rate). The rate has the
        units of r squared.
    residuals
        Observations minus their known mean, shape (n, *batch_shape of the prior).

    Returns
    -------
    Gamma
        Over the precision. Its 1 / mean is the usual estimate of the variance.

    Raises
    ------
    TypeError, ValueError
        Another prior, no residuals, NaN, or shapes that do not fit.

    Source: Gelman et al. (2013), section 2.6.
    """
    if not isinstance(prior, Gamma):
        raise TypeError(f"the prior on the precision must be a Gamma to be conjugate, not {type(prior).__name__}")
    if residuals.dim() == 0 or len(residuals) == 0:
        raise ValueError("noise_precision needs at least one residual, shape (n, ...); without data keep the prior")
    if residuals.shape[1:] != prior.batch_shape:
        raise ValueError(
            f"residuals have shape {tuple(residuals.shape)} and the prior batch shape {tuple(prior.batch_shape)}; "
            "give residuals of shape (n, *batch shape), one column for each prior"
        )
    finite("residuals", residuals)
    return Gamma(prior.concentration + 0.5 * len(residuals), prior.rate + 0.5 * residuals.square().sum(0))


def noise_predictive(precision: Gamma, loc: float | Tensor = 0.0) -> StudentT:
    """Distribution of the next observation with the precision integrated out: a Student-t.

        integral N(y; loc, 1/tau) Gamma(tau; a, b) dtau = StudentT(y; df = 2a, loc, scale = sqrt(b / a))

    Its standard deviation is sqrt(b / (a - 1)), larger than its scale, and infinite for a <= 1.

    Source: Bishop (2006), section 2.3.7.
    """
    if not isinstance(precision, Gamma):
        raise TypeError(f"noise_predictive needs a Gamma over the precision, not {type(precision).__name__}")
    centre = torch.as_tensor(loc, dtype=precision.rate.dtype)
    finite("loc", centre)
    a, b = precision.concentration, precision.rate
    return StudentT(2 * a, centre, (b / a).sqrt())
