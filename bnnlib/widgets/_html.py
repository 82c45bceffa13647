"""What all widgets share: HTML from numbers and a script, a picture for where scripts do not run, checks."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LABELS = {
    "reset": "Start again",
    "fallback": "An interactive figure. It runs on the book's site, and in Jupyter once its cell has been run.",
}


@dataclass(frozen=True)
class Widget:
    """An interactive figure, as Jupyter and the book's site show it.

    Its HTML depends on the arguments alone: made twice it is the same text.
    """

    name: str
    html: str = field(repr=False)
    draw: Callable[[Axes], None] = field(repr=False, compare=False)

    def _repr_mimebundle_(
        self, include: object = None, exclude: object = None
    ) -> tuple[dict[str, str], dict[str, dict[str, int]]]:
        """What Jupyter stores: the figure, and a picture of its start for readers that run no scripts."""
        picture = base64.b64encode(png(self.draw)).decode("ascii")
        return {"text/html": self.html, "image/png": picture}, {"image/png": {"width": 640, "height": 320}}


def widget(
    name: str,
    given: dict[str, Any],
    labels: Mapping[str, str],
    changed: Mapping[str, str] | None,
    draw: Callable[[Axes], None],
) -> Widget:
    """Put a widget together from its script's name, the numbers and labels that the script reads, and a picture."""
    texts = {**LABELS, **labels}
    for key, text in (changed or {}).items():
        if key not in texts:
            raise ValueError(f"{name} has no label {key!r}; its labels are {', '.join(sorted(texts))}")
        if not isinstance(text, str):
            raise TypeError(f"label {key!r} must be a string, got {type(text).__name__}")
    texts |= changed or {}
    # A "<" in a label could end the script.
    argument = json.dumps({**given, "labels": texts}, sort_keys=True, allow_nan=False).replace("<", "\\u003c")
    own = f"bnn-{hashlib.sha256(f'{name} {argument}'.encode()).hexdigest()[:10]}"
    # Jupyter runs scripts apart from their place in the page, and may show one output twice: so every element of the
    # id is asked for, and each one starts once.
    script = f"""(() => {{
"use strict";
{_code("js/kit.js")}
{_code(f"js/{name}.js")}
const given = {argument};
for (const root of document.querySelectorAll("#{own}:not([data-on])")) {{
root.dataset.on = "";
root.replaceChildren();
start(root, given);
}}
}})();"""
    page = f"""<style>
{_code("widget.css")}
</style>
<div class="bnn-widget" id="{own}"><p>{html.escape(texts["fallback"])}</p></div>
<script>
{script}
</script>"""
    return Widget(name, page, draw)


def _code(path: str) -> str:
    """A file of this package, without its comment lines and indents."""
    text = files(__package__).joinpath(path).read_text("utf8")
    text = re.sub(r"(?m)^\s*(//.*|/\*.*\*/)$", "", text)
    return re.sub(r"\n\s*", "\n", text).strip()


def png(draw: Callable[[Axes], None]) -> bytes:
    """A picture of 640 by 320 pixels, at twice that resolution, in matplotlib's own style whatever the reader set."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with style.context("default"):
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        FigureCanvasAgg(figure)
        ax = figure.subplots()
        ax.spines[["top", "right"]].set_visible(False)
        draw(ax)
        figure.savefig(buffer, dpi=200, format="png", metadata={"Software": None})
    return buffer.getvalue()


def limits_and_digits(
    limits: tuple[float, float] | None, around: tuple[float, float], inside: Mapping[str, float]
) -> tuple[tuple[float, float], int]:
    """The axis (`around`, widened to round numbers, where none is given) and the decimals that its handles move by.

    Raises
    ------
    ValueError
        Limits that are not finite and rising, or a value outside them.
    """
    low, high = around if limits is None else (float(v) for v in limits)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"limits are the two ends of the axis, the smaller one first; got {limits}")
    # At most 2,000 steps of a power of ten, at least 200.
    digits = -math.floor(math.log10((high - low) / 200) + 1e-9)
    if not 0 <= digits <= 8:
        raise ValueError(f"the axis is {high - low:g} long; rescale the data to a length from 20 down to 2e-6")
    if limits is None:
        coarse = 10.0 ** (1 - digits) * 5
        # The slack is for float32, whose 0.004 is a little more than that.
        low, high = math.floor(low / coarse + 1e-5) * coarse, math.ceil(high / coarse - 1e-5) * coarse
    low, high = round(low, digits), round(high, digits)
    for name, value in inside.items():
        if not low <= value <= high:
            raise ValueError(f"{name} is {value:g}, outside the axis from {low:g} to {high:g}; pass wider limits")
    return (low, high), digits


def finite(name: str, value: float) -> float:
    """A number as a float, or an error."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    return number


def width(name: str, value: float, limits: tuple[float, float], digits: int) -> float:
    """A scale on the handle's step, between the smallest and the largest that the handle reaches."""
    smallest, largest = 5 * 10.0**-digits, (limits[1] - limits[0]) / 2
    if not smallest <= round(value, digits) <= largest:
        raise ValueError(
            f"{name} must lie between {smallest:g} and {largest:g} on an axis from {limits[0]:g} to {limits[1]:g}, "
            f"got {value:g}; pass other limits"
        )
    return round(value, digits)
