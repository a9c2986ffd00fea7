"""The book as an EPUB 3, made of its rendered pages."""

import io
import posixpath
import re
import uuid
import zipfile
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from bs4 import Tag

from thesis_lib.book.execute.pages import TEMPLATES, render_page
from thesis_lib.book.take_away.articles import Page
from thesis_lib.common.files import write_whole

MEDIA = {".png": "image/png", ".svg": "image/svg+xml", ".jpg": "image/jpeg"}
STYLED = ("displaystyle", "scriptlevel")
SPACES = {
    "math": "http://www.w3.org/1998/Math/MathML",
    "svg": "http://www.w3.org/2000/svg",
}


def cover(title: str, author: str) -> bytes:
    """A PNG that says what the book is, for the shelf of a reader."""
    from matplotlib.figure import Figure

    image, lines = io.BytesIO(), title.replace(", ", ",\n")
    figure = Figure(figsize=(8, 12), dpi=150, facecolor="#12344d")
    figure.text(0.09, 0.62, lines, color="white", size=34, weight="bold", wrap=True)
    figure.text(0.09, 0.12, author, color="#c9d6e0", size=20)
    figure.savefig(image, format="png")
    return image.getvalue()


def write_epub(
    html: Path,
    static: Path,
    pages: Sequence[Page],
    about: Mapping[str, str],
    epub: Path,
) -> None:
    """Write the pages of the book in `html` to the file `epub`, with the book's fonts.

    `static` holds their style, which names them. `about` holds the title, the author
    and the year. The pages of one rendering give the same bytes each time.
    """
    pages = [replace(page, article=copy(page.article)) for page in pages]
    files = {
        tag["id"]: f"{page.key}.xhtml"
        for page in pages
        for tag in [page.article, *page.article.select("[id]")]
    }
    images = {}
    for page in pages:
        for link in page.article.select("a[href^='#']"):
            link["href"] = f"{files[str(link['href'])[1:]]}{link['href']}"
        for image in page.article.select("img"):
            images[str(image["src"])] = MEDIA[posixpath.splitext(str(image["src"]))[1]]
        for name, space in SPACES.items():
            for tag in page.article.select(name):
                tag["xmlns"] = space
        for tag in page.article.select("svg[viewbox]"):  # of an HTML parser
            tag["viewBox"] = tag.attrs.pop("viewbox")
        # MathML 3, which EPUB asks for, knows these on few elements; browsers on all.
        for tag in page.article.select("math [displaystyle], math [scriptlevel]"):
            styled = {n: tag.attrs.pop(n) for n in STYLED if n in tag.attrs}
            tag.wrap(Tag(name="mstyle", attrs=styled))
    fonts = (static / "fonts.css").read_text()
    faces = dict.fromkeys(re.findall(r'url\("([^"]+)"\)', fonts))
    made = datetime.fromtimestamp((html / "index.html").stat().st_mtime, UTC)
    values = {
        "about": about,
        "identifier": uuid.uuid5(uuid.NAMESPACE_URL, about["title"]),
        "modified": made.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "pages": pages,
        "parts": [(name, [*group]) for name, group in groupby(pages, lambda p: p.part)],
        "images": images,
        "faces": faces,
    }
    content: dict[str, bytes | str] = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": (TEMPLATES / "container.xml").read_text(),
        "EPUB/package.opf": render_page("package.opf", **values),
        "EPUB/nav.xhtml": render_page("nav.xhtml", **values),
        "EPUB/book.css": fonts + (TEMPLATES / "epub.css").read_text(),
        "EPUB/cover.png": cover(about["title"], about["author"]),
    }
    for page in pages:
        content[f"EPUB/{page.key}.xhtml"] = render_page("epub.xhtml", page=page)
    for image in images:
        content[f"EPUB/{image}"] = (html / image).read_bytes()
    for face in faces:
        content[f"EPUB/{face}"] = (static / face).read_bytes()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        for name, data in content.items():
            entry = zipfile.ZipInfo(name, made.timetuple()[:6])
            entry.compress_type = zipfile.ZIP_DEFLATED
            if name == "mimetype":  # readers look for it at a fixed place
                entry.compress_type = zipfile.ZIP_STORED
            file.writestr(entry, data)
    write_whole(epub, packed.getvalue())
