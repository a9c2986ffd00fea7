"""Cards beside numbers and links: by pointer, by keys, by touch, on paper."""

import json
import re

import pytest
from bs4 import BeautifulSoup
from test_book import Visit, pages
from test_reading import violations

pytestmark = pytest.mark.browser

AUDIT = "book/audit.html"
CHAPTER = "notebooks/07_conclusions.html"  # which cites claims of every chapter
CARD = "#number-card"
DATA = "cards-data.js"
NUMBER = "article p .claim"
LONGER_MS = 600  # than a card waits before it comes or goes
LINKS = {
    "notebooks/03_enhanced_sequencer.html": [
        "references.html#id", "glossary.html#term-", "#fig-", "#tab-", "#sec-",
        "#alg-", "#equation-",
    ],
}  # fmt: skip


@pytest.fixture
def visit(browser, request):
    """A page of a width, which notes whatever goes wrong."""
    visit = Visit(browser, getattr(request, "param", 1280))
    yield visit
    visit.page.close()


@pytest.fixture(scope="module")
def cards(html):
    """The cards of the book by the address that they are of."""
    _, _, held = (html / "_static" / DATA).read_text().partition(" = ")
    return json.loads(held.rstrip(";\n"))


def shown(page):
    """The text of the card, once it is there."""
    page.locator(CARD).wait_for(state="visible", timeout=5_000)
    return page.locator(CARD).inner_text()


def is_shown(page):
    page.wait_for_timeout(LONGER_MS)
    return page.locator(CARD).is_visible()


def typed(text):
    """What a page says, without what Sphinx made of quotes and units."""
    return text.strip().translate({ord("’"): "'", ord("\N{NO-BREAK SPACE}"): " "})


def amounts(text):
    """Return the numbers of a text, without their signs."""
    return re.findall(r"\d[\d,.]*", text)


def test_every_number_of_a_claim_has_the_value_of_its_row(html, cards):
    audit = BeautifulSoup((html / AUDIT).read_text(), "html.parser")
    numbers = 0
    for name in pages(html):
        page = BeautifulSoup((html / name).read_text(), "html.parser")
        for number in page.select("article .claim"):
            anchor = number["class"][1]
            row = audit.find(id=anchor).find_parent("tr")
            says, value = (typed(cell.get_text()) for cell in row("td")[:2])
            card = BeautifulSoup(cards[f"{AUDIT}#{anchor}"], "html.parser")
            assert says.startswith(card.p.get_text()), f"{name}: {anchor}"
            shown_here = card.dd.get_text()
            if "−" in value:  # the card says "0.8 (0.3 to 1.4) % more" of −0.8
                expected = amounts(value)
                found = amounts(shown_here)[: len(expected)]
                assert sorted(found) == sorted(expected), f"{name}: {anchor}"
            else:
                assert shown_here.startswith(value), f"{name}: {anchor}"
            assert card.a["href"] == f"{AUDIT}#{anchor}"
            numbers += 1
    assert numbers > 100


def test_a_number_shows_its_card_to_a_pointer_which_may_enter_it(visit, html):
    page, asked = visit.open((html / CHAPTER).as_uri()), []
    page.on("request", lambda r: asked.append(r.url) if DATA in r.url else None)
    number, other = page.locator(NUMBER).nth(0), page.locator(NUMBER).nth(1)
    assert not asked, "nothing is loaded before it is asked for"
    number.hover()
    assert "Commit" in shown(page)
    assert number.get_attribute("aria-describedby") == CARD[1:]
    page.locator(f"{CARD} a").hover()
    assert is_shown(page)
    page.locator("article h1").hover()
    assert not is_shown(page)
    number.hover()
    first = shown(page)
    page.keyboard.press("Escape")
    assert not is_shown(page)
    other.hover()
    assert shown(page) != first
    assert number.get_attribute("aria-describedby") is None
    assert len(asked) == 1
    page.locator(f"{CARD} a").click()
    page.wait_for_url(f"**/{AUDIT}#claim-*")
    assert not visit.faults


def test_the_keyboard_shows_a_card_leaves_it_and_follows_it(visit, html):
    page = visit.open((html / CHAPTER).as_uri())
    number = page.locator("article a.claim").first
    page.locator("article a:not(.headerlink)").first.focus()
    for _ in range(100):
        if number.evaluate("(e) => e === document.activeElement"):
            break
        page.keyboard.press("Tab")
    said = shown(page)
    page.mouse.move(100, 300)
    assert is_shown(page), "it stays while the focus does"
    page.keyboard.press("Escape")
    assert not is_shown(page)
    assert number.evaluate("(e) => e === document.activeElement")
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Tab")
    assert shown(page) == said
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/{AUDIT}#claim-*")
    assert not visit.faults


def test_a_tap_on_a_number_shows_its_card_and_a_link_stays_a_link(browser, html):
    size = {"width": 390, "height": 800}
    page = browser.new_page(viewport=size, has_touch=True, is_mobile=True)
    page.goto((html / CHAPTER).as_uri())
    for number in (page.locator(NUMBER).nth(0), page.locator("span.claim").nth(0)):
        number.tap()
        assert "Commit" in shown(page)
        box = page.locator(CARD).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= size["width"]
        page.locator("article h1").tap()
        assert not is_shown(page)
    assert page.url.endswith(CHAPTER)
    page.locator("article p a[href*='references.html#id']").first.tap()
    page.wait_for_url("**/book/references.html#id*")
    page.close()


@pytest.mark.parametrize(("name", "address"), [(n, a) for n in LINKS for a in LINKS[n]])
def test_a_link_shows_what_it_leads_to(visit, html, cards, name, address):
    page = visit.open((html / name).as_uri())
    link = page.locator(f"article p a.internal[href*='{address}']").first
    link.hover()
    assert shown(page).strip()
    words = BeautifulSoup(page.locator(CARD).inner_html(), "html.parser").get_text()
    told = (BeautifulSoup(held, "html.parser").get_text() for held in cards.values())
    assert words in told
    assert not page.locator(f"{CARD} a").count()


def test_a_number_of_the_first_page_has_a_card_from_a_server(visit, server):
    page = visit.open(f"{server}/book/index.html")
    page.locator(".front-result .claim").last.hover()
    assert "Commit" in shown(page)
    assert not visit.faults


@pytest.mark.parametrize("visit", [1280, 390], indirect=True)
def test_axe_finds_no_violation_with_a_card_in_either_theme(visit, server):
    page = visit.open(f"{server}/{CHAPTER}")
    for theme in ("light", "dark"):
        page.evaluate("(it) => document.documentElement.dataset.theme = it", theme)
        for place in (NUMBER, "article p a[href*='references.html#id']"):
            page.locator(place).first.hover()
            shown(page)
            faults = [(f["id"], f["nodes"][0]["html"]) for f in violations(page)]
            assert page.locator(CARD).is_visible()
            assert not faults


def test_paper_has_no_card_and_no_mark_and_forced_colours_a_frame(visit, html):
    page = visit.open((html / CHAPTER).as_uri())
    number = page.locator(NUMBER).first
    line = "(e) => getComputedStyle(e).textDecorationLine"
    assert number.evaluate(line) == "underline"
    page.emulate_media(forced_colors="active")
    number.hover()
    shown(page)
    frame = "(e) => getComputedStyle(e).borderTopWidth"
    assert page.locator(CARD).evaluate(frame) == "1px"
    page.emulate_media(media="print", forced_colors="none")
    assert not page.locator(CARD).is_visible()
    assert number.evaluate(line) == "none"
    around = number.evaluate("(e) => getComputedStyle(e.parentElement).color")
    assert number.evaluate("(e) => getComputedStyle(e).color") == around
