"""Coordinate ascent on the ELBO, where each step is in closed form: a normal target, and a mean with its precision.

    q(z) = prod_b q_b(z_b),     log q_b(z_b) = E_{all other factors}[log p(z, x)] + const

One factor after the other is set to the best one, given the rest. So the ELBO never falls.
Source: Bishop (2006), section 10.1; Blei, Kucukelbir and McAuliffe (2017).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Gamma, MultivariateNormal, Normal

from bnnlib._settings import check_whole
from bnnlib.bayes._checks import check_data, check_prior
from bnnlib.bayes.normals import NormalGamma
from bnnlib.normal._checks import cholesky

__all__ = ["CaviNormal", "CaviNormalGamma", "cavi_normal", "cavi_normal_gamma"]


@dataclass(frozen=True)
class CaviNormal:
    """What `cavi_normal` found.

    `distribution` is q, a normal whose covariance is zero between blocks. `elbo` has one entry an
    update, in nats, and so has `path`, shape (updates + 1, D): the mean of q, from the start on.
    """

    distribution: MultivariateNormal
    blocks: tuple[tuple[int, ...], ...]
    elbo: Tensor
    path: Tensor
    converged: bool

    @property
    def factors(self) -> tuple[MultivariateNormal, ...]:
        """The q_b, one a block."""
        loc, cov = self.distribution.loc, self.distribution.covariance_matrix
        return tuple(MultivariateNormal(loc[list(b)], cov[list(b)][:, list(b)]) for b in self.blocks)


def cavi_normal(
    mean: Tensor,
    cov: Tensor,
    *,
    blocks: Sequence[Sequence[int]] | None = None,
    sweeps: int = 1000,
    start: Tensor | None = None,
    tol: float = 1e-12,
) -> CaviNormal:
    """Fit a factorised normal to N(mean, cov) by coordinate ascent.

        q_b(z_b) = N(m_b, A_bb^-1),     A = cov^-1
        m_b      = mean_b - A_bb^-1 sum_{c != b} A_bc (m_c - mean_c)

    The covariance of a block is that of z_b *given* the other blocks. It does not depend on the means,
    so it is right from the first step on; only the means move, towards `mean`.

    Parameters
    ----------
    mean
        Mean of the target, shape (D,).
    cov
        Its covariance, shape (D, D).
    blocks
        Which coordinates share a factor, e.g. [[0, 1], [2]]. Default: each has its own.
    sweeps
        At most so many updates of each factor.
    start
        Where the mean of q starts, shape (D,). Default: zeros.
    tol
        Stop when a sweep moves no mean by more than this part of its standard deviation.

    Returns
    -------
    CaviNormal
        The target has evidence 1, so the ELBO is -KL(q || p) and at most 0.

    Raises
    ------
    ValueError
        Shapes that do not fit, a covariance that is none, blocks that leave out or repeat a coordinate.
    """
    factor = _check_target(mean, cov)
    size = len(mean)
    groups = _check_blocks(blocks, size)
    check_loop(sweeps, tol)
    m = torch.zeros_like(mean) if start is None else start.to(mean).clone()
    if m.shape != mean.shape or not bool(torch.isfinite(m).all()):
        raise ValueError(f"start must be finite and of shape {tuple(mean.shape)}, got shape {tuple(m.shape)}")

    precision = torch.cholesky_inverse(factor)
    q_cov = torch.zeros_like(cov)
    inverses = []
    for index in groups:
        inverse = torch.linalg.inv(precision[index][:, index])
        inverse = 0.5 * (inverse + inverse.mT)
        q_cov[index.unsqueeze(1), index] = inverse
        inverses.append(inverse)
    # KL(q || p) without its part in the means; tr(A cov_q) = D, as each block has its own precision.
    fixed = factor.diagonal().log().sum() - torch.linalg.cholesky(q_cov).diagonal().log().sum()

    limit = max(tol, 10 * torch.finfo(mean.dtype).eps)
    sd = q_cov.diagonal().sqrt()
    path, elbo, converged = [m.clone()], [], False
    for _ in range(sweeps):
        before = m.clone()
        for index, inverse in zip(groups, inverses, strict=True):
            shift = m - mean
            shift[index] = 0
            m[index] = mean[index] - inverse @ (precision[index] @ shift)
            shift = m - mean
            elbo.append(-fixed - 0.5 * shift @ precision @ shift)
            path.append(m.clone())
        if bool(((m - before).abs() <= limit * sd).all()):
            converged = True
            break
    return CaviNormal(
        MultivariateNormal(m, q_cov),
        tuple(tuple(index.tolist()) for index in groups),
        torch.stack(elbo),
        torch.stack(path),
        converged,
    )


@dataclass(frozen=True)
class CaviNormalGamma:
    """What `cavi_normal_gamma` found: q(mu) q(tau), and the ELBO after each update, in nats."""

    location: Normal
    precision: Gamma
    elbo: Tensor
    converged: bool


def cavi_normal_gamma(
    y: Tensor, prior: NormalGamma, *, sweeps: int = 1000, start: float | None = None, tol: float = 1e-12
) -> CaviNormalGamma:
    """Fit q(mu) q(tau) to the posterior of a mean and a precision, which are dependent in truth.

        tau ~ Gamma(a, b),   mu | tau ~ N(m, 1 / (k tau)),   y_i | mu, tau ~ N(mu, 1 / tau)

        q(mu)  = N(m_n, 1 / ((k + n) E[tau])),   m_n = (k m + sum y_i) / (k + n)
        q(tau) = Gamma(a + (n + 1) / 2,  b + E[sum (y_i - mu)^2 + k (mu - m)^2] / 2)

    Parameters
    ----------
    y
        Observations, shape (n,).
    prior
        `NormalGamma(loc=m, count=k, concentration=a, rate=b)` without batch.
    sweeps
        At most so many updates of each factor.
    start
        E[tau] at the start. Default: that of the prior.
    tol
        Stop when a sweep changes E[tau] by no more than this part.

    Returns
    -------
    CaviNormalGamma

    Raises
    ------
    TypeError, ValueError
        Another prior or one with a batch, bad data, a start that is not positive.

    Source: Bishop (2006), section 10.1.3.

    Examples
    --------
    >>> import torch
    >>> from bnnlib.bayes import NormalGamma
    >>> from bnnlib.variational import cavi_normal_gamma
    >>> cavi_normal_gamma(torch.tensor([1.0, 3.0]), NormalGamma(0.0, 1.0, 1.0, 1.0)).location.mean
    tensor(1.3333)
    """
    check_prior(prior, NormalGamma)
    if prior.batch_shape:
        raise ValueError(f"the prior has batch shape {tuple(prior.batch_shape)}; fit one problem at a time")
    check_data(y, prior.batch_shape)
    if y.dim() != 1:
        raise ValueError(f"y must have shape (n,), got {tuple(y.shape)}")
    check_loop(sweeps, tol)
    if start is not None and not 0 < start < math.inf:
        raise ValueError(f"start is a precision, positive and finite; got {start}")

    y, n = y.to(prior.loc), len(y)
    m, k, a, b = prior.loc, prior.count, prior.concentration, prior.rate
    loc = (k * m + y.sum()) / (k + n)
    squares = (y - loc).square().sum() + k * (loc - m) ** 2  # at mu = loc; (k + n) Var[mu] comes on top
    concentration = a + (n + 1) / 2
    tau = a / b if start is None else torch.as_tensor(start).to(prior.loc)

    def bound(mu: Normal, precision: Gamma) -> Tensor:
        e_tau = precision.mean
        e_log = torch.digamma(precision.concentration) - precision.rate.log()
        spread = squares + (k + n) * mu.variance
        joint = 0.5 * (n + 1) * (e_log - math.log(2 * math.pi)) + 0.5 * k.log() - 0.5 * e_tau * spread
        joint = joint + a * b.log() - torch.lgamma(a) + (a - 1) * e_log - b * e_tau
        value: Tensor = joint + mu.entropy() + precision.entropy()
        return value

    limit = max(tol, 10 * torch.finfo(y.dtype).eps)
    q_tau, elbo, converged = Gamma(concentration, concentration / tau), [], False
    for _ in range(sweeps):
        q_mu = Normal(loc, ((k + n) * tau) ** -0.5)
        elbo.append(bound(q_mu, q_tau))
        q_tau = Gamma(concentration, b + 0.5 * (squares + (k + n) * q_mu.variance))
        elbo.append(bound(q_mu, q_tau))
        before, tau = tau, q_tau.mean
        if bool((tau - before).abs() <= limit * tau):
            converged = True
            break
    return CaviNormalGamma(q_mu, q_tau, torch.stack(elbo), converged)


def _check_target(mean: Tensor, cov: Tensor) -> Tensor:
    if mean.dim() != 1 or not mean.is_floating_point() or len(mean) == 0:
        raise ValueError(f"mean must be floating point of shape (D,), got {mean.dtype} {tuple(mean.shape)}")
    if cov.shape != (len(mean), len(mean)) or cov.dtype != mean.dtype:
        raise ValueError(
            f"cov must be {mean.dtype} of shape {(len(mean),) * 2}, got {cov.dtype} of shape {tuple(cov.shape)}"
        )
    if not bool(torch.isfinite(mean).all()):
        raise ValueError("mean must be finite, but holds NaN or infinite values")
    return cholesky("cov", cov)


def _check_blocks(blocks: Sequence[Sequence[int]] | None, size: int) -> list[Tensor]:
    groups = [[i] for i in range(size)] if blocks is None else [list(b) for b in blocks]
    if sorted(i for b in groups for i in b) != list(range(size)) or not all(groups):
        raise ValueError(f"blocks must hold each of 0 to {size - 1} once and none may be empty, got {groups}")
    return [torch.tensor(b) for b in groups]


def check_loop(sweeps: int, tol: float) -> None:
    check_whole(sweeps=sweeps)
    if not 0 <= tol < math.inf:
        raise ValueError(f"tol must be finite and not negative, got {tol}")
