"""The book's figures: one style, bands that say what they are, colours for every eye and for grey paper.

Nothing here changes global state but `use_style`, which is asked to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from bnnlib.metrics import class_probs
from bnnlib.predictive import Predictive

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["COLOURS", "band", "function_draws", "pit_histogram", "reliability", "use_style"]

# Okabe and Ito's palette (2008), darkened where white paper needs it; their greys differ too.
COLOURS = {"data": "#333333", "model": "#0072b2", "truth": "#000000", "other": "#c44e00", "third": "#00795c"}

_STYLE: Any = {
    "figure.figsize": (6.4, 3.4),
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "savefig.bbox": "tight",
    "savefig.facecolor": "white",
    "figure.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "font.size": 10,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "image.cmap": "cividis",
    "figure.constrained_layout.use": True,
}


class DrawsFunctions(Protocol):
    """Anything that draws functions: a posterior of `bnnlib.nets`, a linear regression of `bnnlib.bayes`."""

    def functions(self, x: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n functions at x, shape (n, N, outputs)."""


def use_style() -> None:
    """Set matplotlib's rcParams to the book's style: call it once at the top of a notebook."""
    import matplotlib as mpl
    from cycler import cycler

    mpl.rcParams.update(_STYLE)
    mpl.rcParams["axes.prop_cycle"] = cycler(color=[COLOURS[k] for k in ("model", "other", "third", "data")])
    try:
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:  # outside Jupyter there is nothing to set
        return
    set_matplotlib_formats("retina")


def band(
    ax: Axes,
    x: Tensor,
    predictive: Predictive,
    *,
    level: float = 0.95,
    of: str = "data",
    colour: str | None = None,
    label: bool = True,
) -> None:
    """Draw a central band whose legend says its level and what it is a band of; with a band of data also the mean.

    Parameters
    ----------
    ax
        Where to draw.
    x
        Inputs, (N,) or (N, 1); sorted here.
    of
        "data": the interval of a new observation. "function": of the noise-free function.
    label
        False leaves the band out of a legend.
    """
    if of not in ("data", "function"):
        raise ValueError(f'of is "data" or "function", got {of!r}')
    if predictive.mean.shape[-1] != 1:
        raise ValueError(f"band draws one output, the prediction has {predictive.mean.shape[-1]}")
    order = _flat(x).argsort()
    xs = _flat(x)[order].numpy()
    lower, upper = predictive.interval(level) if of == "data" else predictive.function_interval(level)
    low, high, mean = (_flat(v)[order].numpy() for v in (lower, upper, predictive.mean))
    colour = colour or COLOURS["model"]
    name = f"{100 * level:g} % of {'new data' if of == 'data' else 'the function'}"
    ax.fill_between(xs, low, high, color=colour, alpha=0.22, linewidth=0, label=name if label else None)
    if of == "data":
        ax.plot(xs, mean, color=colour, label="mean" if label else None)


def function_draws(
    ax: Axes,
    x: Tensor,
    posterior: DrawsFunctions,
    n: int = 20,
    *,
    generator: torch.Generator | None = None,
    colour: str | None = None,
) -> None:
    """Draw n functions from the posterior at x: each thin line is one network."""
    order = _flat(x).argsort()
    functions = posterior.functions(x, n, generator)[..., 0]
    for f in functions:
        ax.plot(_flat(x)[order].numpy(), f[order].cpu().numpy(), color=colour or COLOURS["model"], lw=0.8, alpha=0.35)


def pit_histogram(ax: Axes, values: Tensor, bins: int = 10) -> None:
    """Histogram of PIT values with the 95 % range that a calibrated predictive's bars would have."""
    counts = torch.histc(values.detach().cpu().double().reshape(-1), bins, 0.0, 1.0)
    n = int(counts.sum())
    spread = 1.96 * (n / bins * (1 - 1 / bins)) ** 0.5
    edges = torch.linspace(0, 1, bins + 1)[:-1]
    ax.bar(
        edges.numpy(),
        counts.numpy(),
        width=1 / bins,
        align="edge",
        color=COLOURS["model"],
        alpha=0.6,
        edgecolor="white",
    )
    ax.axhspan(n / bins - spread, n / bins + spread, color=COLOURS["data"], alpha=0.15, linewidth=0)
    ax.axhline(n / bins, color=COLOURS["data"], lw=1)
    ax.set(xlim=(0, 1), xlabel="F(y), the predictive cdf at the observation", ylabel="points")


def reliability(ax: Axes, predictive: Predictive, y: Tensor, bins: int = 10) -> None:
    """Observed frequency against predicted probability of the top class, one dot a bin, size by count."""
    probs, labels = class_probs(predictive, y)
    confidence, label = probs.max(-1)
    right = (label == labels).double()
    index = (confidence * bins).long().clamp_max(bins - 1)
    count = torch.bincount(index, minlength=bins).double()
    mean_confidence = torch.zeros(bins, dtype=torch.float64).index_add(0, index, confidence.double()) / count
    accuracy = torch.zeros(bins, dtype=torch.float64).index_add(0, index, right) / count
    ax.plot([0, 1], [0, 1], color=COLOURS["data"], lw=1, ls="--")
    size = 10 + 190 * count / count.sum()
    ax.scatter(mean_confidence.numpy(), accuracy.numpy(), s=size.numpy(), color=COLOURS["model"], clip_on=False)
    ax.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="predicted probability", ylabel="observed frequency")


def _flat(v: Tensor) -> Tensor:
    return v.detach().cpu().reshape(-1)
