"""The figure of BatchNorm in a browser: its numbers against bnnlib's layer, which goes through the same steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bnnlib.batchnorm import BatchNorm, RunningStatistics, forward
from widget_page import double, follow_keys, follow_mouse, in_file, near, number, sliders, values

pytestmark = pytest.mark.browser

START = (0.0, 1.0, 0.5, 1.2, 1.9, 2.6, 3.8)  # beta, gamma, the batch


class Shown:
    """A page and a layer of bnnlib that has had as many training steps, with the same batches."""

    def __init__(self, page, momentum=0.1, eps=1e-5):
        self.page = page
        self.layer = BatchNorm(1, eps=eps, momentum=momentum).double().requires_grad_(False)
        self.stored = RunningStatistics.start(1, momentum, torch.float64)

    def read(self):
        beta, gamma, *x = values(self.page)
        self.layer.weight.fill_(gamma)
        self.layer.bias.fill_(beta)
        return double(x)[:, None]

    def step(self, press):
        x = self.read()
        press()
        self.layer.train()(x)
        self.stored = self.stored.update(x)

    def check(self, page=None):
        """Hold every number against bnnlib; return the values of the handles."""
        page, x = self.page, self.read()
        done = forward(x, self.layer.weight, self.layer.bias, self.layer.eps)
        near(page, "mean", done.mean, 3)
        near(page, "biased", x.var(0, correction=0), 3)
        near(page, "unbiased", x.var(0, correction=1), 3)
        near(page, "stored-mean", self.stored.mean, 3)
        near(page, "stored-variance", self.layer.running_var, 3)
        near(page, "gamma", self.layer.weight, 2)
        near(page, "beta", self.layer.bias, 2)
        near(page, "normalised", done.unit[:, 0], 2)
        near(page, "training", done.z[:, 0], 2)
        near(page, "evaluation", self.layer.eval()(x)[:, 0], 2)
        assert number(page, "steps") == str(self.stored.batches)
        names = page.locator(".bnn-numbers").inner_text()
        assert f"over m = {len(x)}" in names
        assert f"over m − 1 = {len(x) - 1}" in names
        return tuple(values(page))


def button(page, name):
    return page.get_by_role("button", name=name)


def test_batch_scale_and_shift_follow_the_mouse(show):
    shown = Shown(show("batchnorm"))
    assert shown.check() == START
    moves = [(2, -90), (6, 40), (1, 150), (0, -60), (1, -290), (4, 30), (0, 90)]
    follow_mouse(shown.page, shown.check, moves)
    assert shown.check()[1] < 0, "the scale may be negative"


@in_file
def test_every_handle_follows_the_keys(show):
    shown = Shown(show("batchnorm"))
    shown.step(button(shown.page, "One training step").click)
    follow_keys(shown.page, shown.check, [(-5, 5)] * 7)


@pytest.mark.parametrize(
    ("name", "momentum", "eps"), [("batchnorm", 0.1, 1e-5), ("average", None, 0.1)], ids=["moving", "average"]
)
def test_a_training_step_updates_what_is_stored_and_nothing_else_does(show, name, momentum, eps):
    shown = Shown(show(name), momentum, eps)
    page = shown.page
    before = shown.check()
    shown.step(button(page, "One training step").click)
    assert shown.check() == before
    sliders(page)[2].focus()
    page.keyboard.press("PageUp")
    assert shown.check()[2] == pytest.approx(before[2] + 0.5)
    for _ in range(3):
        shown.step(lambda: page.keyboard.press("Enter"))
        page.keyboard.press("ArrowLeft")
        shown.check()
    assert page.evaluate("document.activeElement.getAttribute('role')") == "slider"
    # The button presses itself once a step, so that one press goes with each of the layer's.
    for i in range(10):
        shown.step(button(page, "Ten").click if i == 0 else lambda: None)
    shown.check()
    button(page, "again").click()
    assert Shown(page, momentum, eps).check() == before


@in_file
def test_evaluation_settles_on_the_larger_variance(show):
    page = show("batchnorm")
    for _ in range(20):
        button(page, "Ten").click()
    training, evaluation = (double([float(v.replace("−", "-")) for v in number(page, k).split()])
                            for k in ("training", "evaluation"))  # fmt: skip
    assert number(page, "stored-variance") == number(page, "unbiased")
    torch.testing.assert_close(evaluation, training * (4 / 5) ** 0.5, rtol=0, atol=0.01)


@in_file
def test_a_batch_has_from_two_to_eight_values(show):
    shown = Shown(show("batchnorm"))
    page = shown.page
    add, remove = button(page, "Add"), button(page, "Remove")
    strip = page.locator(".bnn-strip")
    strip.click(position={"x": strip.bounding_box()["width"] / 5, "y": 4})
    assert shown.check()[-1] == pytest.approx(-3, abs=0.02)
    add.click()
    add.click()
    assert len(shown.check()) == 2 + 8
    assert add.is_disabled()
    strip.click(position={"x": 30, "y": 4})
    assert len(shown.check()) == 2 + 8
    page.set_viewport_size({"width": 360, "height": 740})
    page.wait_for_function("document.querySelector('svg').getAttribute('width') < 360")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360, "lists of eight numbers go on in a second line"
    page.set_viewport_size({"width": 1280, "height": 900})
    for _ in range(4):
        remove.click()
        shown.check()
    sliders(page)[3].press("Delete")
    assert shown.check()[2:] == (0.5, 1.9, 2.6)
    for _ in range(3):
        page.keyboard.press("Backspace")
    shown.step(button(page, "One training step").click)
    assert len(shown.check()) == 2 + 2, "a variance needs two values"
    assert remove.is_disabled()


@in_file
def test_a_constant_batch_is_normalised_to_zero(show):
    shown = Shown(show("average"), None, 0.1)
    sliders(shown.page)[2].focus()
    shown.page.keyboard.press("End")
    sliders(shown.page)[3].focus()
    shown.page.keyboard.press("End")
    shown.check()
    assert number(shown.page, "normalised").split() == ["0.00", "0.00"]


def places(page, selector, attribute):
    """Where elements stand, as values of the axis, which is known from two handles."""
    across = [float(s.get_attribute("transform")[10:].split(" ")[0]) for s in sliders(page)]
    handles = [*zip(across, values(page), strict=True)][2:]
    (a, left), (b, right) = min(handles), max(handles)
    found = page.eval_on_selector_all(selector, f"all => all.map(e => Number(e.getAttribute('{attribute}')))")
    return left + (np.array(found) - a) / (b - a) * (right - left)


@in_file
def test_dots_and_bars_stand_where_the_numbers_say(show):
    shown = Shown(show("batchnorm"))
    page = shown.page
    sliders(page)[1].press("PageUp")
    sliders(page)[0].press("ArrowLeft")
    shown.step(button(page, "One training step").click)
    shown.check()
    x = shown.read()
    done = forward(x, shown.layer.weight, shown.layer.bias)
    layer = shown.layer.eval()
    unit = (x - layer.running_mean) / (layer.running_var + layer.eps).sqrt()
    for ink, dots in {"posterior": (done.unit, done.z), "prior": (unit, layer(x))}.items():
        expected = torch.cat(dots)[:, 0].numpy()
        inside = expected[abs(expected) <= 5]
        np.testing.assert_allclose(places(page, f"circle.bnn-point.bnn-{ink}", "cx"), inside, atol=0.01)
        assert page.locator(f"path.bnn-point.bnn-{ink}").count() == len(expected) - len(inside)
    for ink, mean, var in (
        ("posterior", done.mean, done.var),
        ("prior", layer.running_mean, layer.running_var),
    ):
        ends = [places(page, f"line.bnn-line.bnn-{ink}", end)[0] for end in ("x1", "x2")]
        np.testing.assert_allclose(ends, [float(mean - var.sqrt()), float(mean + var.sqrt())], atol=0.01)
    assert page.locator("path.bnn-point.bnn-prior").count() == 1, "one output of evaluation is off the axis"
