"""What a rendered book offers beside its pages, each made once for a rendering.

A new rendering replaces the folder, so that a file that is there is of this book.
"""

import json
import re
from pathlib import Path

import yaml

from thesis_book.render.articles import read_pages
from thesis_book.render.epub import write_epub
from thesis_book.render.notebooks import without_roles
from thesis_book.render.pdf import BROWSERS, chromium, write_pdf
from thesis_book.render.slides import write_slides
from thesis_lib.common.errors import require
from thesis_lib.common.files import write_whole
from thesis_lib.common.units import format_size

ALL = PDF, EPUB, SLIDES = "thesis.pdf", "thesis.epub", "slides.html"
CITED = "_sources/cited.json"  # how the text cites a work: of `thesis_references`
# The place for them on the first page, which shows nothing before they are made.
PLACE = re.compile(r'<p class="take-away"[^>]*>.*?</p>', re.DOTALL)


def require_browser(pdf: bool) -> None:
    """Raise InvalidInput if a PDF is asked for and no browser can print it."""
    require(
        not pdf or chromium() is not None,
        f"a PDF needs Chromium, expected as one of {', '.join(BROWSERS)}, and none is "
        "here: install it, or make the book without a PDF (`make book`)",
    )


def offer(html: Path, source: Path) -> None:
    """Make what is missing of PDF, EPUB and slides, and link all from the first page.

    The notebooks beside the pages get the numbers of what they refer to.

    `source` is what the book in `html` was rendered from. The PDF needs Chromium, and
    is left out where there is none.
    """
    browser = chromium()
    wanted = [SLIDES, EPUB, *[PDF] * (browser is not None)]
    missing = [name for name in wanted if not (html / name).is_file()]
    if not missing:
        return
    about = yaml.safe_load((source / "_config.yml").read_text())
    if SLIDES in missing:
        slides = source / "book" / "slides.md"
        write_slides(html, slides, about["title"], html / SLIDES)
    pages = read_pages(html, source / "book" / "_toc.yml")
    inner = "a[href^='#']:not(.index-entries a)"
    links = [link for page in pages for link in page.article.select(inner)]
    shown = {str(a["href"]).partition("--")[2]: a.get_text() for a in links}
    cited = json.loads((html / CITED).read_text())
    for notebook in (html / "_sources" / "notebooks").glob("*.ipynb"):
        write_whole(notebook, without_roles(notebook.read_text(), shown, cited))
    if EPUB in missing:
        write_epub(html, source / "book" / "_static", pages, about, html / EPUB)
    if PDF in missing and browser is not None:
        write_pdf(browser, html, pages, about, html / PDF)
    sizes = {
        name: format_size((html / name).stat().st_size)
        for name in (PDF, EPUB)
        if (html / name).is_file()
    }
    offered = [
        f'<a href="../{name}" download>{name[7:].upper()}, {size}</a>'
        for name, size in sizes.items()
    ]
    offered.append(f'<a href="../{SLIDES}">slides of the defence</a>')
    first = html / f"{pages[0].name}.html"
    text = f'<p class="take-away">To take away: {" · ".join(offered)}</p>'
    write_whole(first, PLACE.sub(text, first.read_text()))
