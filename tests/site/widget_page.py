"""What the tests of the interactive figures share: the figures, and what a reader does with one on its page."""

from __future__ import annotations

import re

import pytest
import torch
from torch.distributions import Normal

from bnnlib.widgets import batchnorm, normal_density, posterior_update, two_directions

NOISE = 0.2
STEPS = {"ArrowRight": 0.05, "ArrowUp": 0.05, "ArrowLeft": -0.05, "ArrowDown": -0.05, "PageUp": 0.5, "PageDown": -0.5}
# Where a page comes from makes no difference to most of what is tested.
in_file = pytest.mark.parametrize("home", ["file"], indirect=True)


def widgets():
    return {
        "update": posterior_update(Normal(5.0, 0.5), [5.5, 5.61, 4.88], scale=NOISE),
        "empty": posterior_update(Normal(0.0, 1.0), scale=1.0),
        "density": normal_density(),
        "batchnorm": batchnorm(),
        "average": batchnorm([-1.0, 3.0], gamma=-2.0, beta=1.5, momentum=None, eps=0.1),
        "directions": two_directions(),
    }


def sliders(page):
    return page.get_by_role("slider").all()


def values(page):
    """All handles' values, which a screen reader is told as they are printed."""
    told = page.eval_on_selector_all(
        "[role=slider]", "all => all.map(e => ['now', 'text'].map(what => e.getAttribute(`aria-value${what}`)))"
    )
    now = [float(v) for v, _ in told]
    assert now == [float(words.replace("−", "-")) for _, words in told]
    return now


def number(page, key):
    return page.locator(f"[data-number={key}]").inner_text()


def pull(page, slider, by):
    """Drag a handle with the mouse, in several moves, from a point beside its centre."""
    box = slider.locator(".bnn-dot").bounding_box()
    x, y = box["x"] + box["width"] / 2 + 3, box["y"] + box["height"] / 2 - 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + by, y - 7, steps=4)
    page.mouse.up()


def unit(page):
    """Pixels for one unit of the axis, from its tick labels."""
    ticks = page.locator("svg text[text-anchor=middle]").all()
    ends = [(float(t.text_content().replace("−", "-")), t.bounding_box()) for t in (ticks[0], ticks[-1])]
    (a, left), (b, right) = [(v, box["x"] + box["width"] / 2) for v, box in ends]
    return (right - left) / (b - a)


def double(v):
    return torch.tensor(v, dtype=torch.float64)


def text(v, digits):
    """A number as the page prints it."""
    plain = f"{float(v):.{digits}f}"
    return plain.removeprefix("-") if float(plain) == 0 else plain.replace("-", "−")


def near(page, key, expected, digits):
    """Hold the numbers of one item, and their decimals, against exact ones; a 5 may be rounded either way."""
    shown = number(page, key).split()
    assert all(re.fullmatch(rf"−?\d+\.\d{{{digits}}}", v) for v in shown)
    exact = [float(v) for v in expected]
    slack = 0.5 * 10**-digits + 1e-9 * (1 + max(map(abs, exact)))
    assert [float(v.replace("−", "-")) for v in shown] == pytest.approx(exact, rel=0, abs=slack), key


def follow_mouse(page, check, moves, slope=lambda i, before: 1.0):
    """Drag handles by some pixels, and see that this one moves as far as the mouse and that no other does."""
    for i, by in moves:
        before = values(page)
        pull(page, sliders(page)[i], by)
        after = check(page)
        assert after[i] == pytest.approx(before[i] + slope(i, before) * by / unit(page), abs=0.011)
        assert [v for j, v in enumerate(after) if j != i] == [v for j, v in enumerate(before) if j != i]


def follow_keys(page, check, ranges):
    """Move every handle with every key, down to its lowest value and up to its highest."""
    page.evaluate("document.body.style.minHeight = '4000px'")
    for i, (low, high) in enumerate(ranges):
        slider = sliders(page)[i]
        slider.focus()
        for key, step in STEPS.items():
            before = values(page)[i]
            page.keyboard.press(key)
            assert check(page)[i] == pytest.approx(min(high, max(low, before + step)), abs=1e-9), key
        for key, end in {"Home": low, "End": high}.items():
            page.keyboard.press(key)
            assert check(page)[i] == end
            attribute = {"Home": "aria-valuemin", "End": "aria-valuemax"}[key]
            assert float(slider.get_attribute(attribute)) == end
        for key in ("PageDown", "ArrowLeft"):
            page.keyboard.press(key)
    page.wait_for_timeout(200)
    assert page.evaluate("scrollY") == 0, "a key that moves a handle does not scroll the page"
    order = [page.evaluate("document.activeElement.getAttribute('aria-label')")]
    page.keyboard.press("Shift+Tab")
    order.append(page.evaluate("document.activeElement.getAttribute('aria-label')"))
    assert None not in order, "handles are reached with the tab key"


def drawn(page, name, kind="line"):
    """The points of a curve, or of the upper edge of a shaded area, in pixels."""
    points = page.evaluate(
        """([name, kind]) => document.querySelector(`.bnn-${kind}.bnn-${name}`).getAttribute("d").slice(1).split("L")
        .map(point => point.split(" ").map(parseFloat))""",
        [name, kind],
    )
    return double(points[:-2] if kind == "shade" else points).T


def apex_is_at_its_handle(page, name):
    """Whether the curve is as high as the handle on its top."""
    handle = sliders(page)[0].get_attribute("transform")
    return float(drawn(page, name)[1].min()) == pytest.approx(float(re.findall(r"[\d.]+", handle)[1]), abs=1)


def moments(page, name, limits, kind="line"):
    """Mean and standard deviation of a curve as it is drawn."""
    x, y = drawn(page, name, kind)
    x = limits[0] + (x - x[0]) / (x[-1] - x[0]) * (limits[1] - limits[0])
    weight = y.max() - y
    mean = (weight * x).sum() / weight.sum()
    return float(mean), float(((weight * (x - mean) ** 2).sum() / weight.sum()).sqrt())
