"""Every page of the table of contents, as a reader sees it."""

import pytest

from notebooks import toc_pages

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module", params=toc_pages())
def visit(request, open_page, host):
    return open_page(f"{host}{request.param}.html")


@pytest.fixture
def phone(visit):
    visit.narrow(True)
    yield visit
    visit.narrow(False)


@pytest.fixture(params=["light", "dark"])
def themed(request, visit):
    visit.theme(request.param)
    yield visit
    visit.theme("light")


def test_it_asks_no_other_host(visit, host):
    assert visit.strangers(host) == []


def test_nothing_is_missing(visit):
    assert visit.failed == []


def test_no_script_fails(visit):
    assert visit.errors == []


def test_formulas_are_set(visit):
    assert visit.ask("formulas") == []


def test_figures_are_there_and_described(visit):
    assert visit.ask("figures") == []


def test_it_fits_a_phone(phone):
    assert phone.ask("overflow") == []


def test_text_is_readable(themed):
    assert themed.ask("contrast") == []


def test_the_page_is_light_or_dark(visit):
    visit.theme("dark")
    assert visit.ask("brightness") < 0.15
    assert visit.ask("dark_figures") == []
    visit.theme("light")
    assert visit.ask("brightness") > 0.95


def test_solutions_are_folded_and_open(open_page, host):
    page = open_page(f"{host}nets/regression.html").page
    solutions = page.locator("div.solution")
    assert solutions.count() > 0
    for solution in solutions.all():
        inside = solution.locator("section").locator("p, pre, img").first
        assert not inside.is_visible()
        solution.locator("p.admonition-title").click()
        inside.wait_for(state="visible")


def test_drawing_code_is_folded_and_opens(open_page, host):
    """A cell that only draws shows its figure; its code comes on demand, by mouse and by key."""
    page = open_page(f"{host}nets/regression.html").page
    folds = page.locator("details.hide")
    assert folds.count() > 0
    for i, fold in enumerate(folds.all()):
        code, summary = fold.locator("pre"), fold.locator("summary")
        assert not code.is_visible()
        assert fold.locator("xpath=..").locator("img").is_visible()
        assert "Code of this figure" in summary.inner_text()
        summary.click() if i % 2 else summary.press("Enter")
        code.wait_for(state="visible")
