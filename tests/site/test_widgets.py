"""The interactive figures in a browser: each handle is moved, and the numbers on the page are held against bnnlib."""

from __future__ import annotations

import functools
import http.server
import itertools
import json
import math
import re
import threading

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from bnnlib.bayes import normal_normal
from bnnlib.normal import log_density
from bnnlib.widgets import normal_density, posterior_update

pytestmark = pytest.mark.browser

NOISE = 0.2
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
# A script that comes with innerHTML does not run. JupyterLab puts a new one in its place.
AS_JUPYTER = """html => {
  const host = document.createElement("div");
  host.innerHTML = html;
  document.body.append(host);
  for (const dead of host.querySelectorAll("script")) {
    const live = document.createElement("script");
    live.textContent = dead.textContent;
    dead.replaceWith(live);
  }
}"""


def widgets():
    return {
        "update": posterior_update(Normal(5.0, 0.5), [5.5, 5.61, 4.88], scale=NOISE),
        "empty": posterior_update(Normal(0.0, 1.0), scale=1.0),
        "density": normal_density(),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pages that hold one figure each, and nothing else."""
    path = tmp_path_factory.mktemp("widgets")
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><link rel="icon" href="data:,"><title>t</title>'
    head += '<meta name="viewport" content="width=device-width"><body>'
    for name, widget in widgets().items():
        (path / f"{name}.html").write_text(head + widget.html, "utf8")
    (path / "blank.html").write_text(head, "utf8")
    return path


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module", params=["file", "http"])
def home(request, folder):
    """Where the pages are: in the file system, or on a server."""
    if request.param == "file":
        yield folder.as_uri() + "/"
        return
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def show(open_page, home):
    """Open a page; at the end nothing may have failed and no other host may have been asked."""
    opened = []

    def visit(name):
        opened.append(open_page(f"{home}{name}.html"))
        return opened[-1].page

    yield visit
    for visited in opened:
        assert visited.errors + visited.failed + visited.strangers(home) == []
        visited.page.close()


def sliders(page):
    return page.get_by_role("slider").all()


def value(slider):
    """A handle's value, which a screen reader is told as it is printed."""
    now = float(slider.get_attribute("aria-valuenow"))
    assert float(slider.get_attribute("aria-valuetext").replace("−", "-")) == now
    return now


def values(page):
    return [value(slider) for slider in sliders(page)]


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


def drawn(page, name):
    """The points of a curve, in pixels."""
    points = page.evaluate(
        """name => document.querySelector(`.bnn-line.bnn-${name}`).getAttribute("d").slice(1).split("L")
        .map(point => point.split(" ").map(Number))""",
        name,
    )
    return double(points).T


def apex_is_at_its_handle(page, name):
    """Whether the curve is as high as the handle on its top."""
    handle = sliders(page)[0].get_attribute("transform")
    return float(drawn(page, name)[1].min()) == pytest.approx(float(re.findall(r"[\d.]+", handle)[1]), abs=1)


def moments(page, name, limits):
    """Mean and standard deviation of a curve as it is drawn."""
    x, y = drawn(page, name)
    x = limits[0] + (x - x[0]) / (x[-1] - x[0]) * (limits[1] - limits[0])
    weight = y.max() - y
    mean = (weight * x).sum() / weight.sum()
    return float(mean), float(((weight * (x - mean) ** 2).sum() / weight.sum()).sqrt())


def test_prior_and_observations_follow_the_mouse(show):
    page = show("update")
    assert check_update(page) == (5.0, 0.5, 5.5, 5.61, 4.88)
    for i, by in [(0, -90), (1, 40), (2, 60), (4, -30), (0, 200), (1, -60)]:
        before = values(page)
        pull(page, sliders(page)[i], by)
        after = check_update(page)
        assert after[i] == pytest.approx(before[i] + by / unit(page), abs=0.006)
        assert [v for j, v in enumerate(after) if j != i] == [v for j, v in enumerate(before) if j != i]


def test_location_scale_and_range_follow_the_mouse(show):
    page = show("density")
    assert check_density(page) == (0.0, 1.0, 1.0)
    for i, by in [(2, 70), (1, -58), (0, 130), (2, 5), (1, 20), (0, -60), (1, -13)]:
        before = values(page)
        pull(page, sliders(page)[i], by)
        after = check_density(page)
        slope = 1 / before[1] if i == 2 else 1
        assert after[i] == pytest.approx(before[i] + slope * by / unit(page), abs=0.006)
        assert [v for j, v in enumerate(after) if j != i] == [v for j, v in enumerate(before) if j != i]
    assert ", above 1" in number(page, "height")


STEPS = {"ArrowRight": 0.05, "ArrowUp": 0.05, "ArrowLeft": -0.05, "ArrowDown": -0.05, "PageUp": 0.5, "PageDown": -0.5}


@pytest.mark.parametrize(
    ("name", "check", "ranges"),
    [
        ("update", check_update, [(3.5, 6.5), (0.05, 1.5), (3.5, 6.5), (3.5, 6.5), (3.5, 6.5)]),
        ("density", check_density, [(-5, 5), (0.05, 5), (0.1, 4)]),
    ],
)
def test_every_handle_follows_the_keys(show, name, check, ranges):
    page = show(name)
    page.evaluate("document.body.style.minHeight = '4000px'")
    for i, (low, high) in enumerate(ranges):
        slider = sliders(page)[i]
        slider.focus()
        for key, step in STEPS.items():
            before = value(slider)
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


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", ["update", "density"])
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
        """() => [...document.querySelectorAll(".bnn-line, .bnn-dot, .bnn-axis, .bnn-widget text, .bnn-name, button")]
        .map(e => [e.classList.value || e.tagName, e.matches(".bnn-line, .bnn-axis") ? getComputedStyle(e).stroke
        : e.matches("text, .bnn-dot") ? getComputedStyle(e).fill : getComputedStyle(e).color])"""
    )
    assert len(inks) > 8
    behind = page.evaluate(LUMINANCE, background)
    for what, ink in inks:
        bright = page.evaluate(LUMINANCE, ink)
        ratio = (max(bright, behind) + 0.05) / (min(bright, behind) + 0.05)
        assert ratio >= 4.5, f"{what} is {ink} on {background}"


@pytest.mark.parametrize("name", ["update", "density"])
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


@pytest.mark.parametrize("name", ["update", "density"])
def test_tick_labels_do_not_touch(show, name):
    page = show(name)
    for width in (1280, 360):
        page.set_viewport_size({"width": width, "height": 800})
        page.wait_for_function("w => document.querySelector('svg').getAttribute('width') <= w", arg=width)
        labels = [t.bounding_box() for t in page.locator("svg text[text-anchor=middle]").all()]
        assert len(labels) >= 3
        assert all(a["x"] + a["width"] + 6 < b["x"] for a, b in itertools.pairwise(labels))
    page.set_viewport_size({"width": 1280, "height": 900})


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


def test_it_starts_once_wherever_jupyter_puts_it(show):
    page = show("blank")
    for i, name in enumerate(["update", "update", "density"]):
        page.evaluate(AS_JUPYTER, widgets()[name].html)
        page.wait_for_function("n => document.querySelectorAll('.bnn-widget > svg').length === n", arg=i + 1)
        if i == 0:
            page.get_by_role("button", name="Add").click()
    assert page.locator("svg").count() == 3
    handles = [page.locator(".bnn-widget").nth(i).get_by_role("slider").count() for i in range(3)]
    assert handles == [6, 5, 3], "the second output leaves the first as it is"


def test_one_that_is_hidden_at_first_is_drawn_when_it_shows(show):
    page = show("blank")
    page.evaluate("document.body.style.display = 'none'")
    page.evaluate(AS_JUPYTER, widgets()["density"].html)
    page.evaluate("document.body.style.display = ''")
    page.wait_for_selector(".bnn-line")
    assert check_density(page) == (0.0, 1.0, 1.0)


@pytest.mark.parametrize(("where", "check"), [("bayes/updating", "posterior"), ("normal/density", "height")])
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
