"""A mixture of normals by coordinate ascent: which component each point came from, and the components themselves.

    pi ~ Dirichlet(concentration),   Lambda_k ~ Wishart(df, scatter^-1),   mu_k | Lambda_k ~ N(loc, (count Lambda_k)^-1)
    z_n ~ Categorical(pi),           x_n | z_n = k ~ N(mu_k, Lambda_k^-1)

The family is q(z) q(pi, mu, Lambda). Nothing else is assumed: that q(z) is a table of probabilities, and that the
second factor falls into a Dirichlet and a normal-Wishart for each component, comes out of the updates.
Source: Bishop (2006), section 10.2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Categorical, Dirichlet, MixtureSameFamily, MultivariateNormal, kl_divergence

from bnnlib._settings import check_positive
from bnnlib.normal._checks import cholesky
from bnnlib.variational.cavi_normal import check_loop

__all__ = ["CaviMixture", "MixtureBelief", "cavi_mixture"]


@dataclass(frozen=True)
class MixtureBelief:
    """A Dirichlet over K weights and a normal-Wishart for each component.

    `concentration`, `count`, `df`: shape (K,). `loc`: (K, D). `scatter`: (K, D, D), the inverse of the
    Wishart's scale matrix, in squared units of the data; scatter / df is the covariance that it stands for.
    """

    concentration: Tensor
    loc: Tensor
    count: Tensor
    df: Tensor
    scatter: Tensor

    @property
    def weights(self) -> Dirichlet:
        """The factor over the mixture's weights."""
        return Dirichlet(self.concentration)

    @property
    def cov(self) -> Tensor:
        """The inverse of E[Lambda_k], shape (K, D, D)."""
        return self.scatter / self.df.reshape(-1, 1, 1)

    @property
    def plug_in(self) -> MixtureSameFamily:
        """The mixture with its weights, means and precisions at their expected values."""
        return MixtureSameFamily(Categorical(self.weights.mean), MultivariateNormal(self.loc, self.cov))


@dataclass(frozen=True)
class CaviMixture:
    """What `cavi_mixture` found.

    `posterior` is q(pi, mu, Lambda), `responsibilities` q(z) of shape (N, K), `elbo` the bound in nats
    after each sweep, `prior` what it started from.
    """

    posterior: MixtureBelief
    responsibilities: Tensor
    elbo: Tensor
    prior: MixtureBelief
    converged: bool


def cavi_mixture(
    x: Tensor,
    components: int,
    *,
    concentration: float = 1.0,
    loc: Tensor | None = None,
    count: float = 1.0,
    df: float | None = None,
    scatter: Tensor | None = None,
    sweeps: int = 1000,
    tol: float = 1e-9,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> CaviMixture:
    """Fit a mixture of normals with unknown weights, means and covariances.

        r_nk  proportional to  exp(E[log pi_k] + E[log |Lambda_k|] / 2 - E[(x_n - mu_k)^T Lambda_k (x_n - mu_k)] / 2)

    then each component's normal-Wishart is updated as if it had seen r_nk of point n.

    Parameters
    ----------
    x
        Data, shape (N, D).
    components
        Number K of components. With a small `concentration` those that are not needed are emptied.
    concentration
        Prior of the weights: Dirichlet with this number K times.
    loc
        Prior centre of the means, (D,). Default: the mean of x.
    count
        How many observations that centre is worth.
    df
        Degrees of freedom of the Wishart, more than D - 1. Default: D.
    scatter
        Inverse of its scale matrix, (D, D). Default: the covariance of x. Both defaults look at the
        data once more: give numbers of your own where the evidence matters.
    sweeps
        At most so many sweeps.
    tol
        Stop when a sweep raises the ELBO by less, in nats.
    start
        Responsibilities to start from, (N, K), rows that sum to one. Default: K data points drawn far
        from each other, each point with the nearest. The ELBO has many maxima: try several starts.
    generator
        Source of that draw; torch's default generator if None.

    Returns
    -------
    CaviMixture
        Its ELBO is for one of the K! orders of the components, all of which fit equally well.

    Raises
    ------
    ValueError
        Data that are not finite or not (N, D), a prior parameter out of its range, a start that is no table
        of probabilities.
    """
    check_loop(sweeps, tol)
    _check(x, components, concentration, count)
    size = x.shape[1]
    loc = x.mean(0) if loc is None else loc.to(x)
    scatter = torch.atleast_2d(torch.cov(x.T)) if scatter is None else scatter.to(x)
    df = float(size) if df is None else float(df)
    if loc.shape != (size,) or scatter.shape != (size, size):
        raise ValueError(
            f"loc must have shape {(size,)} and scatter {(size, size)}, got {tuple(loc.shape)} and "
            f"{tuple(scatter.shape)}"
        )
    if not size - 1 < df < math.inf:
        raise ValueError(f"df must be more than D - 1 = {size - 1}, got {df}; with less the Wishart has no density")
    cholesky("scatter", scatter)
    ones = x.new_ones(components)
    prior = MixtureBelief(
        concentration * ones, loc.expand(components, -1), count * ones, df * ones, scatter.expand(components, -1, -1)
    )
    r = _start(x, components, generator) if start is None else _check_start(start.to(x), len(x), components)

    elbo: list[Tensor] = []
    converged = False
    for _ in range(sweeps):
        posterior = _update(prior, x, r)
        joint = _log_joint_of_labels(posterior, x)
        r = joint.softmax(-1)
        elbo.append(_bound(prior, posterior, r, joint))
        if len(elbo) > 1 and bool(elbo[-1] - elbo[-2] < tol):
            converged = True
            break
    return CaviMixture(posterior, r, torch.stack(elbo), prior, converged)


# the maths -------------------------------------------------------------------------------------


def _update(prior: MixtureBelief, x: Tensor, r: Tensor) -> MixtureBelief:
    """Normal-Wishart and Dirichlet after r_nk of each point; a component without points keeps its prior."""
    n = r.sum(0)
    mean = (r.T @ x) / n.clamp_min(torch.finfo(x.dtype).tiny).unsqueeze(-1)
    off = x.unsqueeze(1) - mean  # (N, K, D)
    spread = torch.einsum("nk,nkd,nke->kde", r, off, off)
    count = prior.count + n
    shift = mean - prior.loc
    pull = (prior.count * n / count).reshape(-1, 1, 1) * shift.unsqueeze(-1) * shift.unsqueeze(-2)
    return MixtureBelief(
        prior.concentration + n,
        prior.loc + (n / count).unsqueeze(-1) * shift,
        count,
        prior.df + n,
        prior.scatter + spread + pull,
    )


def _log_joint_of_labels(q: MixtureBelief, x: Tensor) -> Tensor:
    """E[log p(x_n, z_n = k)] over the parameters, shape (N, K)."""
    size = x.shape[1]
    factor = torch.linalg.cholesky(q.scatter)
    off = torch.linalg.solve_triangular(factor, (x.unsqueeze(1) - q.loc).movedim(0, -1), upper=False)  # (K, D, N)
    squared = size / q.count.unsqueeze(-1) + q.df.unsqueeze(-1) * off.square().sum(1)
    log_pi = torch.digamma(q.concentration) - torch.digamma(q.concentration.sum())
    given = 0.5 * (_mean_log_det(q) - size * math.log(2 * math.pi)).unsqueeze(-1) - 0.5 * squared
    table: Tensor = (log_pi.unsqueeze(-1) + given).T
    return table


def _bound(prior: MixtureBelief, q: MixtureBelief, r: Tensor, joint: Tensor) -> Tensor:
    """ELBO = E[log p(x, z | parameters)] + entropy of q(z) - KL(q(parameters) || p(parameters))."""
    entropy = -torch.xlogy(r, r).sum()
    divergence = kl_divergence(q.weights, prior.weights) + _kl_normal_wishart(q, prior).sum()
    value: Tensor = (r * joint).sum() + entropy - divergence
    return value


def _kl_normal_wishart(q: MixtureBelief, p: MixtureBelief) -> Tensor:
    """KL of normal-Wisharts, shape (K,): that of the means given Lambda, averaged, and that of Lambda."""
    size = q.loc.shape[1]
    factor, other = torch.linalg.cholesky(q.scatter), torch.linalg.cholesky(p.scatter)
    shift = torch.linalg.solve_triangular(factor, (q.loc - p.loc).unsqueeze(-1), upper=False).square().sum((-1, -2))
    ratio = p.count / q.count
    means = 0.5 * (size * (ratio - 1 - ratio.log()) + p.count * q.df * shift)
    trace = torch.linalg.solve_triangular(factor, other, upper=False).square().sum((-1, -2))
    moments = 0.5 * (q.df - p.df) * _mean_log_det(q) + 0.5 * q.df * (trace - size)
    value: Tensor = means + moments + _log_norm(p, other) - _log_norm(q, factor)
    return value


def _mean_log_det(q: MixtureBelief) -> Tensor:
    """E[log |Lambda_k|], shape (K,)."""
    size = q.loc.shape[1]
    steps = torch.arange(size).to(q.df)
    log_det = -2 * torch.linalg.cholesky(q.scatter).diagonal(dim1=-2, dim2=-1).log().sum(-1)
    value: Tensor = torch.digamma((q.df.unsqueeze(-1) - steps) / 2).sum(-1) + size * math.log(2) + log_det
    return value


def _log_norm(q: MixtureBelief, factor: Tensor) -> Tensor:
    """Logarithm of what the Wishart's density is divided by."""
    size = q.loc.shape[1]
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    value: Tensor = 0.5 * q.df * (size * math.log(2) - log_det) + torch.mvlgamma(q.df / 2, size)
    return value


def _start(x: Tensor, components: int, generator: torch.Generator | None) -> Tensor:
    """Seeds drawn with probability proportional to the squared distance from those drawn; nearest seed wins."""
    unit = x / x.std(0).clamp_min(torch.finfo(x.dtype).tiny)
    first = torch.randint(len(x), (1,), generator=generator)
    squared = [(unit - unit[first]).square().sum(-1)]
    for _ in range(components - 1):
        nearest = torch.stack(squared).amin(0)
        chance = nearest if bool(nearest.sum() > 0) else torch.ones_like(nearest)
        seed = torch.multinomial(chance, 1, generator=generator)
        squared.append((unit - unit[seed]).square().sum(-1))
    label = torch.stack(squared).argmin(0)
    return torch.nn.functional.one_hot(label, components).to(x)


def _check(x: Tensor, components: int, concentration: float, count: float) -> None:
    if x.dim() != 2 or not x.is_floating_point() or len(x) < 2:
        raise ValueError(f"x must be floating point of shape (N, D), N at least 2; got {x.dtype} {tuple(x.shape)}")
    if not bool(torch.isfinite(x).all()):
        raise ValueError("x holds NaN or infinite values; remove or impute them first")
    if isinstance(components, bool) or not isinstance(components, int) or not 1 <= components <= len(x):
        raise ValueError(f"components must be a whole number from 1 to N = {len(x)}, got {components}")
    check_positive(concentration=concentration, count=count)


def _check_start(start: Tensor, n: int, components: int) -> Tensor:
    if start.shape != (n, components):
        raise ValueError(f"start must have shape {(n, components)}, got {tuple(start.shape)}")
    if bool((start < 0).any()) or not torch.allclose(start.sum(-1), start.new_ones(n), atol=1e-5):
        raise ValueError("start must hold probabilities: no negative entry, each row sums to one")
    return start
