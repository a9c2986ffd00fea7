"""The pages of a rendered book in their order, as one text that needs no script.

The PDF is made from the pages that readers see, so that a number, a figure or a formula
cannot differ between them. Sphinx's LaTeX builder would read every chapter again and
number front matter as chapters.
"""

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from bs4 import BeautifulSoup, Tag

from thesis_lib.common.errors import require

# What only a screen with scripts can use, and code, which the notebooks hold.
DROPPED = (
    "script, style, form, source, button, details.hide, .headerlink, .only-dark, "
    ".take-away, .figure-files, .genindex-jumpbox, .noprint, .d-print-none"
)


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the book: its ids and links are those of one text of all pages."""

    name: str  # as in _toc.yml: notebooks/03_enhanced_sequencer
    part: str  # the caption that it stands under, empty for the first page
    lang: str
    article: Tag

    @property
    def key(self) -> str:
        """A name for its id, its file and its style: enhanced_sequencer."""
        return _key(self.name)

    @property
    def title(self) -> str:
        """Its heading, with the number of the chapter."""
        return _text(self.article.find("h1"))

    def sections(self) -> Iterator[tuple[str, str]]:
        """The id and the heading of each of its sections."""
        for heading in self.article.find_all("h2"):
            section = heading.find_parent("section")
            if section is not None:
                yield str(section["id"]), _text(heading)


def _key(name: str) -> str:
    return re.sub(r"^\d+_", "", posixpath.basename(name))


def _text(tag: Tag | None) -> str:
    """The words of a tag."""
    return " ".join(tag.get_text().split()) if tag else ""


def _contents(toc: Path) -> list[tuple[str, str]]:
    """The name of every page and the caption that it stands under."""
    content = yaml.safe_load(toc.read_text())

    def below(pages: list[dict[str, Any]]) -> Iterator[str]:
        for page in pages:
            yield page["file"]
            yield from below(page.get("sections", []))

    return [(content["root"], "")] + [
        (name, part["caption"])
        for part in content["parts"]
        for name in below(part["chapters"])
    ]


def read_pages(html: Path, toc: Path) -> list[Page]:
    """The pages of the book in `html`, in the order of its table of contents.

    An id x of the page policies becomes `policies--x`, and links follow; images are
    addressed from `html`. Links to what is not a page are taken out.

    Raises InvalidInput for a page that is not there, and for two of one name.
    """
    contents = _contents(toc)
    names = [name for name, _ in contents]
    require(
        len({*map(_key, names)}) == len(names),
        f"two pages of {toc} have the same file name, expected one each: rename one",
    )
    return [_page(html, name, part, names) for name, part in contents]


def _page(html: Path, name: str, part: str, names: list[str]) -> Page:
    path = html / f"{name}.html"
    require(path.is_file(), f"{path} is not there: render the book with `make book`")
    soup = BeautifulSoup(path.read_text(), "html.parser")
    article = soup.select_one("article.bd-article")
    assert article is not None
    assert soup.html is not None
    _clean(article)

    def address(link: str) -> str:
        """Return the target of a link of the page in one text; empty without one."""
        target = urlsplit(link)
        if target.scheme or target.netloc:
            return link
        folder = posixpath.dirname(name)
        there = posixpath.normpath(posixpath.join(folder, target.path))
        page = there.removesuffix(".html") if target.path else name
        fragment = f"--{target.fragment}" if target.fragment else ""
        return f"#{_key(page)}{fragment}" if page in names else ""

    seen = set()
    for tag in article.select("[id]"):
        if tag["id"] in seen:  # sphinx-proof gives every algorithm one id
            del tag["id"]
            continue
        seen.add(tag["id"])
        tag["id"] = f"{_key(name)}--{tag['id']}"
    for tag in article.select("[aria-labelledby]"):
        tag["aria-labelledby"] = f"{_key(name)}--{tag['aria-labelledby']}"
    article["id"] = _key(name)
    for link in article.select("a[href]"):
        link["href"] = address(str(link["href"]))
        if not link["href"]:
            link.unwrap()
    for image in article.select("img"):
        source = posixpath.join(posixpath.dirname(name), str(image["src"]))
        image["src"] = posixpath.normpath(source)
        image.attrs.pop("loading", None)  # paper does not scroll
    return Page(name, part, str(soup.html["lang"]), article)


def _clean(article: Tag) -> None:
    """Take out what does nothing on paper, and the cells that are empty then."""
    for tag in article.select(DROPPED):
        tag.decompose()
    for tag in article.select("noscript, .claim"):
        tag.unwrap()
    for cell in article.select("div.cell"):
        if not cell.get_text(strip=True) and not cell.select("img, svg, [id]"):
            cell.decompose()
