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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, sync_playwright

from notebooks import ROOT, toc_pages

# The sandbox needs rights that a container has not; the rest keeps Chromium from asking anyone anything by itself.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}
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


@pytest.fixture(scope="session")
def host(site: Path) -> Iterator[str]:
    """The address of a server on this machine that serves the site."""
    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


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
