"""The slides of the defence: one page of HTML from `book/slides.md`.

A slide ends at a line of three dashes. Its numbers were filled in when the book was
staged; an image `![](04_evaluation_ml_for_db#fig-violations)` is the figure of that
name on the page of that chapter, in both themes.
"""

import re
from copy import copy
from pathlib import Path

from bs4 import BeautifulSoup, Tag
from markdown_it import MarkdownIt

from thesis_book.execute.pages import render_page
from thesis_lib.common.errors import require
from thesis_lib.common.files import write_whole


def write_slides(html: Path, source: Path, title: str, file: Path) -> None:
    """Write the slides of `source` to `file`, which lies in the folder `html`.

    Raises InvalidInput for a figure that no page shows.
    """
    text = re.sub(
        r"\{cite\}`(\w+)`", r"[[\1]](book/references.html)", source.read_text()
    )
    markdown = MarkdownIt("commonmark").enable("table")
    slides = [
        BeautifulSoup(markdown.render(slide), "html.parser")
        for slide in re.split(r"^---$", text, flags=re.MULTILINE)
    ]
    pages: dict[str, BeautifulSoup] = {}
    for slide in slides:
        for image in slide.select("img"):
            page, _, name = str(image["src"]).partition("#")
            path = html / "notebooks" / f"{page}.html"
            if page not in pages and path.is_file():
                pages[page] = BeautifulSoup(path.read_text(), "html.parser")
            figure = pages[page].find("figure", id=name) if page in pages else None
            require(
                isinstance(figure, Tag),
                f"{source.name} shows {image['src']}, which is no figure of the book: "
                "name one as CHAPTER#fig-name",
            )
            assert isinstance(figure, Tag)
            assert image.parent is not None
            image.parent.replace_with(_figure(figure, f"notebooks/{page}.html#{name}"))
    text = render_page(
        "slides.html",
        title=title,
        slides=[str(slide) for slide in slides],
    )
    write_whole(file, text)


def _figure(figure: Tag, address: str) -> Tag:
    """The pictures of a figure of the book, with a link to it."""
    soup = BeautifulSoup("<figure></figure>", "html.parser")
    shown = soup.figure
    assert shown is not None
    for image in figure.select("img"):
        picture = copy(image)
        picture["src"] = str(image["src"]).removeprefix("../")
        picture["loading"] = "lazy"  # of the two themes, and of the slides to come
        for name in ("style", "width", "height"):
            picture.attrs.pop(name, None)
        shown.append(picture)
    number = figure.select_one(".caption-number")
    link = soup.new_tag("a", href=address)
    link.string = number.get_text().strip() if number else "Figure"
    caption = soup.new_tag("figcaption")
    caption.append(link)
    shown.append(caption)
    return shown
