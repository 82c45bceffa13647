"""What every function of this room asks of its settings and of the log joint, in one place."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Distribution

LogJoint = Callable[[Tensor], Tensor]

ESTIMATORS = ("reparameterised", "score", "analytic_entropy")


def check_estimator(estimator: str) -> None:
    """Raise unless the name is one of `ESTIMATORS`."""
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {', '.join(ESTIMATORS)}, got {estimator!r}")


def check_single(q: Distribution) -> None:
    """Raise unless q is one distribution and not a batch of them."""
    if not isinstance(q, Distribution):
        raise TypeError(f"q must be a torch Distribution or a family of this room, got {type(q).__name__}")
    if q.batch_shape:
        raise ValueError(
            f"q is a batch of {tuple(q.batch_shape)} distributions; the bound is about one distribution over all "
            f"unknowns: torch.distributions.Independent(q, {len(q.batch_shape)})"
        )


def evaluate(log_joint: LogJoint, z: Tensor) -> Tensor:
    """log p(x, z) at each row of z; (S, ...) -> (S,). Raises where shape or values cannot be right."""
    value = log_joint(z)
    if not isinstance(value, Tensor):
        raise TypeError(f"log_joint must return a tensor, got {type(value).__name__}")
    if value.shape != z.shape[:1]:
        raise ValueError(
            f"log_joint returned shape {tuple(value.shape)} for z of shape {tuple(z.shape)}; expected one number a "
            f"row, {tuple(z.shape[:1])}. Sum over the last dimension only, or wrap a function of one z: "
            "torch.vmap(log_joint)"
        )
    wrong = torch.isnan(value) | (value == torch.inf)
    if bool(wrong.any()):
        at = z[wrong][0].detach()
        raise FloatingPointError(
            f"log_joint is {value[wrong][0].item()} at z = {_short(at)} ({int(wrong.sum())} of {len(value)} draws); "
            "look for the log or the root of a negative number there, or give positive unknowns by their logarithm"
        )
    return value


def check_gradient(value: Tensor, z: Tensor) -> None:
    """Raise if the draws carry a gradient and the log joint at them does not."""
    if z.requires_grad and torch.is_grad_enabled() and not value.requires_grad:
        raise ValueError(
            "log_joint has no gradient in z (numpy, .item(), detach or no_grad inside, or z is not used), and this "
            'estimator needs one; write it in torch, or use estimator="score"'
        )


def _short(z: Tensor, most: int = 8) -> str:
    numbers = [f"{v:.4g}" for v in z.reshape(-1)[:most].tolist()]
    return f"({', '.join(numbers)}{', ...' if z.numel() > most else ''})"
