"""Cards beside numbers and links: what they are, for who points at them.

The card of a claim comes with the claims. What a link leads to is read from the built
pages: a reference, a definition, a formula, a caption, a heading. All are in one
script, which `cards.js` loads when a reader first asks for a card: a page that is
opened as a file may read no other file, but may load a script.
"""

import json
import posixpath
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from urllib.parse import urlsplit

from bs4 import BeautifulSoup, Tag
from sphinx.application import Sphinx

CLAIMS = "book/claim_cards.json"  # as `thesis_book.render.build` staged it
AUDIT = "book/audit.html"
DATA = "_static/cards-data.js"
SHOWN = "p, .formula, h1, h2, h3, h4, h5, h6"  # the first of a place is its card


def link_claims(soup: BeautifulSoup, root: str) -> None:
    """Make the first number of each claim on a page a link to its row of the audit.

    A citation loses its `title`, which its card says better.
    """
    linked = set()
    for number in soup.select("article .claim"):
        anchor = number["class"][1]
        if anchor not in linked and not number.find_parent("a"):
            number.name, number["href"] = "a", f"{root}{AUDIT}#{anchor}"
            linked.add(anchor)
    for cited in soup.select("article .bibtex-citation a[title]"):
        del cited["title"]


def _text(tag: Tag) -> str:
    return " ".join(tag.get_text().split())


def card(place: Tag) -> Tag | None:
    """What a card shows of the place that a link leads to, with no card inside."""
    if place.name == "dt":
        shown = place.find_next("dd").select_one(SHOWN)
    elif "table-caption" in place.get("class", []):
        shown = place
    else:
        whole = place if place.contents else place.parent  # a label before a heading
        shown = whole.select_one(SHOWN)
    if shown is None:
        return None
    shown = copy(shown)
    for sign in shown.select(".headerlink"):
        sign.decompose()
    for link in shown.select("a, .claim"):
        link.unwrap()
    for tag in shown.select("[id]"):
        del tag["id"]
    return shown


def link_cards(pages: Mapping[str, BeautifulSoup]) -> dict[str, str]:
    """The cards of links, as HTML, by where they lead: `notebooks/a.html#fig-b`.

    `pages` are named by their path from the book's root, as the addresses are. A card
    that says no more than its link is left out.
    """
    places = {
        f"{name}#{tag['id']}": tag
        for name, soup in pages.items()
        for tag in soup.select("article [id]")
    }
    cards = {}
    for name, soup in pages.items():
        for link in soup.select("article a.internal[href*='#']"):
            target = urlsplit(link["href"])
            path = posixpath.join(posixpath.dirname(name), target.path)
            page = posixpath.normpath(path) if target.path else name
            address = f"{page}#{target.fragment}"
            if address in places and address not in cards:
                shown = card(places[address])
                if shown is not None and _text(shown) not in _text(link):
                    cards[address] = shown.decode_contents().strip()
    return cards


def write_cards(app: Sphinx, pages: Mapping[str, BeautifulSoup]) -> None:
    """Write the script that holds the cards of the claims and of the links."""
    claims = json.loads(Path(app.srcdir, CLAIMS).read_text())
    of_claims = {f"{AUDIT}#{anchor}": html for anchor, html in claims.items()}
    held = json.dumps(link_cards(pages) | of_claims, ensure_ascii=False)
    Path(app.outdir, DATA).write_text(f"globalThis.bookCards = {held};\n")


def setup(app: Sphinx) -> dict:
    app.add_css_file("cards.css")
    app.add_js_file("cards.js", loading_method="defer")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
