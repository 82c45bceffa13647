"""The posterior of a mean, with a prior to drag and observations to add."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from torch.distributions import Normal

from bnnlib.widgets._html import Widget, finite, limits_and_digits, widget, width

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["posterior_update"]

MOST = 50  # observations; more handles than that cannot be told apart
LABELS = {
    "alt": "Densities of prior, likelihood and posterior of a mean, with handles on the prior and on each observation",
    "prior_loc": "centre of the prior",
    "prior_scale": "width of the prior",
    "observation": "observation",
    "prior": "prior",
    "likelihood": "likelihood",
    "posterior": "posterior",
    "evidence": "log evidence",
    "none": "no data",
    "density": "density of the mean",
    "hint": "Drag the dots, or move them with the arrow keys. A click on the grey strip adds an observation; "
    "the Delete key takes one away.",
    "add": "Add an observation",
    "remove": "Remove the last",
}


def posterior_update(
    prior: Normal,
    data: Iterable[float] = (),
    *,
    scale: float,
    limits: tuple[float, float] | None = None,
    labels: Mapping[str, str] | None = None,
) -> Widget:
    """Interactive update of a normal prior on a mean, with known noise: the arguments of `bnnlib.bayes.normal_normal`.

        mu ~ N(m, s^2),     x_i ~ N(mu, scale^2)

    The prior's centre m and width s are dragged, observations are added, dragged and removed. Shown are prior,
    posterior, the likelihood (scaled to area one), and the log evidence log p(x) in nats.

    Parameters
    ----------
    prior
        Normal over the mean: one number, no batch.
    data
        Observations to start with, at most 50. None at all is allowed.
    scale
        Standard deviation of the noise, in the units of the data. It is not dragged.
    limits
        Ends of the axis. Default: round numbers around prior and data.
    labels
        Texts to replace, by key; an unknown key raises an error that lists all of them.

    Returns
    -------
    Widget
        Shows itself at the end of a notebook's cell. Values are rounded to the step that the handles move by, so
        that the numbers shown are the numbers used.

    Raises
    ------
    TypeError
        The prior is no Normal.
    ValueError
        A batch of priors, NaN, a scale that is not positive, a value outside the limits, an unknown label.
    """
    if not isinstance(prior, Normal):
        raise TypeError(f"the prior must be a Normal over one mean, got {type(prior).__name__}")
    if prior.batch_shape.numel() != 1:
        raise ValueError(f"the prior must be over one mean, got batch shape {tuple(prior.batch_shape)}")
    m, s = float(prior.loc), float(prior.scale)
    x = [finite("an observation", v) for v in data]
    noise = finite("scale", scale)
    if noise <= 0:
        raise ValueError(f"scale is the noise's standard deviation, positive; got {noise:g}")
    if len(x) > MOST:
        raise ValueError(f"at most {MOST} observations can be dragged, got {len(x)}")
    around = min([m - 2.5 * s, *x]), max([m + 2.5 * s, *x])
    ends, digits = limits_and_digits(
        limits, around, {"the prior's centre": m, **{f"observation {i}": v for i, v in enumerate(x)}}
    )
    m, s, x = round(m, digits), width("the prior's scale", s, ends, digits), [round(v, digits) for v in x]
    given = {"loc": m, "scale": s, "noise": noise, "data": x, "limits": ends, "digits": digits, "most": MOST}

    def draw(ax: Axes) -> None:
        grid = np.linspace(*ends, 800)
        precision = s**-2 + len(x) * noise**-2
        centre = (m * s**-2 + sum(x) * noise**-2) / precision
        curves = [("prior", m, s, "#b84900", "-"), ("posterior", centre, precision**-0.5, "#0072b2", "-")]
        if x:
            curves.append(("likelihood", sum(x) / len(x), noise / math.sqrt(len(x)), "#6b6557", "--"))
        for name, loc, sd, colour, style in curves:
            height = np.exp(-0.5 * ((grid - loc) / sd) ** 2) / (sd * math.sqrt(2 * math.pi))
            ax.plot(grid, height, style, color=colour, lw=2, label={**LABELS, **(labels or {})}[name])
        ax.plot(x, np.zeros(len(x)), "o", color="#333333", ms=6, clip_on=False)
        ax.set(xlim=ends, ylim=(0, None), yticks=[])
        ax.legend(frameon=False)

    return widget("posterior_update", given, LABELS, labels, draw)
