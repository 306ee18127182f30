"""The web pages that `make site` builds, in a real browser: phone, desktop, light and dark."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from lxml import html

from tests.browser import BROWSER, FLAGS, needs_browser
from tests.http_server import listening

playwright = pytest.importorskip(
    "playwright.sync_api", reason="drives a browser: install playwright"
)
axe = pytest.importorskip(
    "axe_playwright_python.sync_playwright", reason="judges pages: install axe-playwright-python"
)
ROOT = Path(__file__).resolve().parents[2]
RECIPES = tomllib.loads((ROOT / "notebooks" / "recipes.toml").read_text("utf-8"))["recipe"]
SITE = "https://nim-rag-cookbook.github.io/nim-rag-cookbook/"
ATOM = "{http://www.w3.org/2005/Atom}"
# WCAG's levels A and AA, contrast and alt text among them, and the order of headings.
REACHED = """[...document.querySelectorAll("pre")].every(
    code => code.scrollWidth <= code.clientWidth || code.tabIndex === 0)"""
RULES = {
    "runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"],
    "rules": {"heading-order": {"enabled": True}, "page-has-heading-one": {"enabled": True}},
    "preload": False,  # axe would fetch a style sheet's imports from where the page is
}
pytestmark = [
    pytest.mark.long,
    pytest.mark.network,  # Chromium looks up its maker's hosts whenever it starts
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built pages."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, ROOT / "tools" / "build_site.py", "--to", folder]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, html.HtmlElement]:
    """Each page by its path; the theme's own files are none."""
    paths = [path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]
    return {p.relative_to(site).as_posix(): html.parse(str(p)).getroot() for p in paths}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with listening(functools.partial(Quiet, directory=str(site))) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=BROWSER, args=FLAGS)
        try:
            yield chromium
        finally:
            chromium.close()


def test_every_recipe_has_a_page_with_its_header(pages: dict[str, html.HtmlElement]) -> None:
    for recipe in RECIPES:
        page = pages[f"notebooks/{Path(recipe['file']).stem}.html"]
        assert page.xpath("string(//h1)").startswith(recipe["title"])
        (facts,) = page.find_class("facts")
        names = [name.text for name in facts.iter("dt")]
        assert names == ["Level", "Minutes", "Packages", "Last verified", "Weights", "Run it"]
        values = [value.text_content() for value in facts.iter("dd")]
        assert values[:3] == [recipe["level"], str(recipe["minutes"]), " ".join(recipe["packages"])]
        assert all(f"{role}: " in values[4] for role in recipe["endpoints"])
        assert page.find_class("cell_output"), "the stored outputs are missing"


def test_the_navigation_has_all_recipes_by_part(pages: dict[str, html.HtmlElement]) -> None:
    (navigation,) = pages["index.html"].find_class("bd-links")
    text = navigation.text_content()
    wanted = ["First answers", "00 ", "02 ", "Retrieval", "03 ", "08 ", "Models", "09 ", "10 "]
    places = [text.index(word) for word in [*wanted, "Production", "11 ", "14 "]]
    assert places == sorted(places)


def test_every_page_has_one_title_and_words_for_its_pictures(
    pages: dict[str, html.HtmlElement],
) -> None:
    for name in pages.keys() - {"search.html"}:
        (article,) = pages[name].find_class("bd-article")
        assert len(article.findall(".//h1")) == 1, name
        assert all(image.get("alt", "").strip() for image in article.iter("img")), name


def test_links_lead_somewhere(site: Path, pages: dict[str, html.HtmlElement]) -> None:
    lost = []
    for name, page in pages.items():
        for element, attribute, link, _ in page.iterlinks():
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or attribute not in ("href", "src"):
                continue
            file = os.path.normpath(os.path.join(os.path.dirname(name), unquote(parts.path)))
            target = name if not parts.path else file
            if not (site / target).is_file():
                lost.append((name, link))
            elif parts.fragment and element.tag == "a" and target in pages:
                ids = pages[target].xpath("//@id")
                if unquote(parts.fragment) not in ids:
                    lost.append((name, link))
    assert lost == []


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_and_can_be_read_by_all(
    browser: playwright.Browser, address: str, pages: dict[str, html.HtmlElement], scheme: str
) -> None:
    faults: list[str] = []
    view = browser.new_page(color_scheme=scheme)
    view.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    view.on("pageerror", lambda error: faults.append(str(error)))
    view.on(
        "request",
        lambda sent: (
            faults.append(sent.url) if not sent.url.startswith((address, "data:")) else None
        ),
    )
    for name in pages:
        view.goto(f"{address}/{name}")
        assert view.evaluate("document.documentElement.dataset.theme") == scheme
        for width in (390, 1280):
            view.set_viewport_size({"width": width, "height": 844})
            wide = view.evaluate("document.documentElement.scrollWidth")
            if wide > width:
                faults.append(f"{name} is {wide} pixels wide where {width} are there")
        # The theme lets the keyboard reach code that scrolls a moment after the width changes.
        view.wait_for_function(REACHED)
        for fault in axe.Axe().run(view, options=RULES).response["violations"]:
            places = [node["html"][:200] for node in fault["nodes"]]
            faults.append(f"{name}: {fault['id']} ({len(places)}): {places[0]}")
    view.close()
    assert faults == []


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_search_finds_a_recipe(browser: playwright.Browser, address: str, width: int) -> None:
    view = browser.new_page(viewport={"width": width, "height": 844})
    view.goto(address)
    view.locator(".search-button:visible, .search-button__button:visible").first.click()
    box = view.locator("input[type=search]:visible").first
    box.fill("cross-encoder")
    box.press("Enter")
    found = view.locator("#search-results a[href*='05_hybrid_and_reranking']").first
    playwright.expect(found).to_be_visible()
    found.click()
    playwright.expect(view.locator("h1").first).to_contain_text("Hybrid retrieval")
    view.close()


def test_the_feed_tells_the_changes(site: Path, pages: dict[str, html.HtmlElement]) -> None:
    feed = ElementTree.parse(site / "feed.xml").getroot()
    entries = feed.findall(f"{ATOM}entry")
    assert entries[0].findtext(f"{ATOM}title") == "Unreleased"
    for entry in entries:
        assert entry.findtext(f"{ATOM}content")
        link = entry.find(f"{ATOM}link")
        assert link is not None
        page, _, anchor = link.attrib["href"].removeprefix(SITE).partition("#")
        assert anchor in pages[page].xpath("//@id")
    (announced,) = pages["index.html"].xpath("//link[@type='application/atom+xml']/@href")
    assert (site / announced).is_file()
