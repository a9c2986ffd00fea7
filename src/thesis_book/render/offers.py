"""Add to a rendered book its PDF, and the numbers of references to its notebooks.

A new rendering replaces the folder, so that a file that is there is of this book.
"""

import json
import re
from pathlib import Path

import yaml

from thesis_book.render.articles import read_pages
from thesis_book.render.notebooks import without_roles
from thesis_book.render.pdf import BROWSERS, chromium, write_pdf
from thesis_lib.common.errors import require
from thesis_lib.common.files import write_whole
from thesis_lib.common.units import format_size

PDF = "thesis.pdf"
CITED = "_sources/cited.json"  # how the text cites a work: of `thesis_references`
# The place for the link on the first page, hidden before the PDF is made.
PLACE = re.compile(r'<p class="take-away"[^>]*>.*?</p>', re.DOTALL)


def require_browser(pdf: bool) -> None:
    """Raise InvalidInput if a PDF is asked for and no browser can print it."""
    require(
        not pdf or chromium() is not None,
        f"a PDF needs Chromium, expected as one of {', '.join(BROWSERS)}, and none is "
        "here: install it, or make the book without a PDF (`make book`)",
    )


def number_references(html: Path, toc: Path) -> None:
    """Replace the roles in the staged notebooks by the values that the book shows."""
    pages = read_pages(html, toc)
    inner = "a[href^='#']:not(.genindextable a)"
    links = [link for page in pages for link in page.article.select(inner)]
    shown = {str(a["href"]).partition("--")[2]: a.get_text() for a in links}
    cited = json.loads((html / CITED).read_text())
    for notebook in (html / "_sources" / "notebooks").glob("*.ipynb"):
        write_whole(notebook, without_roles(notebook.read_text(), shown, cited))


def offer_pdf(html: Path, source: Path) -> None:
    """Print the PDF if Chromium is installed, and link it from the first page.

    `source` is what the book in `html` was rendered from. An existing PDF is kept.
    """
    browser, target = chromium(), html / PDF
    if browser is None or target.is_file():
        return
    about = yaml.safe_load((source / "_config.yml").read_text())
    pages = read_pages(html, source / "book" / "_toc.yml")
    write_pdf(browser, html, pages, about, target)
    first = html / f"{pages[0].name}.html"
    size = format_size(target.stat().st_size)
    link = f'<a href="../{PDF}" download>PDF, {size}</a>'
    text = f'<p class="take-away">To take away: {link}</p>'
    write_whole(first, PLACE.sub(text, first.read_text()))
