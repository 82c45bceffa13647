"""The built site, served to a real browser.

Without a site or a Chromium these tests are skipped, except where CI=true: there they fail.
"""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, sync_playwright

from notebooks import ROOT, toc_pages

# Not imported before this line: its assertions are to say what they saw.
pytest.register_assert_rewrite("widget_page")

# The sandbox needs rights that a container has not; the rest keeps Chromium from asking anyone anything by itself.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}
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
LOOK = (Path(__file__).parent / "look.js").read_text("utf8")


def unavailable(reason: str) -> None:
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


@pytest.fixture(scope="session")
def site() -> Path:
    """The folder of the built site, whole."""
    folder = Path(os.environ.get("SITE", ROOT / "_build/html"))
    missing = [page for page in toc_pages() if not (folder / f"{page}.html").exists()]
    if missing:
        unavailable(f"{folder} has no page {', '.join(missing)}: run `make book`")
    return folder


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """The address of a server on this machine."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="session")
def host(site: Path) -> Iterator[str]:
    """The address of a server that serves the site."""
    with serve(site) as address:
        yield address


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    chromium = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
    if chromium is None:
        unavailable("no Chromium here: install it, on Debian with `apt-get install chromium`")
    with sync_playwright() as playwright:
        profile = tmp_path_factory.mktemp("profile")
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=chromium, headless=True, args=FLAGS, viewport=DESKTOP
        )
        context.set_default_timeout(30_000)
        yield context
        context.close()


@dataclass
class Visit:
    """One page as a reader opened it, and all that the browser said about it."""

    page: Page
    asked: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def ask(self, what: str) -> Any:
        """The answer of one of the functions in look.js."""
        return self.page.evaluate(f"() => {{ {LOOK}; return look.{what}() }}")

    def strangers(self, home: str) -> list[str]:
        """What the page asked of others than its own site."""
        return [url for url in self.asked if not url.startswith((home, "data:", "blob:"))]

    def theme(self, name: str) -> None:
        """What a click on the theme's switch ends in."""
        self.page.evaluate("name => { document.documentElement.dataset.theme = name }", name)

    def narrow(self, is_phone: bool) -> None:
        self.page.set_viewport_size(PHONE if is_phone else DESKTOP)


@pytest.fixture(scope="module")
def open_page(browser: BrowserContext) -> Iterator[Callable[[str], Visit]]:
    """Open an address and wait until its formulas are set."""
    opened = []

    def visit(address: str) -> Visit:
        page = browser.new_page()
        seen = Visit(page)
        page.on("request", lambda request: seen.asked.append(request.url))
        page.on("requestfailed", lambda request: seen.failed.append(f"{request.url}: {request.failure}"))
        page.on("response", lambda r: seen.failed.append(f"{r.url}: {r.status}") if r.status >= 400 else None)
        page.on("pageerror", lambda error: seen.errors.append(str(error)))
        page.on("console", lambda message: seen.errors.append(message.text) if message.type == "error" else None)
        page.goto(address, wait_until="load")
        page.evaluate("() => window.MathJax?.startup?.promise")
        # Not "networkidle", which now and then never comes: what is measured are fonts and pictures.
        page.evaluate("() => document.fonts.ready")
        page.wait_for_function("() => [...document.images].every(image => image.complete)")
        page.add_style_tag(content="*, ::before, ::after { transition: none !important }")  # measure ends, not ways
        opened.append(page)
        return seen

    yield visit
    for page in opened:
        page.close()


@pytest.fixture(scope="session")
def figures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages that hold one interactive figure each, and nothing else."""
    from widget_page import widgets

    path = tmp_path_factory.mktemp("widgets")
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><link rel="icon" href="data:,"><title>t</title>'
    head += '<meta name="viewport" content="width=device-width"><body>'
    for name, widget in widgets().items():
        (path / f"{name}.html").write_text(head + widget.html, "utf8")
    (path / "blank.html").write_text(head, "utf8")
    return path


@pytest.fixture(scope="module", params=["file", "http"])
def home(request: pytest.FixtureRequest, figures: Path) -> Iterator[str]:
    """Where these pages are: in the file system, or on a server."""
    if request.param == "file":
        yield figures.as_uri() + "/"
        return
    with serve(figures) as address:
        yield address


@pytest.fixture
def show(open_page: Callable[[str], Visit], home: str) -> Iterator[Callable[[str], Page]]:
    """Open one of these pages; at the end nothing may have failed and no other host may have been asked."""
    opened = []

    def visit(name: str) -> Page:
        opened.append(open_page(f"{home}{name}.html"))
        return opened[-1].page

    yield visit
    for visited in opened:
        assert visited.errors + visited.failed + visited.strangers(home) == []
        visited.page.close()


@pytest.fixture
def insert() -> Callable[[Page, str], None]:
    """Put a figure into a page as JupyterLab does."""
    from widget_page import widgets

    return lambda page, name: page.evaluate(AS_JUPYTER, widgets()[name].html)
