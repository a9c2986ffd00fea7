"""The built book as a folder of files: every link leads somewhere, no file is idle."""

import re
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup
from test_book import ENTRANCE, MISSING, pages

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def soups(html):
    """Every page of the book, parsed."""
    names = [*pages(html), ENTRANCE, MISSING]
    return {n: BeautifulSoup((html / n).read_text(), "html.parser") for n in names}


def targets(soup):
    """What a page points at or loads."""
    for tag in soup.find_all(True):
        for attribute in ("href", "src", "action"):
            if tag.name != "base" and tag.get(attribute):
                yield tag[attribute]


def test_every_internal_link_has_a_file_and_an_anchor(soups, html):
    anchors = {
        name: {tag[key] for tag in soup.find_all(True) for key in ("id", "name")
               if tag.get(key)}
        for name, soup in soups.items()
    }  # fmt: skip
    broken = set()
    for name, soup in soups.items():
        for target in targets(soup):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            file = (html / name).parent / unquote(parts.path) if parts.path else None
            path = file.resolve() if file else html.resolve() / name
            if not path.is_file():
                broken.add(f"{name} -> {target}")
                continue
            there = str(path.relative_to(html.resolve()))
            if parts.fragment and there in anchors:
                fragment = unquote(parts.fragment)
                if fragment not in anchors[there]:
                    broken.add(f"{name} -> {target}: no such place")
    assert not broken


def test_a_citation_reads_as_the_label_of_its_entry(soups):
    works = soups["book/references.html"].select(".citation")
    labels = {work["id"]: work.select_one(".label").get_text() for work in works}
    assert len(labels) > 100
    cited = {
        (link["href"].split("#")[1], " ".join(link.get_text().split()))
        for soup in soups.values()
        for link in soup.select('.bibtex-citation a[href*="references.html#"]')
    }
    assert {name for name, _ in cited} == set(labels)
    assert not {(name, text) for name, text in cited if f"[{text}]" != labels[name]}


def test_styles_ask_only_for_files_that_are_there(html):
    missing = {
        f"{style.name}: {target}"
        for style in html.rglob("*.css")
        for target in re.findall(
            r"url\(\s*[\"']?(?!data:)([^\"')]+)", style.read_text()
        )
        if not (style.parent / target.split("?")[0].split("#")[0]).is_file()
    }
    assert not missing


def test_every_page_has_a_language_a_title_and_a_description(soups):
    for name, soup in soups.items():
        assert soup.html["lang"] in ("en", "zh-Hant"), name
        assert soup.title.get_text(strip=True), name
        if name.startswith(("book/", "notebooks/")):
            for key in ("description", "og:title", "og:description"):
                meta = soup.select_one(f'meta[name="{key}"], meta[property="{key}"]')
                assert meta["content"].strip(), f"{name} has no {key}"
