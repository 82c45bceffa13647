"""The figure of a posterior's update in a browser: its numbers against bnnlib and a second route."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from bnnlib.bayes import normal_normal
from widget_page import (
    NOISE,
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


def check_update(page, noise=NOISE):
    """Hold prior, likelihood, posterior and evidence against bnnlib and a second route; return the values."""
    loc, scale, *data = values(page)
    assert number(page, "prior") == f"{text(loc, 2)} ± {text(scale, 2)}"
    prior, x = Normal(double(loc), double(scale)), double(data)
    if not data:
        assert number(page, "posterior") == f"{text(loc, 3)} ± {text(scale, 3)}"
        assert number(page, "likelihood") == number(page, "evidence") == "no data"
        return loc, scale, *data
    posterior = normal_normal(prior, x, scale=noise)
    joint = MultivariateNormal(prior.loc.expand(len(x)), noise**2 * torch.eye(len(x), dtype=x.dtype) + prior.variance)
    assert number(page, "posterior") == f"{text(posterior.loc, 3)} ± {text(posterior.scale, 3)}"
    assert number(page, "likelihood") == f"{text(x.mean(), 3)} ± {text(noise / math.sqrt(len(x)), 3)}"
    assert number(page, "evidence") == text(joint.log_prob(x), 3)
    assert f"n = {len(x)}" in page.locator(".bnn-numbers").inner_text()
    return loc, scale, *data


def test_prior_and_observations_follow_the_mouse(show):
    page = show("update")
    assert check_update(page) == (5.0, 0.5, 5.5, 5.61, 4.88)
    follow_mouse(page, check_update, [(0, -90), (1, 40), (2, 60), (4, -30), (0, 200), (1, -60)])


def test_every_handle_follows_the_keys(show):
    follow_keys(show("update"), check_update, [(3.5, 6.5), (0.05, 1.5), (3.5, 6.5), (3.5, 6.5), (3.5, 6.5)])


def test_observations_are_added_and_taken_away(show):
    page = show("update")
    page.get_by_role("button", name="Add").click()
    assert len(check_update(page)) == 6
    strip = page.locator(".bnn-strip")
    box = strip.bounding_box()
    strip.click(position={"x": box["width"] / 4, "y": 4})
    assert check_update(page)[-1] == pytest.approx(3.5 + 3 / 4, abs=0.011)
    sliders(page)[3].press("Delete")
    assert check_update(page)[2:5] == pytest.approx((5.5, 4.88, 5.3), abs=0.1)
    page.get_by_role("button", name="Remove").click()
    assert len(check_update(page)) == 5
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    for _ in range(3):
        page.keyboard.press("Backspace")
        check_update(page)
    assert len(values(page)) == 2
    assert page.get_by_role("button", name="Remove").is_disabled()
    page.get_by_role("button", name="again").click()
    assert check_update(page) == (5.0, 0.5, 5.5, 5.61, 4.88)


def test_there_is_an_end_to_observations(show):
    page = show("empty")
    assert check_update(page, 1.0) == (0.0, 1.0)
    add = page.get_by_role("button", name="Add")
    page.evaluate("for (let i = 0; i < 60; i++) document.querySelector('.bnn-buttons button').click()")
    assert add.is_disabled()
    page.locator(".bnn-strip").click(position={"x": 9, "y": 4})
    assert len(check_update(page, 1.0)) == 52


def test_the_curves_drawn_are_the_densities_meant(show):
    page = show("update")
    for _ in range(2):
        check_update(page)
        for name in ("likelihood", "posterior"):
            mean, sd = (float(v) for v in number(page, name).split(" ± "))
            assert moments(page, name, (3.5, 6.5)) == pytest.approx((mean, sd), abs=0.01)
        pull(page, sliders(page)[1], -90)
        assert moments(page, "prior", (3.5, 6.5)) == pytest.approx(values(page)[:2], abs=0.01)
        assert apex_is_at_its_handle(page, "prior")


def test_results_are_announced(show):
    page = show("update")
    live = page.locator("[aria-live=polite]")
    assert live.count() == 1
    assert {"prior", "posterior", "evidence"} <= {
        e.get_attribute("data-number") for e in live.locator("[data-number]").all()
    }
    assert page.locator("svg").get_attribute("aria-label")
    names = [slider.get_attribute("aria-label") for slider in sliders(page)]
    assert names == ["centre of the prior", "width of the prior", *["observation"] * 3]
