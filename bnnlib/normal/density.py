"""Density, entropy and KL divergence of normal distributions, in nats."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal
from torch.distributions.utils import broadcast_all

from bnnlib.normal._checks import cholesky, finite, normal, positive_number, same_kind

__all__ = ["entropy", "kl", "log_density", "max_entropy_table"]

LOG_2PI = math.log(2 * math.pi)


def log_density(
    x: float | Tensor, *, loc: float | Tensor = 0.0, scale: float | Tensor | None = None, cov: Tensor | None = None
) -> Tensor:
    """Log density of the normal distribution at x, in nats.

        log N(x; mu, sigma^2) = -(x - mu)^2 / (2 sigma^2) - log sigma - log(2 pi) / 2
        log N(x; mu, C) = -(x - mu)^T C^-1 (x - mu) / 2 - log det(C) / 2 - d log(2 pi) / 2

    Location and scale go by name: libraries do not agree on the order of the two.

    Parameters
    ----------
    x
        Where to evaluate: any shape with `scale`, (..., d) with `cov`.
    loc
        Mean, broadcastable against x, in the units of x.
    scale
        Standard deviation, broadcastable against x, in the units of x. Not a variance.
    cov
        Covariance matrix (d, d), in the units of x squared. Exactly one of `scale` and `cov`.

    Returns
    -------
    Tensor
        The broadcast shape with `scale`; shape (...) with `cov`.

    Raises
    ------
    ValueError
        Both or neither of `scale` and `cov`; a scale that is not positive; a covariance that is not
        symmetric and positive definite; NaN in x or loc.

    Examples
    --------
    >>> round(log_density(0.0, loc=0.0, scale=0.1).exp().item(), 3)
    3.989
    """
    if (scale is None) == (cov is None):
        raise ValueError("log_density needs exactly one of scale (a standard deviation) and cov (a matrix)")
    if scale is not None:
        x, loc, scale = broadcast_all(x, loc, scale)
        finite("x", x)
        finite("loc", loc)
        positive_number("scale", scale, "; scale is a standard deviation")
        return -0.5 * ((x - loc) / scale) ** 2 - scale.log() - 0.5 * LOG_2PI
    assert cov is not None
    factor = cholesky("cov", cov)
    x, loc = torch.as_tensor(x, dtype=cov.dtype), torch.as_tensor(loc, dtype=cov.dtype)
    finite("x", x)
    finite("loc", loc)
    if x.dim() == 0 or x.shape[-1] != cov.shape[-1]:
        raise ValueError(f"x must end in the dimension of cov, {cov.shape[-1]}, got shape {tuple(x.shape)}")
    return -0.5 * _square_distance(x - loc, factor) - _half_log_det(factor) - 0.5 * cov.shape[-1] * LOG_2PI


def entropy(distribution: Normal | MultivariateNormal) -> Tensor:
    """Differential entropy in nats: -E[log p(x)].

        H = log(sigma sqrt(2 pi e))          one number
        H = log det(2 pi e C) / 2            a vector

    It depends on the units of x, and is negative where the density is high: it is no count of anything.

    Returns
    -------
    Tensor
        Shape: the batch shape.

    Source: Cover and Thomas (2006), section 8.1.
    """
    normal("entropy", distribution)
    if isinstance(distribution, Normal):
        log_scale: Tensor = distribution.scale.log()
        return log_scale + 0.5 * (1 + LOG_2PI)
    d = distribution.event_shape.numel()
    return _half_log_det(distribution.scale_tril) + 0.5 * d * (1 + LOG_2PI)


def kl(q: Normal | MultivariateNormal, p: Normal | MultivariateNormal) -> Tensor:
    """Kullback-Leibler divergence KL(q || p) = E_q[log q(x) - log p(x)], in nats.

        KL = (sigma_q^2 + (mu_q - mu_p)^2) / (2 sigma_p^2) - 1/2 + log(sigma_p / sigma_q)
        KL = (tr(C_p^-1 C_q) + (mu_q - mu_p)^T C_p^-1 (mu_q - mu_p) - d + log det C_p - log det C_q) / 2

    Zero where q = p, positive elsewhere, and not symmetric.

    Returns
    -------
    Tensor
        Shape: the broadcast batch shape. For `Normal` one number an entry; add them up for independent entries.

    Raises
    ------
    TypeError, ValueError
        If q and p are of different kinds or lengths.

    Source: Kullback and Leibler (1951).
    """
    same_kind("kl", q, p)
    if isinstance(q, Normal) and isinstance(p, Normal):
        ratio = q.scale / p.scale
        return 0.5 * (ratio**2 + ((q.loc - p.loc) / p.scale) ** 2 - 1) - ratio.log()
    assert isinstance(q, MultivariateNormal)
    assert isinstance(p, MultivariateNormal)
    factor_q, factor_p = q.scale_tril, p.scale_tril
    trace: Tensor = torch.linalg.solve_triangular(factor_p, factor_q, upper=False).square().sum((-2, -1))
    log_dets = 2 * (_half_log_det(factor_p) - _half_log_det(factor_q))
    distance = _square_distance(q.loc - p.loc, factor_p)
    return 0.5 * (trace + distance - q.event_shape.numel() + log_dets)


def max_entropy_table(*, sd: float = 1.0) -> dict[str, float]:
    """Entropy of the normal and of six rivals with the same standard deviation, largest first, in nats.

    Among all densities on the real line with a given mean and variance the normal has the largest
    entropy. Without "given variance" the sentence is false: any wider law beats it.

    Parameters
    ----------
    sd
        The standard deviation that all seven share. Another one adds log(sd) to every entry.

    Source: Cover and Thomas (2006), theorem 8.6.5.
    """
    if not (math.isfinite(sd) and sd > 0):
        raise ValueError(f"sd must be positive and finite, got {sd}")
    # Each law's own scale that gives variance one, and its entropy at that scale.
    t_scale, df = math.sqrt(3 / 5), torch.tensor(5.0, dtype=torch.float64)
    halves = torch.digamma((df + 1) / 2) - torch.digamma(df / 2)
    log_beta = torch.lgamma(df / 2) + 0.5 * math.log(math.pi) - torch.lgamma((df + 1) / 2)
    unit = {
        "normal": 0.5 * (1 + LOG_2PI),
        "logistic": math.log(math.sqrt(3) / math.pi) + 2,
        "triangular": math.log(math.sqrt(6)) + 0.5,
        "Student-t, 5 df": math.log(t_scale) + float((df + 1) / 2 * halves + df.log() / 2 + log_beta),
        "Laplace": math.log(math.sqrt(2)) + 1,
        "uniform": math.log(math.sqrt(12)),
        "exponential": 1.0,
    }
    ordered = sorted(unit.items(), key=lambda item: -item[1])
    return {name: value + math.log(sd) for name, value in ordered}


def _square_distance(difference: Tensor, factor: Tensor) -> Tensor:
    """d^T C^-1 d along the last dimension, C = L L^T."""
    z: Tensor = torch.linalg.solve_triangular(factor, difference.unsqueeze(-1), upper=False)
    return z.squeeze(-1).square().sum(-1)


def _half_log_det(factor: Tensor) -> Tensor:
    return factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
