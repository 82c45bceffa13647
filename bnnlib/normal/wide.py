"""The Gaussian process that a random network becomes as its hidden layers widen."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bnnlib.normal._checks import finite

__all__ = ["wide_net_kernel"]


def wide_net_kernel(
    x: Tensor,
    other: Tensor | None = None,
    *,
    hidden_layers: int = 1,
    activation: str = "relu",
    weight_var: float = 1.0,
    bias_var: float = 1.0,
) -> Tensor:
    """Covariance of the outputs of an infinitely wide random network at two sets of inputs.

    With w ~ N(0, weight_var / fan_in), b ~ N(0, bias_var), and K_0 = bias_var + weight_var x x'^T / d:

        K_{l+1}(x, x') = bias_var + weight_var E[phi(u) phi(v)],   (u, v) ~ N(0, K_l at x, x')

    The expectation is in closed form: Cho and Saul (2009) for relu, Williams (1998) for erf.

    Parameters
    ----------
    x
        Inputs, shape (n, d).
    other
        Inputs, shape (m, d); `x` again where left out.
    hidden_layers
        Number of hidden layers, at least one.
    activation
        `"relu"` or `"erf"`.
    weight_var
        Variance of a weight times its fan-in. One, as in the default prior of `bnnlib.nets`, halves
        a relu net's variance at each layer; two keeps it.
    bias_var
        Variance of a bias.

    Returns
    -------
    Tensor
        Shape (n, m), in the units of the output squared.

    Source: Neal (1996), chapter 2; Lee et al. (2018).
    """
    second = x if other is None else other
    for name, value in (("x", x), ("other", second)):
        if value.dim() != 2 or not value.is_floating_point():
            raise ValueError(f"{name} must be floating point of shape (n, d), got {value.dtype} {tuple(value.shape)}")
        finite(name, value)
    if x.shape[1] != second.shape[1]:
        raise ValueError(f"x and other must have one number of features, got {x.shape[1]} and {second.shape[1]}")
    if activation not in ("relu", "erf"):
        raise ValueError(f'activation is "relu" or "erf", got {activation!r}: no closed form is known here for others')
    if hidden_layers < 1:
        raise ValueError(f"hidden_layers must be at least 1, got {hidden_layers}")
    if not (0 < weight_var < math.inf and 0 <= bias_var < math.inf):
        raise ValueError(f"weight_var must be positive and bias_var not negative, got {weight_var} and {bias_var}")
    step = _relu if activation == "relu" else _erf
    d = x.shape[1]
    cross = bias_var + weight_var * x @ second.mT / d
    left = bias_var + weight_var * x.square().sum(1) / d
    right = bias_var + weight_var * second.square().sum(1) / d
    for _ in range(hidden_layers):
        cross = bias_var + weight_var * step(cross, left.unsqueeze(1), right)
        left, right = (bias_var + weight_var * step(k, k, k) for k in (left, right))
    return cross


def _relu(cross: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """E[relu(u) relu(v)] from the covariance and the two variances: the arc-cosine kernel of order one."""
    size = (left * right).sqrt()
    cosine = (cross / size.clamp_min(torch.finfo(size.dtype).tiny)).clamp(-1, 1)
    angle = cosine.acos()
    return size * (angle.sin() + (math.pi - angle) * cosine) / (2 * math.pi)


def _erf(cross: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """E[erf(u) erf(v)]."""
    return 2 / math.pi * torch.asin(2 * cross / ((1 + 2 * left) * (1 + 2 * right)).sqrt())
