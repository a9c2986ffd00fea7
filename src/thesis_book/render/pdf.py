"""The book as a PDF, printed by Chromium from its rendered pages."""

import io
import json
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from bs4 import BeautifulSoup
from markupsafe import Markup
from pypdf import PdfReader

from thesis_book.execute.pages import render_page
from thesis_book.render.articles import Page
from thesis_lib.common.errors import InvalidInput, require
from thesis_lib.common.files import write_whole

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LIMIT_S = 300  # against hanging only
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--allow-file-access-from-files", "--virtual-time-budget=60000",
    "--no-pdf-header-footer", "--export-tagged-pdf", "--generate-pdf-document-outline",
)  # fmt: skip


def chromium() -> str | None:
    """The Chromium of this machine, None where there is none."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def print_pdf(browser: str, page: Path) -> bytes:
    """A local page as a PDF. Raises InvalidInput where the browser prints none."""
    with tempfile.TemporaryDirectory() as folder:
        pdf = Path(folder, "page.pdf")
        try:
            done = subprocess.run(
                [browser, *_FLAGS, f"--user-data-dir={folder}/profile",
                 f"--print-to-pdf={pdf}", page.resolve().as_uri()],
                capture_output=True, text=True, timeout=LIMIT_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise InvalidInput(
                f"{browser} did not print {page} within {LIMIT_S} s: open the page in "
                "it to see why, and make the book again"
            ) from error
        require(
            done.returncode == 0 and pdf.is_file(),
            f"{browser} did not print {page}: expected a PDF; open the page in it to "
            f"see why: {done.stderr[-500:]}",
        )
        return pdf.read_bytes()


def page_numbers(pdf: bytes) -> dict[str, int]:
    """The page of every id that a link of the PDF leads to, counted from one."""
    reader = PdfReader(io.BytesIO(pdf))
    return {
        name.removeprefix("/"): 1 + (reader.get_destination_page_number(place) or 0)
        for name, place in reader.named_destinations.items()
    }


def _quoted(text: str) -> Markup:
    """A text as a string of CSS, in a style sheet of HTML."""
    return Markup(json.dumps(text, ensure_ascii=False).replace("<", r"\3c "))


def _number_index(pages: Sequence[Page], numbers: Mapping[str, int]) -> None:
    """Show the pages of each index entry in their order, each once."""
    for entry in [li for p in pages for li in p.article.select(".genindextable li")]:
        links = entry.select(":scope > a")
        leads = {numbers[str(link["href"])[1:]]: link["href"] for link in links}
        for link, number in zip(links, sorted(leads), strict=False):
            link["href"] = leads[number]
            name = f"{link.get_text()} " if link is links[0] else ""
            link.string = f"{name}{number}"
        for link in links[len(leads) :]:
            comma = link.previous_sibling
            assert comma is not None
            comma.extract()
            link.extract()


def write_pdf(
    browser: str, html: Path, pages: Sequence[Page], about: Mapping[str, str], pdf: Path
) -> None:
    """Print the pages of the book in `html` as one, with contents, to `pdf`.

    `about` holds the title, the author and the year. Chromium knows no reference to a
    page number: the first printing says where everything is and the second says so in
    the table of contents, which is as long as before, and in the index at the end.
    """
    pages = [replace(page, article=copy(page.article)) for page in pages]
    first = BeautifulSoup((html / f"{pages[0].name}.html").read_text(), "html.parser")
    values = {
        "about": about,
        "quoted": _quoted,
        "parts": [(name, [*group]) for name, group in groupby(pages, lambda p: p.part)],
        "sheets": [
            str(link["href"]).removeprefix("../")
            for link in first.select("link[rel=stylesheet]")
        ],
    }
    whole, printed, numbers = html / "whole_book.html", b"", {}
    try:
        for again in (False, True):
            whole.write_text(render_page("print.html", numbers=numbers, **values))
            printed = print_pdf(browser, whole)
            numbers = page_numbers(printed)
            if not again:
                _number_index(pages, numbers)
    finally:
        whole.unlink(missing_ok=True)
    write_whole(pdf, printed)
