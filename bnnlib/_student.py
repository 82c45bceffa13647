"""Tails of Student's t, which torch lacks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["student_bound", "student_tail"]

_MANY = 100.0  # from here on the normal approximation is exact to the last digit


def student_tail(t: Tensor, df: Tensor) -> Tensor:
    """P(T > |t|), accurate in the far tail too, shape of t.

    The incomplete beta function below 100 degrees of freedom, Hill's (1970) normal variate above.
    """
    first = df.reshape(-1)[0]
    df = first if bool((df == first).all()) else df  # one df: its normaliser is one number
    many = df >= _MANY
    if bool(many.all()):
        return _near_normal(t, df.to(t))
    tail = _by_fraction(t, df.double().clamp_max(_MANY))
    return torch.where(many, _near_normal(t, df.to(t)), tail) if bool(many.any()) else tail


def _near_normal(t: Tensor, df: Tensor) -> Tensor:
    a = df - 0.5
    b, y = 48 * a * a, a * torch.log1p(t * t / df)
    correction = (((-0.4 * y - 3.3) * y - 24) * y - 85.5) / (0.8 * y * y + 100 + b) + y + 3
    return 0.5 * torch.erfc((correction / b + 1) * (0.5 * y).sqrt())  # ndtr is 0 beyond -8


def _by_fraction(t: Tensor, df: Tensor) -> Tensor:
    """I_x(df/2, 1/2) / 2 with x = df / (df + t^2), by the continued fraction (DLMF 8.17.22) where it converges fast."""
    square = t * t / df.to(t)
    near = square < 1.5 / (df / 2).to(t).clamp_min(1.0)  # there by I_x(a, b) = 1 - I_(1-x)(b, a)
    a, b = df / 2, torch.full_like(df, 0.5)
    # In float64 until here, because the two large terms of the normaliser cancel.
    log_beta = (torch.lgamma(a) + math.lgamma(0.5) - torch.lgamma(a + 0.5)).to(t)
    a, b = a.to(t), b.to(t)
    log_rest = torch.where(square > 1, -torch.log1p(1 / square), (square / (1 + square)).log())  # log(1 - x)
    front = torch.exp(-a * torch.log1p(square) + b * log_rest - log_beta)
    p, q = torch.where(near, b, a), torch.where(near, a, b)
    x = torch.where(near, square / (1 + square), 1 / (1 + square))
    value = front / p * _fraction(p, q, x)
    return 0.5 * torch.where(near, 1 - value, value)


def _fraction(a: Tensor, b: Tensor, x: Tensor) -> Tensor:
    """The continued fraction, from its first term on (Lentz's method), until no entry changes."""
    info = torch.finfo(x.dtype)
    tiny = 1e8 * info.tiny
    c = torch.ones_like(x)
    d = 1 / (1 - (a + b) * x / (a + 1))
    out = d.clone()
    for m in range(1, 200):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _not_zero(1 + term * d, tiny)
            c = _not_zero(1 + term / c, tiny)
            out = out * d * c
        if bool(((d * c - 1).abs() <= 2 * info.eps).all()):
            break
    return out


def _not_zero(v: Tensor, tiny: float) -> Tensor:
    return torch.where(v.abs() < tiny, tiny, v)


def student_bound(p: float, df: float) -> float:
    """A number at or a little beyond the standard t's quantile at p, seen from the centre; infinite beyond float64."""
    wanted, freedom = min(p, 1 - p), torch.tensor(df, dtype=torch.float64)
    low, high = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    while bool(student_tail(high, freedom) > wanted):
        low, high = high, 8 * high
        if not math.isfinite(high * high):
            return math.copysign(math.inf, p - 0.5)
    for _ in range(12):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if bool(student_tail(middle, freedom) > wanted) else (low, middle)
    return math.copysign(float(high), p - 0.5)
