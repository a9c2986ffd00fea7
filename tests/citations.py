"""The text of the book, and the published numbers that it cites."""

import functools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import nbformat

from thesis_book.compare.present import README_BLOCK

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted(ROOT.glob("notebooks/*.ipynb")),
    *sorted(ROOT.glob("book/*.md")),
    ROOT / "README.md",
]
NUMBERED = {int(page.name[:2]): page for page in PAGES if page.suffix == ".ipynb"}
PART = r"(_by)?(_low|_high|_n|_interval|_word|_word_zh)?$"  # of a number
OF_RECORD = {"precision", "disturbed", "disturbed_by"}  # read by `thesis run` itself


def texts(page: Path, captions: bool = True) -> Iterator[str]:
    """The Markdown of a page: the whole of it, or a chapter's cells and captions."""
    if page.suffix == ".md":
        # what stands between its marks is made from the claims (test_readme.py)
        yield README_BLOCK.sub("", page.read_text())
        return
    for cell in nbformat.read(page, as_version=4).cells:
        if cell.cell_type == "markdown":
            yield cell.source
        if not captions:
            continue
        shown = cell.metadata.get("mystnb", {})
        yield from (
            text
            for text in (
                shown.get("figure", {}).get("caption"),
                cell.metadata.get("table", {}).get("caption"),
                shown.get("image", {}).get("alt"),
            )
            if text
        )


def citations(markdown: str, home: int | None = None) -> set[tuple[str, int | None]]:
    """(name, number of the chapter that publishes it) of every glue role."""
    return {
        (name, int(chapter) if chapter else home)
        for chapter, name in re.findall(
            r"\{glue:text\}`(?:(?:[./]|notebooks/)*(\d\d)_\w+\.ipynb::)?(\w+)(?::[^`]*)?`",
            markdown,
        )
    }


@functools.cache
def cited_numbers() -> frozenset[tuple[str, int | None]]:
    """(name, chapter) of every glue role of the book, and of what a claim names."""
    cited: set[tuple[str, int | None]] = set()
    for page in PAGES:
        home = int(page.name[:2]) if page.suffix == ".ipynb" else None
        cited |= citations("\n".join(texts(page)), home)
    return frozenset(cited)


def uncited(names: Iterable[str], chapter: int) -> list[str]:
    """Return published names, or patterns of names, that no claim or interval cites."""
    known = {name for name, home in cited_numbers() if home == chapter}
    known |= {*re.findall(r"\w+", (ROOT / "data" / "claims.yml").read_text())}
    known |= {re.sub(PART, "", name) for name in known}
    return sorted(
        name
        for name in {*names} - OF_RECORD
        if re.sub(PART, "", name) not in known
        and not any(re.fullmatch(name, each) for each in known)
    )
