"""Predictions with the network replaced by its linearisation in w: f(x; w) ~ f(x; m) + J (w - m)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from bnnlib._random import draw, standard_normal
from bnnlib.nets.gauss_newton import LowRankPrecision, jacobian
from bnnlib.nets.kronecker import KroneckerNormal
from bnnlib.nets.last_layer import PartialNormal, last_layer_of
from bnnlib.nets.likelihoods import Gaussian
from bnnlib.nets.model import Model
from bnnlib.nets.moments import noise_nodes
from bnnlib.predictive import Predictive

__all__ = ["linearized_functions", "linearized_predictive"]

_CHUNK = 2**25  # entries of a Jacobian that are held at once: 256 MiB in float64


def _covariance_of(distribution: Distribution, rows: Tensor) -> Tensor:
    """B Sigma B^T for rows B (N, K, P') over the first P' entries of w -> (N, K, K)."""
    size = rows.shape[-1]
    if isinstance(distribution, PartialNormal):  # rows over the entries that vary
        return distribution.covariance_of_varying(rows)
    if isinstance(distribution, LowRankPrecision | KroneckerNormal):
        extra = len(distribution.loc) - size
        return distribution.covariance_of(torch.nn.functional.pad(rows, (0, extra)))
    if isinstance(distribution, MultivariateNormal):
        half = rows.double() @ distribution.scale_tril[:size].double()
        return half @ half.mT
    if isinstance(distribution, Independent) and isinstance(distribution.base_dist, Normal):
        half = rows.double() * distribution.base_dist.scale[:size].double()
        return half @ half.mT
    raise TypeError(f"a linearised prediction needs a multivariate normal over w, not {type(distribution).__name__}")


def _slopes(model: Model, distribution: Distribution, x: Tensor) -> tuple[slice, Iterator[Tensor]]:
    """Which entries of w the outputs depend on while w varies, and the Jacobian there, chunk by chunk (n, K, P')."""
    loc = distribution.mean.double()
    with torch.no_grad():
        outputs = model(loc, x[:1]).shape[-1]
    if isinstance(distribution, PartialNormal):
        last = last_layer_of(model, x[:2])
        entries = last.entries
        step = max(1, _CHUNK // ((entries.stop - entries.start) * outputs))
        return entries, (last.jacobian(last(loc, part)[0], outputs) for part in x.split(step))
    step = max(1, _CHUNK // (model.size * outputs))
    return slice(0, model.net_size), (jacobian(model, loc, part) for part in x.split(step))


def linearized_functions(model: Model, distribution: Distribution, x: Tensor, w: Tensor) -> Tensor:
    """Functions that the band is made of: f(x; m) + J (w - m) at draws w (S, P) around the mean m, (S, N, outputs)."""
    double, loc = _double(model), distribution.mean
    x64 = x.double() if x.is_floating_point() else x
    with torch.no_grad():
        f = double(loc.double(), x64)
    entries, slopes = _slopes(double, distribution, x64)
    delta = (w[:, entries].double() - loc[entries].double()).T
    moved = [rows @ delta for rows in slopes]
    return (f + torch.cat(moved).movedim(-1, 0)).to(model.dtype)


def linearized_predictive(
    model: Model,
    distribution: Distribution,
    x: Tensor,
    draws: int,
    generator: torch.Generator | None,
    y_loc: Tensor | None,
    y_scale: Tensor | None,
) -> Predictive:
    """Predictive with f(x; w) replaced by its linearisation at the mean of w.

    f ~ N(f(x; m), J Sigma J^T) at each input. With normal noise the mixture is in closed form (16
    nodes of equal weight if the noise is itself unknown), each output with its own variance: what
    two outputs of one point share is left out. Other likelihoods average `draws` draws of f.
    """
    loc = distribution.mean
    double = _double(model)
    x64 = x.double() if x.is_floating_point() else x
    with torch.no_grad():
        f = double(loc.double(), x64)
    covariance = torch.cat([_covariance_of(distribution, rows) for rows in _slopes(double, distribution, x64)[1]])
    if isinstance(model.likelihood, Gaussian):
        noise = noise_nodes(model, distribution).double()
        base = model.likelihood.predictive(f.expand(len(noise), *f.shape), noise, y_loc, y_scale).components
        assert isinstance(base, Normal)
        variance = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(0).unsqueeze(0)
        if y_scale is not None:
            variance = variance * y_scale.double() ** 2
        total: Tensor = (base.scale.square() + variance).sqrt()
        own = model.dtype
        return Predictive(
            Normal(base.loc.to(own), total.to(own), validate_args=False),
            function_var=variance.expand_as(total).to(own),
            noise_var=base.scale.square().to(own),
        )
    eye = torch.eye(f.shape[-1], dtype=f.dtype, device=f.device)
    jitter = 1e-12 * covariance.diagonal(dim1=-2, dim2=-1).amax(-1).clamp_min(1e-12)
    half = torch.linalg.cholesky(covariance + jitter[:, None, None] * eye)
    z = standard_normal((draws, *f.shape), f, generator)
    drawn = f + (half @ z.unsqueeze(-1)).squeeze(-1)
    noise = (
        draw(distribution, draws, generator)[:, model.net_size :]
        if model.size > model.net_size
        else z.new_zeros(draws, 0)
    )
    return model.likelihood.predictive(drawn.to(model.dtype), noise.to(model.dtype), y_loc, y_scale)


def _double(model: Model) -> Model:
    return model if model.dtype == torch.float64 else model.to(dtype=torch.float64)
