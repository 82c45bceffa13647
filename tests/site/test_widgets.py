"""What holds of every interactive figure: it stands out, fits a phone, starts in Jupyter, and is in its chapter."""

from __future__ import annotations

import itertools
import json
import re

import pytest

from widget_page import in_file, number, pull, sliders, unit, values

pytestmark = pytest.mark.browser

NAMES = ["update", "density", "batchnorm", "directions"]
# Backgrounds of the book's site and of JupyterLab, by what says that they are there.
THEMES = {
    "site-light": ("html", "theme", "light", "#fdfcf9"),
    "site-dark": ("html", "theme", "dark", "#15181d"),
    "lab-light": ("body", "jpThemeLight", "true", "#ffffff"),
    "lab-dark": ("body", "jpThemeLight", "false", "#111111"),
}
LUMINANCE = """(css) => {
  const paint = document.createElement("canvas").getContext("2d");
  paint.fillStyle = css;
  paint.fillRect(0, 0, 1, 1);
  const [r, g, b] = [...paint.getImageData(0, 0, 1, 1).data]
    .map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b;
}"""


@in_file
@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", NAMES)
def test_lines_and_words_stand_out_in_each_theme(show, name, theme):
    page, (element, key, state, background) = show(name), THEMES[theme]
    page.evaluate(
        """([element, key, state, background]) => {
        document.querySelector(element).dataset[key] = state;
        document.body.style.background = background;
        const dark = background < "#888888";
        document.body.style.setProperty("--pst-color-text-base", dark ? "#dcd8cf" : "#26241f");
    }""",
        [element, key, state, background],
    )
    inks = page.evaluate(
        """() => {
        const strokes = ".bnn-line, .bnn-best, .bnn-axis", fills = "text, .bnn-dot, .bnn-point";
        return [...document.querySelectorAll(`.bnn-widget :is(${strokes}, ${fills}, .bnn-name, button)`)].map(e => {
          const { stroke, fill, color } = getComputedStyle(e);
          return [e.classList.value || e.tagName, e.matches(strokes) ? stroke : e.matches(fills) ? fill : color];
        });
    }"""
    )
    assert len(inks) > 8
    behind = page.evaluate(LUMINANCE, background)
    for what, ink in inks:
        bright = page.evaluate(LUMINANCE, ink)
        ratio = (max(bright, behind) + 0.05) / (min(bright, behind) + 0.05)
        assert ratio >= 4.5, f"{what} is {ink} on {background}"


@in_file
@pytest.mark.parametrize("name", NAMES)
def test_it_fits_a_phone_and_lets_it_scroll(show, name):
    page = show(name)
    before = values(page)
    page.set_viewport_size({"width": 360, "height": 740})
    page.wait_for_function("document.querySelector('svg').getAttribute('width') < 360")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert values(page) == before
    for slider in sliders(page):
        box = slider.locator(".bnn-dot").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360
    pull(page, sliders(page)[0], 40)
    assert values(page)[0] == pytest.approx(before[0] + 40 / unit(page), abs=0.006)
    sizes = page.eval_on_selector_all("svg text", "all => all.map(t => t.getBoundingClientRect().height)")
    assert min(sizes) > 12, "letters do not shrink with the figure"
    touch = "e => getComputedStyle(e).touchAction"
    assert page.locator("svg").evaluate(touch) == "auto"
    assert sliders(page)[0].evaluate(touch) == "none"
    page.set_viewport_size({"width": 1280, "height": 900})


@in_file
@pytest.mark.parametrize("name", NAMES)
def test_tick_labels_do_not_touch(show, name):
    page = show(name)
    for width in (1280, 360):
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_function("w => document.querySelector('svg').getAttribute('width') <= w", arg=width)
        labels = [t.bounding_box() for t in page.locator("svg text[text-anchor=middle]").all()]
        assert len(labels) >= 3
        assert all(a["x"] + a["width"] + 6 < b["x"] for a, b in itertools.pairwise(labels))
    page.set_viewport_size({"width": 1280, "height": 900})


def test_it_starts_once_wherever_jupyter_puts_it(show, insert):
    page = show("blank")
    for i, name in enumerate(["update", "update", "density"]):
        insert(page, name)
        page.wait_for_function("n => document.querySelectorAll('.bnn-widget > svg').length === n", arg=i + 1)
        if i == 0:
            page.get_by_role("button", name="Add").click()
    assert page.locator("svg").count() == 3
    handles = [page.locator(".bnn-widget").nth(i).get_by_role("slider").count() for i in range(3)]
    assert handles == [6, 5, 3], "the second output leaves the first as it is"


CHAPTERS = {
    "bayes/updating": "posterior",
    "normal/density": "height",
    "batchnorm/statistics": "training",
    "variational/two_directions": "reverse",
}


@pytest.mark.parametrize(("where", "check"), CHAPTERS.items(), ids=CHAPTERS)
def test_the_chapter_has_it(site, host, open_page, where, check):
    visit = open_page(f"{host}{where}.html")
    page = visit.page
    before, was = number(page, check), values(page)[1]
    sliders(page)[1].scroll_into_view_if_needed()
    pull(page, sliders(page)[1], 25)
    assert values(page)[1] > was
    assert number(page, check) != before
    given = json.loads(re.search(r"^const given = (.*);$", page.content(), re.MULTILINE)[1])
    assert given["limits"][0] <= values(page)[0] <= given["limits"][1]
    visit.theme("dark")
    assert visit.ask("contrast") == []
    assert visit.errors + visit.failed == []
