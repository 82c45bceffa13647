"""BatchNorm of one feature: a batch to drag, in training and in evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from bnnlib.widgets._html import Widget, finite, limits_and_digits, widget

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["batchnorm"]

LEAST, MOST = 2, 8  # a variance needs two values; more than eight lists of numbers cannot be read
LABELS = {
    "alt": "A batch of values, the same normalised, and the outputs of training and evaluation, with handles on each "
    "value of the batch, on gamma and on beta",
    "value": "value in the batch",
    "beta": "shift \u03b2",
    "gamma": "scale \u03b3",
    "batch": "batch",
    "unit": "normalised",
    "output": "output",
    "mean": "batch mean",
    "biased": "variance, over m = {m}",
    "unbiased": "over m \u2212 1 = {m}",
    "stored_mean": "stored mean",
    "stored_variance": "stored variance",
    "steps": "training steps",
    "normalised": "normalised in training",
    "training": "output in training",
    "evaluation": "output in evaluation",
    "hint": "Drag the dots, or move them with the arrow keys; Enter is one training step. The scale \u03b3 is the way "
    "from dot \u03b2 to dot \u03b3. A click on the grey strip adds a value; the Delete key takes one away.",
    "train": "One training step",
    "train_more": "Ten steps",
    "add": "Add a value",
    "remove": "Remove the last",
}


def batchnorm(
    batch: Iterable[float] = (0.5, 1.2, 1.9, 2.6, 3.8),
    *,
    gamma: float = 1.0,
    beta: float = 0.0,
    momentum: float | None = 0.1,
    eps: float = 1e-5,
    limits: tuple[float, float] = (-5.0, 5.0),
    labels: Mapping[str, str] | None = None,
) -> Widget:
    """Interactive BatchNorm of one feature over a batch of m values.

        training:    z = gamma (x - mean) / sqrt(var + eps) + beta,      var divided by m
        evaluation:  the same with the stored mean and variance, which start at 0 and 1
        one step:    stored = (1 - momentum) stored + momentum batch,    variance divided by m - 1

    The batch's values, gamma and beta are dragged. A training step updates what is stored; dragging alone does not.

    Parameters
    ----------
    batch
        From 2 to 8 values to start with.
    gamma, beta
        Scale and shift to start with. The scale may be negative.
    momentum
        Weight of the new batch, from 0 to 1; None averages over all batches.
    eps
        Added to the variances, positive.
    limits
        Ends of the axis, which all rows of the figure share.
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
        A batch of one, NaN, a momentum outside 0 to 1, a value outside the limits, an unknown label.

    Source: Ioffe and Szegedy (2015), algorithms 1 and 2.
    """
    x = [finite("a value of the batch", v) for v in batch]
    if not LEAST <= len(x) <= MOST:
        raise ValueError(f"the batch has from {LEAST} to {MOST} values to drag, got {len(x)}")
    gamma, beta, eps = finite("gamma", gamma), finite("beta", beta), finite("eps", eps)
    if eps <= 0:
        raise ValueError(f"eps keeps a constant batch from 0 / 0 and is positive, got {eps:g}")
    if momentum is not None and not 0 <= momentum <= 1:
        raise ValueError(f"momentum is the weight of the new batch, from 0 to 1, or None; got {momentum:g}")
    ends, digits = limits_and_digits(limits, limits, {"beta": beta, **{f"value {i}": v for i, v in enumerate(x)}})
    half = (ends[1] - ends[0]) / 2
    if abs(gamma) > half:
        raise ValueError(f"gamma lies between {-half:g} and {half:g}, half the length of the axis; got {gamma:g}")
    x, gamma, beta = [round(v, digits) for v in x], round(gamma, digits), round(beta, digits)
    given = {"batch": x, "gamma": gamma, "beta": beta, "momentum": momentum, "eps": eps, "limits": ends}
    given |= {"digits": digits, "least": LEAST, "most": MOST}

    def draw(ax: Axes) -> None:
        texts = {**LABELS, **(labels or {})}
        mean = sum(x) / len(x)
        var = sum((v - mean) ** 2 for v in x) / len(x)
        ways = [("evaluation", 0.0, 1.0, "#b84900", "--", -0.1), ("training", mean, var, "#0072b2", "-", 0.1)]
        for name, centre, variance, colour, style, shift in ways:
            to = [(v - centre) / math.sqrt(variance + eps) for v in x]
            for i, (v, u) in enumerate(zip(x, to, strict=True)):
                line, heights = [v, u, gamma * u + beta], [2, 1 + shift, shift]
                label = texts[name] if i == 0 else None
                ax.plot(line, heights, style, marker="o", ms=4, lw=1, color=colour, label=label)
        ax.plot(x, [2] * len(x), "o", color="#333333", ms=7)
        ax.set(
            xlim=ends, ylim=(-0.4, 2.3), yticks=[2, 1, 0], yticklabels=[texts[k] for k in ("batch", "unit", "output")]
        )
        ax.legend(frameon=False, fontsize=8)

    return widget("batchnorm", given, LABELS, labels, draw)
