"""The search box finds a word on the page that it is on."""

import pytest

pytestmark = pytest.mark.browser

WORDS = {
    "aleatoric": "notation.html",
    "quintic": "nets/regression.html",
    "mean_field": "api/nets.html",
    "crps": "api/predictive.html",
    "Coker": "references.html",
}


@pytest.mark.parametrize(("word", "page"), WORDS.items())
def test_search_finds(word, page, host, open_page):
    visit = open_page(f"{host}search.html?q={word}")
    visit.page.wait_for_selector("#search-results li a, #search-results p.search-summary:has-text('did not')")
    visit.page.wait_for_load_state("networkidle")
    found = visit.page.eval_on_selector_all("#search-results li > a", "links => links.map(a => a.getAttribute('href'))")
    assert page in {link.split("#")[0].split("?")[0] for link in found}
    assert visit.failed + visit.errors == []


def test_the_search_button_opens_the_box(host, open_page):
    visit = open_page(f"{host}index.html")
    visit.page.get_by_role("button", name="Search").first.click()
    visit.page.keyboard.type("prior")
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_url("**/search.html?q=prior*")
