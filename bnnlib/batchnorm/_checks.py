"""Checks and shapes that the functions of this room share."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def moments(x: Tensor) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance of each feature, (n,), and how many values each was taken over."""
    if x.dim() < 2:
        raise ValueError(f"a batch has shape (m, n) or (m, n, ...), got {tuple(x.shape)}; add a batch dimension first")
    if not x.is_floating_point():
        raise TypeError(f"a batch must be of a floating-point type, got {x.dtype}; call .float() first")
    count = x.numel() // x.shape[1] if x.shape[1] else 0
    if count < 2:
        raise ValueError(
            f"a batch of shape {tuple(x.shape)} has {count} values a feature, and a variance needs two or more; "
            "use a larger batch (drop_last=True in a DataLoader), or evaluation mode"
        )
    var, mean = torch.var_mean(x, dim=[d for d in range(x.dim()) if d != 1], correction=0)
    # One NaN anywhere in a feature shows in its mean, which is cheaper to look at than the batch.
    if not bool(torch.isfinite(mean + var).all()):
        raise ValueError("the batch holds NaN or infinite values, which would spoil every row; remove them first")
    return mean, var, count


def along(v: Tensor, x: Tensor) -> Tensor:
    """View a vector over features, (n,), so that it broadcasts against x, (m, n, ...)."""
    return v.reshape(1, -1, *[1] * (x.dim() - 2))


def features(name: str, v: Tensor, x: Tensor) -> None:
    if v.shape != x.shape[1:2]:
        raise ValueError(
            f"{name} has shape {tuple(v.shape)}, but the batch of shape {tuple(x.shape)} has {x.shape[1]} features"
        )


def positive_eps(eps: float) -> None:
    if not (math.isfinite(eps) and eps > 0):
        raise ValueError(f"eps must be positive and finite, got {eps:g}; it keeps constant features from 0 / 0")


def momentum_in_range(momentum: float | None) -> None:
    if momentum is not None and not 0 <= momentum <= 1:
        raise ValueError(
            f"momentum is the weight of the new batch and lies between 0 and 1, got {momentum:g}; "
            "to weigh all batches the same, give None"
        )
