"""A normal over a target with two modes, and the Kullback-Leibler divergence in both directions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from bnnlib.widgets._html import Widget, finite, limits_and_digits, widget, width

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["two_directions"]

LABELS = {
    "alt": "Density of a target with two modes and of a normal over it, with handles for the location and the scale of "
    "the normal and for the distance of the modes",
    "loc": "location of q",
    "scale": "scale of q",
    "apart": "distance of the modes",
    "normal": "q",
    "reverse": "KL(q \u2016 p)",
    "forward": "KL(p \u2016 q)",
    "least": "at its least",
    "at": "for q at",
    "density": "density",
    "hint": "Drag the dots, or move them with the arrow keys. Shaded is the target p, thick the normal q, dashed are "
    "the best q of each direction. The dot on the axis moves the modes apart.",
    "to_reverse": "Go to the least KL(q \u2016 p)",
    "to_forward": "Go to the least KL(p \u2016 q)",
}


def two_directions(
    loc: float = 1.0,
    scale: float = 1.5,
    *,
    separation: float = 6.0,
    mode_scale: float = 0.7,
    limits: tuple[float, float] = (-8.0, 8.0),
    labels: Mapping[str, str] | None = None,
) -> Widget:
    """Interactive normal q over a target p with two modes, with KL(q || p) and KL(p || q) in nats.

        p = 1/2 N(-separation / 2, mode_scale^2) + 1/2 N(separation / 2, mode_scale^2),     q = N(loc, scale^2)

    Location and scale of q and the separation of the modes are dragged. Marked are the best q of either direction:
    KL(p || q) is least for the mean and the variance of p. KL(q || p) is least on either mode alone once the modes are
    more than 5.6 of their scales apart; before that, between them.

    Parameters
    ----------
    loc, scale
        Where q starts, in the units of the axis.
    separation
        Distance of the two modes, not negative.
    mode_scale
        Standard deviation of each mode. It is not dragged.
    limits
        Ends of the axis, which 0 lies between.
    labels
        Texts to replace, by key; an unknown key raises an error that lists all of them.

    Returns
    -------
    Widget
        Shows itself at the end of a notebook's cell. Values are rounded to the step that the handles move by, so
        that the numbers shown are the numbers used.

    Raises
    ------
    ValueError
        NaN, a scale that is not positive, a value outside the limits, an unknown label.
    """
    loc, scale = finite("loc", loc), finite("scale", scale)
    separation, mode_scale = finite("separation", separation), finite("mode_scale", mode_scale)
    if scale <= 0:
        raise ValueError(f"scale is a standard deviation, positive; got {scale:g}")
    if separation < 0:
        raise ValueError(f"separation is a distance, not negative; got {separation:g}")
    ends, digits = limits_and_digits(
        limits, limits, {"loc": loc, "the left mode": -separation / 2, "the right mode": separation / 2}
    )
    length = ends[1] - ends[0]
    # Narrower modes would need a finer rule than the script sums by.
    if not length / 40 <= mode_scale <= length / 4:
        raise ValueError(
            f"mode_scale must lie between {length / 40:g} and {length / 4:g} on an axis from {ends[0]:g} to "
            f"{ends[1]:g}, got {mode_scale:g}; pass other limits"
        )
    m, s, apart = round(loc, digits), width("scale", scale, ends, digits), round(separation, digits)
    given = {"loc": m, "scale": s, "apart": apart, "mode": mode_scale, "limits": ends, "digits": digits}
    given["widest"] = round(2 * min(-ends[0], ends[1]), digits)

    def draw(ax: Axes) -> None:
        grid = np.linspace(*ends, 800)

        def normal(centre: float, sd: float) -> np.ndarray:
            return np.exp(-0.5 * ((grid - centre) / sd) ** 2) / (sd * math.sqrt(2 * math.pi))

        texts = {**LABELS, **(labels or {})}
        p = 0.5 * (normal(-apart / 2, mode_scale) + normal(apart / 2, mode_scale))
        wide = normal(0, math.hypot(mode_scale, apart / 2))
        ax.fill_between(grid, p, color="#6b6557", alpha=0.25, lw=0, label="p")
        ax.plot(grid, wide, "--", color="#b84900", lw=1.5, label=f"{texts['forward']} {texts['least']}")
        centre, sd = _reverse_optimum(apart, mode_scale)
        for side in {-centre, centre}:
            label = f"{texts['reverse']} {texts['least']}" if side == centre else None
            ax.plot(grid, normal(side, sd), ":", color="#0a62a9", lw=1.8, label=label)
        ax.plot(grid, normal(m, s), color="#333333", lw=2.5, label=texts["normal"])
        ax.set(xlim=ends, ylim=(0, None), yticks=[])
        ax.legend(frameon=False, fontsize=8)

    return widget("two_directions", given, LABELS, labels, draw)


def _reverse_optimum(apart: float, mode_scale: float) -> tuple[float, float]:
    """Centre (not negative) and sd of the normal with the smallest KL(q || p), by a grid that is refined."""
    z = np.linspace(-8, 8, 401)
    weight = np.exp(-0.5 * z**2)
    weight /= weight.sum()

    def divergence(m: np.ndarray, s: np.ndarray) -> np.ndarray:
        x = m[:, None, None] + s[None, :, None] * z
        log_p = np.logaddexp(*(-0.5 * ((x - side * apart / 2) / mode_scale) ** 2 for side in (-1, 1)))
        cross: np.ndarray = -(log_p * weight).sum(-1) - np.log(s)  # KL up to a constant
        return cross

    low, high = np.array([0.0, 0.3 * mode_scale]), np.array([apart / 2, mode_scale + apart / 2])
    for _ in range(4):
        centres, sds = (np.linspace(a, b, 31) for a, b in zip(low, high, strict=True))
        i, j = np.unravel_index(divergence(centres, sds).argmin(), (31, 31))
        best, step = np.array([centres[i], sds[j]]), (high - low) / 15
        low, high = np.maximum(best - step, [0.0, 0.1 * mode_scale]), best + step
    return float(best[0]), float(best[1])
