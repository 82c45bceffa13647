"""The figure of the two directions in a browser: its numbers against quadrature, scipy's optimum, and bnnlib."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from scipy.optimize import minimize
from scipy.stats import norm
from torch.distributions import Categorical, MixtureSameFamily, Normal

from bnnlib.variational import fit_forward_kl, kl
from widget_page import (
    double,
    drawn,
    follow_keys,
    follow_mouse,
    in_file,
    moments,
    near,
    number,
    pull,
    sliders,
    text,
    values,
)

pytestmark = pytest.mark.browser

START = (1.0, 1.5, 6.0)  # location and scale of q, distance of the modes
MODE = 0.7


def log_p(x, apart):
    return np.logaddexp(norm.logpdf(x, -apart / 2, MODE), norm.logpdf(x, apart / 2, MODE)) - np.log(2)


def reverse(loc, scale, apart):
    """KL(q || p), on a grid over q, fine enough for the bend of log p between the modes."""
    x = loc + scale * np.linspace(-12, 12, 8_001 if scale < 4 else 32_001)
    log_q = norm.logpdf(x, loc, scale)
    return trapezoid(np.exp(log_q) * (log_q - log_p(x, apart)), x)


def forward(loc, scale, apart):
    """KL(p || q), on a grid over p."""
    end = apart / 2 + 12 * MODE
    x = np.linspace(-end, end, 4_001)
    at = log_p(x, apart)
    return trapezoid(np.exp(at) * (at - norm.logpdf(x, loc, scale)), x)


@functools.cache
def least(divergence, apart):
    """Lowest value, |location| and scale, from starts on a mode and between them."""
    found = []
    for start in ((apart / 2, MODE), (0.0, np.hypot(MODE, apart / 2))):
        result = minimize(
            lambda at: divergence(at[0], np.exp(at[1]), apart),
            (start[0], np.log(start[1])),
            method="Nelder-Mead",
            options={"xatol": 1e-5, "fatol": 1e-11},
        )
        found.append((result.fun, abs(result.x[0]), np.exp(result.x[1])))
    return min(found)


def check(page):
    """Hold divergences and optima against a second route; return the values of the handles."""
    loc, scale, apart = values(page)
    assert number(page, "normal") == f"{text(loc, 2)} ± {text(scale, 2)}"
    assert number(page, "apart") == text(apart, 2)
    near(page, "reverse", [reverse(loc, scale, apart)], 3)
    near(page, "forward", [forward(loc, scale, apart)], 3)
    for name, divergence in {"reverse": reverse, "forward": forward}.items():
        lowest, m, s = least(divergence, apart)
        near(page, f"{name}-least", [lowest], 3)
        shown = [
            float(v.replace("−", "-")) for v in number(page, f"{name}-at").replace("±", "").replace(",", "").split()
        ]
        expected = [-m, s, m, s] if m > 0.005 else [0, s]
        assert shown == pytest.approx(expected, abs=0.005 + 1e-4)
    return loc, scale, apart


def test_location_scale_and_modes_follow_the_mouse(show):
    page = show("directions")
    assert check(page) == START
    moves = [(0, 90), (1, -30), (0, -200), (2, -70), (1, 60), (2, 20)]
    follow_mouse(page, check, moves, lambda i, before: 2.0 if i == 2 else 1.0)


@in_file
def test_every_handle_follows_the_keys(show):
    follow_keys(show("directions"), check, [(-8, 8), (0.05, 8), (0, 16)])


def test_the_buttons_go_to_the_optima(show):
    page = show("directions")
    for direction, name, at in (("q ‖ p", "reverse", (3.0, 0.7)), ("p ‖ q", "forward", (0.0, 3.08))):
        page.get_by_role("button", name=f"Go to the least KL({direction})").click()
        assert check(page)[:2] == at
        assert number(page, name) == number(page, f"{name}-least")
    pull(page, sliders(page)[0], -30)
    page.get_by_role("button", name="Go to the least KL(q").click()
    assert check(page)[:2] == (-3.0, 0.7), "the optimum on the side of q"
    page.get_by_role("button", name="again").click()
    assert check(page) == START


@in_file
def test_the_best_reverse_normal_leaves_both_modes_for_one(show):
    """It lies between the modes while they are near, and jumps onto one of them at 5.6 of their scales."""
    page = show("directions")
    for apart, two in ((6.0, True), (4.0, True), (3.9, False), (2.0, False)):
        sliders(page)[2].focus()
        while values(page)[2] > apart + 1e-9:
            page.keyboard.press("ArrowLeft")
        check(page)
        assert page.locator(".bnn-best.bnn-posterior").count() == (2 if two else 1)
        assert page.locator(".bnn-best.bnn-prior").count() == 1


@in_file
def test_it_agrees_with_the_library(show):
    page = show("directions")
    pull(page, sliders(page)[0], -40)
    loc, scale, apart = values(page)
    q = Normal(double(loc), double(scale))
    modes = Normal(double([-apart / 2, apart / 2]), double(MODE))
    p = MixtureSameFamily(Categorical(double([0.5, 0.5])), modes)
    generator = torch.Generator().manual_seed(0)
    for name, pair in {"reverse": (q, p), "forward": (p, q)}.items():
        estimate = kl(*pair, draws=100_000, generator=generator)
        assert not estimate.exact
        shown = float(number(page, name))
        assert shown == pytest.approx(float(estimate), abs=5 * float(estimate.standard_error) + 5e-4)
    best = fit_forward_kl(p)
    assert number(page, "forward-at") == f"{text(best.mean, 2)} ± {text(best.stddev, 2)}"


@in_file
def test_the_curves_drawn_are_the_densities_meant(show):
    page = show("directions")
    for name, kind, at in (("data", "line", (1.0, 1.5)), ("likelihood", "shade", (0.0, 3.08))):
        assert moments(page, name, (-8, 8), kind) == pytest.approx(at, abs=0.02)
    (x, target), (_, q) = (drawn(page, *what).numpy() for what in (("likelihood", "shade"), ("data", "line")))
    base = max(target.max(), q.max())
    ratio = np.exp(log_p(3.0, 6.0)) / norm.pdf(0, 0, 1.5)
    assert (base - target.min()) / (base - q.min()) == pytest.approx(ratio, rel=0.02)
    peak = (x[target.argmin()] - x[0]) / (x[-1] - x[0]) * 16 - 8
    assert abs(peak) == pytest.approx(3.0, abs=0.03)
