"""The density of one normal distribution, with location, scale and a range to drag."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from bnnlib.widgets._html import Widget, finite, limits_and_digits, widget, width

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["normal_density"]

LABELS = {
    "alt": "Density of a normal distribution, with handles for its location, its scale and the shaded range",
    "loc": "location",
    "scale": "scale",
    "within": "end of the range, in scales",
    "height": "height at the centre",
    "above_one": ", above 1",
    "area": "area within {k} scales",
    "ends": "range",
    "to": "to",
    "density": "density",
    "hint": "Drag the dots, or move them with the arrow keys. The one on the axis ends the shaded range.",
}


def normal_density(
    loc: float = 0.0,
    scale: float = 1.0,
    *,
    within: float = 1.0,
    limits: tuple[float, float] = (-5.0, 5.0),
    labels: Mapping[str, str] | None = None,
) -> Widget:
    """Interactive density of N(loc, scale^2), its height, and the area within k scales of its centre.

        P(|X - loc| < k scale) = 2 Phi(k) - 1

    Location, scale and k are dragged. The area depends on k only. The height is 1 / (scale sqrt(2 pi)), and above
    one for a scale below 0.399: a line marks a density of one.

    Parameters
    ----------
    loc, scale
        Where to start, in the units of the axis.
    within
        k to start with, from 0.1 to 4.
    limits
        Ends of the axis.
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
    loc, scale, within = finite("loc", loc), finite("scale", scale), finite("within", within)
    if scale <= 0:
        raise ValueError(f"scale is a standard deviation, positive; got {scale:g}")
    if not 0.1 <= within <= 4:
        raise ValueError(f"within is a number of scales from 0.1 to 4, got {within:g}")
    ends, digits = limits_and_digits(limits, limits, {"loc": loc})
    m, s, k = round(loc, digits), width("scale", scale, ends, digits), round(within, 2)
    given = {"loc": m, "scale": s, "within": k, "limits": ends, "digits": digits}

    def draw(ax: Axes) -> None:
        grid = np.linspace(*ends, 800)
        height = np.exp(-0.5 * ((grid - m) / s) ** 2) / (s * math.sqrt(2 * math.pi))
        ax.fill_between(grid, height, where=abs(grid - m) <= k * s, color="#0072b2", alpha=0.18, lw=0)
        ax.plot(grid, height, color="#0072b2", lw=2.5)
        ax.set(xlim=ends, ylim=(0, None))

    return widget("normal_density", given, LABELS, labels, draw)
