"""The figure of a normal density in a browser: its numbers against bnnlib and torch."""

from __future__ import annotations

import pytest
from torch.distributions import Normal

from bnnlib.normal import log_density
from widget_page import (
    apex_is_at_its_handle,
    double,
    follow_keys,
    follow_mouse,
    moments,
    number,
    pull,
    sliders,
    text,
    values,
)

pytestmark = pytest.mark.browser


def check_density(page):
    """Hold height, area and ends against bnnlib and torch; return location, scale and k."""
    loc, scale, k = values(page)
    law = Normal(double(loc), double(scale))
    height = log_density(law.loc, loc=law.loc, scale=law.scale).exp()
    ends = double([loc - k * scale, loc + k * scale])
    area = law.cdf(ends[1]) - law.cdf(ends[0])
    assert number(page, "height") == text(height, 3) + (", above 1" if height > 1 else "")
    assert number(page, "area") == text(area, 4)
    # A product of two numbers of two decimals often ends in a 5, which may be rounded either way.
    shown = [float(v.replace("−", "-")) for v in number(page, "ends").split(" to ")]
    assert shown == pytest.approx(ends.tolist(), abs=0.005 + 1e-9)
    assert (number(page, "loc"), number(page, "scale")) == (text(loc, 2), text(scale, 2))
    assert f"within {k:.2f} scales" in page.locator(".bnn-numbers").inner_text()
    assert page.locator(".bnn-one").count() == (height > 0.476), "a line at 1, where the axis reaches it"
    return loc, scale, k


def test_location_scale_and_range_follow_the_mouse(show):
    page = show("density")
    assert check_density(page) == (0.0, 1.0, 1.0)
    moves = [(2, 70), (1, -58), (0, 130), (2, 5), (1, 20), (0, -60), (1, -13)]
    follow_mouse(page, check_density, moves, lambda i, before: 1 / before[1] if i == 2 else 1.0)
    assert ", above 1" in number(page, "height")


def test_every_handle_follows_the_keys(show):
    follow_keys(show("density"), check_density, [(-5, 5), (0.05, 5), (0.1, 4)])


def test_the_curve_drawn_is_the_density_meant(show):
    page = show("density")
    for by in (-30, -20, 60):
        pull(page, sliders(page)[1], by)
        assert moments(page, "posterior", (-5, 5)) == pytest.approx(values(page)[:2], abs=0.02)
        assert apex_is_at_its_handle(page, "posterior")
        top = page.locator("svg text[text-anchor=end]").last
        base, ceiling = (
            page.locator(".bnn-axis").first.bounding_box()["y"],
            top.bounding_box()["y"] + top.bounding_box()["height"] / 2,
        )
        dot = sliders(page)[0].locator(".bnn-dot").bounding_box()
        height = (base - dot["y"] - dot["height"] / 2) / (base - ceiling) * float(top.text_content())
        assert height == pytest.approx(float(number(page, "height").split(",")[0]), rel=0.02)


def test_one_that_is_hidden_at_first_is_drawn_when_it_shows(show, insert):
    page = show("blank")
    page.evaluate("document.body.style.display = 'none'")
    insert(page, "density")
    page.evaluate("document.body.style.display = ''")
    page.wait_for_selector(".bnn-line")
    assert check_density(page) == (0.0, 1.0, 1.0)
