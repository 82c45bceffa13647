"""The site is a folder: it needs no server, no network, and holds all that it links to."""

import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from notebooks import toc_pages


class Links(HTMLParser):
    """Where a page points to, and where it can be pointed at."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.targets: list[str] = []
        self.anchors: set[str] = {"", "top"}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {given.get("id") or "", given.get("name") or ""}
        if tag == "a" and given.get("href"):
            self.targets.append(given["href"])
        elif tag in ("img", "script", "iframe", "source", "audio", "video") and given.get("src"):
            self.loads.append(given["src"])
        elif tag == "link" and given.get("href") and given.get("rel") not in ("canonical", "license"):
            self.loads.append(given["href"])


@cache
def links(path: Path) -> Links:
    parser = Links()
    parser.feed(path.read_text("utf8"))
    return parser


@pytest.fixture(params=[*toc_pages(), "search", "genindex"])
def html(request, site):
    return site / f"{request.param}.html"


def test_links_lead_somewhere(html):
    lost = []
    for link in links(html).targets + links(html).loads:
        address = urlsplit(link)
        if address.scheme or address.netloc:
            continue
        target = (html.parent / unquote(address.path)).resolve() if address.path else html
        there = target.is_file() and (target.suffix != ".html" or unquote(address.fragment) in links(target).anchors)
        if not there:
            lost.append(link)
    assert lost == []


def test_nothing_is_loaded_from_elsewhere(html):
    assert [link for link in links(html).loads if urlsplit(link).netloc] == []


def test_styles_load_nothing_from_elsewhere(site):
    remote = re.compile(r"url\(\s*['\"]?(?:https?:)?//[^)]*\)|@import[^;]*//[^;]*;")
    sheets = {str(path.relative_to(site)): path.read_text("utf8") for path in site.rglob("*.css")}
    assert "_static/page.css" in sheets
    assert {name: found for name, text in sheets.items() if (found := remote.findall(text))} == {}


@pytest.mark.browser
@pytest.mark.parametrize("page", ["index", "notation", "nets/regression"])
def test_it_works_from_the_file_system(page, site, open_page):
    visit = open_page((site / f"{page}.html").as_uri())
    assert visit.strangers(site.as_uri()) == []
    assert visit.failed + visit.errors == []
    assert visit.ask("formulas") + visit.ask("figures") == []
    fonts = visit.page.evaluate("() => [...document.fonts].filter(f => f.status === 'loaded').map(f => f.family)")
    assert {"Source Serif 4", "Inter"} <= {name.strip('"') for name in fonts}
