"""What every update asks of its data, in one place."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution


def check_prior(prior: Distribution, family: type[Distribution]) -> None:
    """Raise unless the prior is of the conjugate family."""
    if not isinstance(prior, family):
        raise TypeError(f"the conjugate prior here is a {family.__name__}, got {type(prior).__name__}")


def check_data(data: Tensor, batch_shape: torch.Size) -> None:
    """Raise unless data is a finite tensor of shape (n, *batch) with n >= 1, batch fitting the prior's batch shape."""
    if not isinstance(data, Tensor):
        raise TypeError(f"data must be a torch tensor, got {type(data).__name__}; use torch.as_tensor(data)")
    if data.dim() == 0:
        raise ValueError("data is a single number; give one entry an observation, e.g. data.reshape(1)")
    if data.numel() == 0:
        raise ValueError(f"data is empty (shape {tuple(data.shape)}); without data the posterior is the prior")
    if not bool(torch.isfinite(data).all()):
        bad = int((~torch.isfinite(data)).sum())
        raise ValueError(f"data has {bad} NaN or infinite values of {data.numel()}; remove or impute them first")
    try:
        torch.broadcast_shapes(data.shape[1:], batch_shape)
    except RuntimeError:
        raise ValueError(
            f"data of shape {tuple(data.shape)} is n observations of shape {tuple(data.shape[1:])}, which does not fit "
            f"the prior's batch shape {tuple(batch_shape)}; put the observations along the first dimension"
        ) from None


def check_whole(data: Tensor, low: int, high: int | None, what: str) -> None:
    """Raise unless every entry is a whole number in [low, high]."""
    data = data.to(torch.float64)  # booleans cannot be rounded
    outside = (data != data.round()) | (data < low)
    if high is not None:
        outside = outside | (data > high)
    if bool(outside.any()):
        first = data[outside].reshape(-1)[0].item()
        limits = f"whole numbers from {low}" + (" up" if high is None else f" to {high}")
        raise ValueError(f"{what} must be {limits}, got {first}")
