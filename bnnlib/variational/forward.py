"""The other direction: the normal that minimises KL(p || q), which covers all that p covers.

argmin_q KL(p || q) = argmax_q E_p[log q],   for a normal: mean and covariance of p.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

__all__ = ["fit_forward_kl"]


def fit_forward_kl(
    target: Tensor | Distribution | Callable[[Tensor], Tensor],
    grid: Tensor | None = None,
    *,
    family: str = "full_rank",
) -> Distribution:
    """Find the normal q with the least KL(p || q): it has p's mean and p's (co)variances.

    Parameters
    ----------
    target
        p, in one of three forms: draws of p, (S,) or (S, D); a torch distribution with moments in
        closed form; or, with `grid`, the log density of p (up to a constant) as a function of the
        grid or as its values on the grid.
    grid
        Increasing places (G,), wide enough to hold p.
    family
        "full_rank", or "mean_field" for the best factorised normal, which has p's marginal variances.

    Returns
    -------
    Distribution
        `Normal` in one dimension, else `MultivariateNormal`, or `Independent(Normal)` for "mean_field".

    Raises
    ------
    ValueError
        A grid that does not increase or whose ends have density, fewer draws than dimensions, a
        target without moments.

    Source: Minka (2005).

    Examples
    --------
    >>> two = lambda z: torch.logaddexp(-0.5 * (z - 3) ** 2, -0.5 * (z + 3) ** 2)
    >>> fit_forward_kl(two, torch.linspace(-12, 12, 2001)).scale.item() ** 2
    10.0...
    """
    if family not in ("full_rank", "mean_field"):
        raise ValueError(f'family must be "full_rank" or "mean_field", got {family!r}')
    if grid is not None:
        return Normal(*_grid_moments(target, grid))
    if isinstance(target, Distribution):
        loc, cov = _moments(target, family)
    elif isinstance(target, Tensor):
        loc, cov = _draw_moments(target)
    else:
        raise ValueError(
            "target is a function, which needs a grid of places: fit_forward_kl(log_density, grid); without one give "
            "draws of p or a torch distribution"
        )
    if loc.dim() == 0:
        return Normal(loc, cov.sqrt())
    if family == "mean_field":
        return Independent(Normal(loc, cov.diagonal().sqrt()), 1)
    return MultivariateNormal(loc, cov)


def _grid_moments(target: Tensor | Distribution | Callable[[Tensor], Tensor], grid: Tensor) -> tuple[Tensor, Tensor]:
    if grid.dim() != 1 or len(grid) < 3 or not bool((grid.diff() > 0).all()):
        raise ValueError(f"grid must be an increasing list of places, (G,) with G >= 3, got {tuple(grid.shape)}")
    if isinstance(target, Distribution):
        log_p = target.log_prob(grid)
    else:
        log_p = target if isinstance(target, Tensor) else target(grid)
    if log_p.shape != grid.shape:
        raise ValueError(f"the log density has shape {tuple(log_p.shape)}, the grid {tuple(grid.shape)}")
    if bool(torch.isnan(log_p).any()):
        raise ValueError(f"the log density is NaN at {grid[torch.isnan(log_p)][0].item()}")
    p = (log_p - log_p.max()).exp()
    if float(torch.maximum(p[0], p[-1])) > 1e-4:
        raise ValueError(
            f"the density at an end of the grid ({grid[0].item():g} to {grid[-1].item():g}) is still "
            f"{float(torch.maximum(p[0], p[-1])):.2g} of its largest value; take a wider grid"
        )
    mass = torch.trapezoid(p, grid)
    mean = torch.trapezoid(p * grid, grid) / mass
    return mean, (torch.trapezoid(p * (grid - mean) ** 2, grid) / mass).sqrt()


def _moments(target: Distribution, family: str) -> tuple[Tensor, Tensor]:
    if target.batch_shape or len(target.event_shape) > 1:
        raise ValueError(
            f"target has batch shape {tuple(target.batch_shape)} and event shape {tuple(target.event_shape)}; "
            "expected one distribution over numbers or vectors"
        )
    try:
        if not target.event_shape:
            return target.mean, target.variance
        if hasattr(target, "covariance_matrix"):
            return target.mean, cast(Any, target).covariance_matrix
        if family == "mean_field" or isinstance(target, Independent):
            return target.mean, torch.diag(target.variance)
    except NotImplementedError:
        pass
    raise ValueError(f"{type(target).__name__} has no covariance in closed form; give draws: target.sample((100_000,))")


def _draw_moments(draws: Tensor) -> tuple[Tensor, Tensor]:
    if draws.dim() not in (1, 2) or len(draws) < 2 or not bool(torch.isfinite(draws).all()):
        raise ValueError(f"draws must be finite, (S,) or (S, D) with S >= 2, got shape {tuple(draws.shape)}")
    if draws.dim() == 1:
        return draws.mean(), draws.var(correction=0)
    if len(draws) <= draws.shape[1]:
        raise ValueError(f"{len(draws)} draws of {draws.shape[1]} numbers have no invertible covariance; give more")
    return draws.mean(0), torch.cov(draws.T, correction=0).reshape(draws.shape[1], -1)
