"""What keeps a normal normal: affine maps, conditioning, products of densities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from bnnlib.normal._checks import cholesky, finite, normal, same_kind
from bnnlib.normal.density import log_density

__all__ = ["affine", "conditional", "product"]

AnyNormal = TypeVar("AnyNormal", Normal, MultivariateNormal)


def affine(x: AnyNormal, weight: float | Tensor, bias: float | Tensor = 0.0) -> AnyNormal:
    """Distribution of weight x + bias: again normal.

        loc = W mu + b,   cov = W C W^T        (one number: loc = w mu + b, scale = |w| sigma)

    Parameters
    ----------
    x
        `Normal`, mapped entry by entry, or `MultivariateNormal` over d numbers.
    weight
        For `Normal`: a number or a tensor that broadcasts. For `MultivariateNormal`: a matrix (m, d).
    bias
        A number, or a tensor that broadcasts against the result.

    Raises
    ------
    ValueError
        A weight of the wrong shape, or one that squashes a direction to nothing: a zero, or a matrix
        whose rows are linearly dependent. The result would have no density.

    Examples
    --------
    >>> y = affine(Normal(2.0, 3.0), -2.0, 1.0)
    >>> y.loc.item(), y.scale.item()
    (-3.0, 6.0)
    """
    normal("affine", x)
    w, b = torch.as_tensor(weight, dtype=x.loc.dtype), torch.as_tensor(bias, dtype=x.loc.dtype)
    finite("weight", w)
    finite("bias", b)
    if isinstance(x, Normal):
        if bool((w == 0).any()):
            raise ValueError("weight holds a zero: 0 x + b is a constant, which has no density")
        return Normal(w * x.loc + b, w.abs() * x.scale)
    d = x.event_shape.numel()
    if w.dim() != 2 or w.shape[-1] != d:
        raise ValueError(f"weight must be a matrix (m, {d}) for vectors of length {d}, got shape {tuple(w.shape)}")
    if w.shape[0] > d or int(torch.linalg.matrix_rank(w)) < w.shape[0]:
        raise ValueError(
            f"weight has {w.shape[0]} rows but rank {int(torch.linalg.matrix_rank(w))}: W x + b fills no volume "
            "and has no density; keep linearly independent rows only"
        )
    return MultivariateNormal(x.loc @ w.mT + b, scale_tril=cholesky("W C W^T", w @ x.covariance_matrix @ w.mT))


def conditional(joint: MultivariateNormal, index: int | Sequence[int], value: float | Tensor) -> MultivariateNormal:
    """Distribution of the other entries, given that the entries at `index` have the values `value`.

        loc = mu_a + C_ab C_bb^-1 (value - mu_b),   cov = C_aa - C_ab C_bb^-1 C_ba

    The covariance does not depend on the values: how much is learnt is known before looking.

    Parameters
    ----------
    joint
        Over d entries, without batch shape.
    index
        Position or positions b of what was observed, fewer than d, each once.
    value
        Observed values, shape (..., len(b)); a number where one entry was observed.

    Returns
    -------
    MultivariateNormal
        Over the remaining entries a, in their old order, with batch shape (...).

    Source: Bishop (2006), equations 2.81 and 2.82.
    """
    if not isinstance(joint, MultivariateNormal) or joint.batch_shape:
        raise TypeError(f"conditional needs one MultivariateNormal without batch shape, got {joint}")
    d = joint.event_shape.numel()
    seen = [index] if isinstance(index, int) else [int(i) for i in index]
    if not seen or len(set(seen)) != len(seen) or not all(0 <= i < d for i in seen) or len(seen) == d:
        raise ValueError(f"index must name between 1 and {d - 1} different positions in 0 ... {d - 1}, got {seen}")
    observed = torch.as_tensor(value, dtype=joint.loc.dtype)
    observed = observed.unsqueeze(-1) if observed.dim() == 0 else observed
    finite("value", observed)
    if observed.shape[-1] != len(seen):
        raise ValueError(f"value must end in dimension {len(seen)}, one a position; got shape {tuple(observed.shape)}")
    rest = [i for i in range(d) if i not in seen]
    cov = joint.covariance_matrix
    cross, within = cov[rest][:, seen], cov[seen][:, seen]
    gain = torch.cholesky_solve(cross.mT, cholesky("covariance of the observed entries", within)).mT
    loc = joint.loc[rest] + (observed - joint.loc[seen]) @ gain.mT
    left = cov[rest][:, rest] - gain @ cross.mT
    return MultivariateNormal(loc, scale_tril=cholesky("conditional covariance", 0.5 * (left + left.mT)))


def product(a: AnyNormal, b: AnyNormal) -> tuple[AnyNormal, Tensor]:
    """Product of two normal densities of one x: a normal density times a constant. Precisions add.

        N(x; m_a, C_a) N(x; m_b, C_b) = Z N(x; m, C)
        C^-1 = C_a^-1 + C_b^-1,   m = C (C_a^-1 m_a + C_b^-1 m_b),   Z = N(m_a; m_b, C_a + C_b)

    With a prior and a likelihood of x as the two, the normal is the posterior and Z the evidence.

    Returns
    -------
    tuple
        The normal, and log Z in nats (of the batch shape).

    Source: Petersen and Pedersen (2012), section 8.1.8.

    Examples
    --------
    >>> posterior, log_z = product(Normal(0.0, 1.0), Normal(2.0, 1.0))
    >>> posterior.loc.item(), round(posterior.variance.item(), 3)
    (1.0, 0.5)
    """
    same_kind("product", a, b)
    if isinstance(a, Normal):
        var_a, var_b = a.scale**2, b.scale**2
        total = (var_a + var_b).sqrt()
        loc = (a.loc * var_b + b.loc * var_a) / (var_a + var_b)
        return Normal(loc, a.scale * b.scale / total), log_density(a.loc, loc=b.loc, scale=total)
    if a.batch_shape or b.batch_shape:
        raise ValueError("product takes MultivariateNormal without batch shape; multiply them one by one")
    # C = C_a (C_a + C_b)^-1 C_b needs one factor, and no inverse of either covariance.
    cov_a, cov_b = a.covariance_matrix, b.covariance_matrix
    factor = cholesky("sum of the covariances", cov_a + cov_b)
    gain = torch.cholesky_solve(cov_a, factor).mT  # C_a (C_a + C_b)^-1
    cov = gain @ cov_b
    loc = a.loc + gain @ (b.loc - a.loc)
    return (
        MultivariateNormal(loc, scale_tril=cholesky("covariance of the product", 0.5 * (cov + cov.mT))),
        log_density(a.loc, loc=b.loc, cov=cov_a + cov_b),
    )
