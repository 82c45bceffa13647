"""Continuous ranked probability score of mixtures with S components.

    CRPS(F, y) = integral (F(z) - 1[z >= y])^2 dz = E|Y - y| - 1/2 E|Y - Y'|

(Gneiting and Raftery 2007, eq. 20 and 21). The first term is a mean over components in closed
form. The second does not know y. It is the integral of F (1 - F) over the whole line, a smooth
function, for which the trapezoid rule converges exponentially; or a sum over pairs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bnnlib._student import student_tail

__all__ = ["normal_crps", "student_crps"]

_FAR = 7.0  # standard deviations after which a normal tail no longer counts: 1e-12
_STEP = 0.6  # of the smallest sd: the trapezoid rule's error is then exp(-pi^2 / 0.6^2) = 1e-12


def normal_crps(loc: Tensor, scale: Tensor, y: Tensor) -> Tensor:
    """CRPS of a mixture of normals: loc and scale (S, N, K), y (N, K) -> (N, K)."""
    return _normal_distance(y - loc, scale).mean(0) - _normal_spread(loc, scale)


def _normal_distance(shift: Tensor, scale: Tensor) -> Tensor:
    """E|shift + scale Z|, Z standard normal."""
    z = shift / scale
    return shift * torch.erf(z / math.sqrt(2)) + scale * math.sqrt(2 / math.pi) * torch.exp(-0.5 * z * z)


def _normal_spread(loc: Tensor, scale: Tensor) -> Tensor:
    """1/2 E|Y - Y'| for independent Y, Y' of the mixture."""
    if len(loc) == 1:
        return scale[0] / math.sqrt(math.pi)
    low, high = (loc - _FAR * scale).amin(0), (loc + _FAR * scale).amax(0)
    wanted = float(((high - low) / (_STEP * scale.amin(0))).max())
    if not wanted <= len(loc):  # components narrow for how far they are apart: then few pairs overlap
        return _spread_by_pairs(loc, scale)
    nodes = math.ceil(wanted)
    step, total = (high - low) / nodes, torch.zeros_like(low)
    inverse = -math.sqrt(0.5) / scale
    for i in range(nodes + 1):
        cdf = 0.5 * torch.erfc((low + i * step - loc) * inverse).mean(0)
        total += cdf * (1 - cdf)
    return step * total


def _spread_by_pairs(loc: Tensor, scale: Tensor) -> Tensor:
    """1/S^2 (sum_i scale_i / sqrt(pi) + sum_(i<j) E|Y_i - Y_j|), exact."""
    count = len(loc)
    loc, order = loc.sort(0)
    scale = scale.gather(0, order)
    rank = torch.arange(count, dtype=loc.dtype, device=loc.device).reshape(-1, *[1] * (loc.dim() - 1))
    centred = loc - loc.mean(0)
    total = scale.sum(0) / math.sqrt(math.pi) + ((2 * rank - count + 1) * centred).sum(0)
    for i in range(1, count):  # pairs that are i places apart; those far apart are at the distance of their means
        gap, sd = loc[i:] - loc[:-i], torch.hypot(scale[i:], scale[:-i])
        total += (_normal_distance(gap, sd) - gap).sum(0)
        if bool((gap.amin(0) > _FAR * math.sqrt(2) * scale.amax(0)).all()):
            break
    return total / count**2


def student_crps(loc: Tensor, scale: Tensor, df: Tensor, y: Tensor) -> Tensor:
    """CRPS of a mixture of Student-t's, NaN where df <= 1: a score by distances needs a mean."""
    kind, heavy = loc.dtype, df <= 1
    df = df.double().where(~heavy, 2.0)
    loc, scale, y = loc.double(), scale.double(), y.double()
    z = (y - loc) / scale
    log_norm = torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2) - 0.5 * torch.log(math.pi * df)
    density = torch.exp(log_norm - 0.5 * (df + 1) * torch.log1p(z * z / df))
    # E|T - z| = |z| (1 - 2 P(T > |z|)) + 2 density (df + z^2) / (df - 1)
    distance = z.abs() * (1 - 2 * student_tail(z, df)) + 2 * density * (df + z * z) / (df - 1)
    out = (scale * distance).mean(0) - _student_spread(loc, scale, df)
    return out.masked_fill(heavy.any(0), math.nan).to(kind)


def _student_spread(loc: Tensor, scale: Tensor, df: Tensor) -> Tensor:
    """Integral of F (1 - F) after z = middle + reach sinh(s), which makes the tails exponential."""
    low, high = loc.amin(0), loc.amax(0)
    # Singular at loc +- i scale sqrt(df): the trapezoid rule's error is exp(-2 pi d / step), d their distance from the
    # line. For many degrees of freedom they are far, and normal growth along the imaginary axis sets d <= pi / 4.
    middle, width = 0.5 * (low + high), scale * df.clamp_max(4.0).sqrt()
    reach, excess = 0.5 * (high - low) + width.amax(0), float(df.min()) - 1
    step = 0.2 * float((width.amin(0) / reach).min())
    ends = math.ceil(min(30 / excess + 5, 24.0) / step)
    beyond = 1 / math.expm1(
        min(excess * step, 700.0)
    )  # from there on the integrand falls as exp(-excess |s|): a geometric series
    total = torch.zeros_like(middle)
    nodes = step * torch.arange(-ends, ends + 1, dtype=loc.dtype, device=loc.device)
    weights = nodes.cosh()
    weights[[0, -1]] *= 1 + beyond
    shape = (-1, *[1] * loc.dim())
    for s, weight in zip(*(v.split(max(1, 2**18 // loc.numel())) for v in (nodes, weights)), strict=True):
        z = (middle + reach * s.sinh().reshape(shape) - loc) / scale
        tail = student_tail(z, df)
        cdf, rest = torch.where(z < 0, tail, 1 - tail).mean(1), torch.where(z < 0, 1 - tail, tail).mean(1)
        total += (cdf * rest * weight.reshape(shape[:-1])).sum(0)
    return step * reach * total
