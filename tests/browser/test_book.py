"""The rendered book as a reader's browser sees it, offline."""

import re
from urllib.parse import urlparse

import pytest
from bs4 import BeautifulSoup, Comment

pytestmark = pytest.mark.browser

WIDTHS = (1280, 390)


ENTRANCE = "index.html"  # only sends the browser on, so it has no page to check
MISSING = "404.html"  # shown at any address, so it stands alone


def pages(html):
    """Every page of the book, as paths relative to its folder."""
    found = [p.relative_to(html) for p in html.rglob("*.html")]
    names = sorted(str(p) for p in found if "_static" not in p.parts)
    return [name for name in names if name not in (ENTRANCE, MISSING)]


class Visit:
    """A page that was opened, and what went wrong while it loaded."""

    def __init__(self, browser, width):
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.faults = []
        self.page.on(
            "console",
            lambda m: self.faults.append(m.text) if m.type == "error" else None,
        )
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("requestfailed", self._failed)
        self.page.on("request", self._outside)

    def _failed(self, request):
        # Opening the next page cuts off what the last one still asks for.
        if request.failure != "net::ERR_ABORTED":
            self.faults.append(f"failed: {request.url[:120]}: {request.failure}")

    def _outside(self, request):
        if urlparse(request.url).hostname not in (None, "", "127.0.0.1"):
            self.faults.append(f"reaches outside: {request.url[:120]}")

    def open(self, address):
        self.faults.clear()
        self.page.goto(address, wait_until="load")
        return self.page


@pytest.fixture(params=WIDTHS)
def visit(browser, request):
    visit = Visit(browser, request.param)
    yield visit
    visit.page.close()


@pytest.fixture
def desktop(browser):
    visit = Visit(browser, WIDTHS[0])
    yield visit
    visit.page.close()


def test_every_page_loads_clean_from_files(visit, html):
    wrong = {}
    for name in pages(html):
        page = visit.open((html / name).as_uri())
        page.wait_for_timeout(100)
        broken = page.evaluate(
            "() => [...document.images].filter(i => i.complete && !i.naturalWidth)"
            ".map(i => i.src.slice(0, 120))"
        )
        faults = [*visit.faults, *(f"broken image {src}" for src in broken)]
        if faults:
            wrong[name] = faults
    assert not wrong


def test_on_a_desktop_no_table_hides_a_column(desktop, html):
    """On a phone it scrolls in its box; here all of it is seen, folds opened."""
    clipped = {}
    for name in pages(html):
        hidden = desktop.open((html / name).as_uri()).evaluate(
            """() => {
                document.querySelectorAll("details").forEach((d) => (d.open = true));
                return [...document.querySelectorAll(".bd-article table")]
                    .filter((table) => [table, table.parentElement]
                        .some((box) => box.scrollWidth > box.clientWidth + 1))
                    .map((table) => table.closest("[id]").id);
            }"""
        )
        if hidden:
            clipped[name] = hidden
    assert not clipped


def test_every_page_loads_clean_from_a_server(desktop, html, server):
    wrong = {}
    for name in pages(html):
        desktop.open(f"{server}/{name}")
        if desktop.faults:
            wrong[name] = list(desktop.faults)
    assert not wrong


def test_the_entrance_leads_into_the_book(desktop, html):
    desktop.page.goto((html / ENTRANCE).as_uri())
    desktop.page.wait_for_url("**/book/index.html")
    assert desktop.page.locator("article h1").count() == 1


def test_search_finds_the_sequencer(desktop, server):
    page = desktop.open(f"{server}/search.html?q=sequencer")
    page.wait_for_selector("#search-results li a", timeout=20_000)
    titles = page.locator("#search-results li a").all_inner_texts()
    assert any("sequencer" in title.lower() for title in titles)
    page.wait_for_selector("#search-results .context", timeout=20_000)
    for told in page.locator("#search-results .context").all_inner_texts():
        assert ".ipynb" not in told  # of a button


def test_the_chinese_abstract_is_chinese_and_has_glyphs(desktop, html):
    page = desktop.open((html / "book" / "abstract_zh.html").as_uri())
    assert page.evaluate("() => document.documentElement.lang") == "zh-Hant"
    text = page.locator("article").inner_text()
    chinese = [c for c in text if "\u4e00" <= c <= "\u9fff"]
    assert len(chinese) > 200
    # A character without a glyph is drawn as the same box as an unassigned one.
    missing = page.evaluate(
        """(characters) => {
            const article = document.querySelector("article p");
            const font = getComputedStyle(article).fontFamily;
            const draw = (character) => {
                const canvas = document.createElement("canvas");
                canvas.width = canvas.height = 40;
                const pen = canvas.getContext("2d");
                pen.font = `30px ${font}`;
                pen.fillText(character, 2, 32);
                return canvas.toDataURL();
            };
            const boxes = [draw("\\u{10FFFE}"), draw("\\u{0378}"), draw(" ")];
            return characters.filter((c) => boxes.includes(draw(c)));
        }""",
        sorted(set(chinese)),
    )
    assert not missing


def test_what_surrounds_the_chinese_abstract_is_chinese_or_says_that_it_is_english(
    html,
):
    page = (html / "book" / "abstract_zh.html").read_text()
    body = BeautifulSoup(page, "html.parser").body
    for part in body(["script", "kbd"]) + body(
        string=lambda text: type(text) is Comment
    ):
        part.extract()

    def is_foreign(text):
        return re.search(r"(?<![.\w])[A-Za-z]{3}", text) and not re.search(
            "[\u4e00-\u9fff]", text
        )

    spoken = [
        (tag, tag[name])
        for tag in body(True)
        for name in ("aria-label", "title", "placeholder", "data-bs-title")
        if name in tag.attrs
    ]
    written = [(text.parent, str(text)) for text in body.find_all(string=True)]
    assert len(spoken) > 20
    wrong = [
        text.strip()
        for tag, text in spoken + written
        for language in [tag.get("lang") or tag.find_parent(lang=True).get("lang")]
        if (is_foreign(text) and language != "en")
        or (re.search("[\u4e00-\u9fff]", text) and language == "en")
    ]
    assert not wrong


def test_every_formula_is_mathml_that_is_drawn(desktop, html):
    drawn = 0
    for name in pages(html):
        boxes = desktop.open((html / name).as_uri()).evaluate(
            "() => [...document.querySelectorAll('.math')].map((box) =>"
            " [box.textContent, box.querySelector('math')?.getBoundingClientRect()])"
        )
        bad = [text for text, box in boxes if not (box and box["width"] > 1)]
        assert not bad, f"{name} does not draw {bad}"
        drawn += len(boxes)
    assert drawn > 100


def test_no_page_shows_an_unrendered_role_or_a_traceback(desktop, html):
    for name in pages(html):
        if not name.startswith(("book/", "notebooks/")):
            continue
        article = desktop.open((html / name).as_uri()).locator("article")
        text = article.inner_text()
        for mark in ("{glue", "{cite", "{numref", "Traceback (most", "(prf:", "$$"):
            assert mark not in text, f"{name} shows {mark!r}"
        names = article.locator("code.std-numref, code.std-ref").all_inner_texts()
        assert not names, f"{name} shows names of what it refers to: {names}"
