"""Checks that the functions of this room share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal, Normal


def finite(name: str, value: Tensor) -> None:
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name} must be finite, but holds NaN or infinite values; remove or replace them first")


def positive_number(name: str, value: Tensor, hint: str = "") -> None:
    if not bool((torch.isfinite(value) & (value > 0)).all()):
        worst = value[~(torch.isfinite(value) & (value > 0))].reshape(-1)[0]
        raise ValueError(f"{name} must be positive and finite, got {worst.item():g}{hint}")


def cholesky(name: str, cov: Tensor) -> Tensor:
    """Lower Cholesky factor of a covariance matrix, or an error that says what is wrong with the matrix."""
    finite(name, cov)
    if cov.dim() < 2 or cov.shape[-1] != cov.shape[-2]:
        raise ValueError(f"{name} must be a square matrix, got shape {tuple(cov.shape)}")
    if not torch.allclose(cov, cov.mT, rtol=1e-5, atol=1e-8):
        raise ValueError(f"{name} must be symmetric; symmetrise it with 0.5 * (cov + cov.mT)")
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(cov)
    if bool(info.any()):
        lowest = float(torch.linalg.eigvalsh(cov).min())
        raise ValueError(
            f"{name} must be positive definite, but its smallest eigenvalue is {lowest:.3g}; "
            "a direction without variance has no density: drop it, or add variance to the diagonal"
        )
    return factor


def same_kind(what: str, a: Distribution, b: Distribution) -> None:
    """Raise unless both are Normal, or both MultivariateNormal of one dimension."""
    normal(what, a)
    normal(what, b)
    if type(a) is not type(b):
        raise TypeError(f"{what} needs two of one kind, got {type(a).__name__} and {type(b).__name__}")
    if a.event_shape != b.event_shape:
        raise ValueError(
            f"{what} needs vectors of one length, got lengths {a.event_shape.numel()} and {b.event_shape.numel()}"
        )


def normal(what: str, distribution: object) -> None:
    if not isinstance(distribution, Normal | MultivariateNormal):
        raise TypeError(f"{what} is for Normal and MultivariateNormal, not {type(distribution).__name__}")
