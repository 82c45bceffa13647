"""The next observation: the likelihood averaged over the posterior, in closed form.

p(x_new | D) = integral p(x_new | theta) p(theta | D) dtheta
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Dirichlet,
    Distribution,
    Gamma,
    NegativeBinomial,
    Normal,
    StudentT,
)

from bnnlib.bayes.normals import NormalGamma

__all__ = ["posterior_predictive"]


def posterior_predictive(posterior: Distribution, *, scale: float | Tensor | None = None) -> Distribution:
    """Distribution of one new observation, from the posterior of any conjugate update here.

        Beta(a, b)             ->  Bernoulli(a / (a + b))
        Dirichlet(a)           ->  Categorical(a / sum a)
        Gamma(a, b)            ->  NegativeBinomial with mean a / b and variance a / b (1 + 1 / b)
        Normal(m, s)           ->  Normal(m, sqrt(s^2 + scale^2))
        NormalGamma(m, k, a, b) ->  StudentT(2 a, m, sqrt(b (k + 1) / (a k)))

    A prior instead of a posterior gives the prior predictive.

    Parameters
    ----------
    posterior
        What an update returned.
    scale
        Standard deviation of the noise, for `Normal` only.

    Returns
    -------
    Distribution
        Of the posterior's batch shape.

    Raises
    ------
    TypeError
        A distribution that no update here returns.
    ValueError
        `scale` missing for a `Normal`, given for another, or not positive.

    Source: Gelman et al. (2013), chapters 2 and 3.

    Examples
    --------
    >>> from bnnlib.bayes import posterior_predictive
    >>> from torch.distributions import Beta
    >>> posterior_predictive(Beta(3.0, 1.0)).probs
    tensor(0.7500)
    """
    if isinstance(posterior, Normal):
        return _normal(posterior, scale)
    if scale is not None:
        raise ValueError(
            f"scale goes with a Normal posterior only: a {type(posterior).__name__} says itself how new data spread"
        )
    if isinstance(posterior, Beta):
        return Bernoulli(probs=posterior.mean)
    if isinstance(posterior, Dirichlet):
        return Categorical(probs=posterior.mean)
    if isinstance(posterior, Gamma):
        return NegativeBinomial(total_count=posterior.concentration, probs=1 / (1 + posterior.rate))
    if isinstance(posterior, NormalGamma):
        k, a, b = posterior.count, posterior.concentration, posterior.rate
        return StudentT(2 * a, posterior.loc, (b * (k + 1) / (a * k)).sqrt())
    raise TypeError(
        f"posterior_predictive knows Beta, Dirichlet, Gamma, Normal and NormalGamma, not {type(posterior).__name__}"
    )


def _normal(posterior: Normal, scale: float | Tensor | None) -> Normal:
    if scale is None:
        raise ValueError("a Normal posterior is about the mean: pass scale, the standard deviation of the noise")
    noise = torch.as_tensor(scale, dtype=posterior.loc.dtype, device=posterior.loc.device)
    if not bool(((noise > 0) & torch.isfinite(noise)).all()):
        raise ValueError(f"scale is the noise's standard deviation, positive and finite; got {scale}")
    return Normal(posterior.loc, (posterior.scale**2 + noise**2).sqrt())
