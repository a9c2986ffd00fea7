"""What readers take away of the built book: PDF, prints, notebooks."""

import re
from io import BytesIO
from urllib.parse import urlsplit

import nbformat
import pytest
from pypdf import PdfReader

from thesis_book.render.articles import read_pages
from thesis_book.render.pdf import page_numbers

pytestmark = pytest.mark.browser

POINTS_PER_MM = 72 / 25.4
PAPER_PX = round(170 / 25.4 * 96)  # between the margins of print.css


@pytest.fixture(scope="module")
def pages(html):
    return read_pages(html, html.parent / "source" / "book" / "_toc.yml")


@pytest.fixture(scope="module")
def pdf(html):
    return (html / "thesis.pdf").read_bytes()


@pytest.fixture(scope="module")
def reader(pdf):
    return PdfReader(BytesIO(pdf))


# --- PDF ------------------------------------------------------------------------


def test_every_link_of_the_pages_leads_to_a_place_in_the_pdf(pages, reader):
    links = [str(a["href"]) for page in pages for a in page.article.select("a")]
    meant = {f"/{link[1:]}" for link in links if link.startswith("#")}
    assert len(meant) > 100
    assert meant <= set(reader.named_destinations)
    led = set()
    for page in reader.pages:
        for annotation in page.get("/Annots") or []:
            link = annotation.get_object()
            if "/Dest" in link:
                led.add(str(link["/Dest"]))
            else:
                assert urlsplit(link["/A"]["/URI"]).scheme in ("http", "https")
    assert meant <= led <= set(reader.named_destinations)


def test_the_contents_say_the_page_of_every_chapter(pages, pdf, reader):
    numbers = page_numbers(pdf)
    first = numbers[pages[0].key]
    contents = "".join(reader.pages[n].extract_text() for n in range(1, first - 1))
    entries = re.sub(r"\s+", "", contents)
    starts = [numbers[page.key] for page in pages]
    assert starts == sorted(set(starts)), "a chapter begins on a page of its own"
    for page in pages:
        title = re.sub(r"\s+", "", page.title)
        assert f"{title}{numbers[page.key]}" in entries
        shown = reader.pages[numbers[page.key] - 1].extract_text()
        assert title in re.sub(r"\s+", "", shown)
    assert "000" not in contents


def test_the_index_says_the_pages_of_every_word(pages, pdf, reader):
    numbers = page_numbers(pdf)
    sheets = reader.pages[numbers["genindex"] - 1 :]
    text = re.sub(r"\s+", "", "".join(sheet.extract_text() for sheet in sheets))
    entries = pages[-1].article.select(".genindextable li")
    leading = [links for li in entries if (links := li.select(":scope > a"))]
    assert len(leading) > 150
    for links in leading:
        said = ",".join(map(str, sorted({numbers[a["href"][1:]] for a in links})))
        assert re.sub(r"\s+", "", links[0].get_text()) + said in text


def bookmarks(outline):
    """The entries of an outline of a PDF, in their order."""
    for entry in outline:
        yield from bookmarks(entry) if isinstance(entry, list) else [entry]


def test_no_heading_is_alone_at_the_foot_of_a_sheet(reader):
    """Two lines of text fit between it and the margin of 20 mm."""
    tops = {mark.title: mark.top for mark in bookmarks(reader.outline)}
    low = {name: top for name, top in tops.items() if top and top < 35 * POINTS_PER_MM}
    assert not low


def test_the_pdf_has_bookmarks_tags_a_title_a_language_and_the_paper(pages, reader):
    known = {" ".join(mark.title.split()) for mark in bookmarks(reader.outline)}
    titles = {heading for _, heading in pages[0].sections()}
    titles |= {result.get_text() for result in pages[0].article.select("h2")}
    titles |= {page.title for page in pages}
    assert {" ".join(title.split()) for title in titles} <= known
    assert reader.root_object["/MarkInfo"]["/Marked"]
    assert reader.root_object["/Lang"] == "en"
    assert reader.metadata.title in pages[0].title
    for page in reader.pages:
        size = [float(side) / POINTS_PER_MM for side in page.mediabox[2:]]
        assert size == pytest.approx([210, 297], abs=0.5)


def test_no_text_of_the_pdf_begins_outside_the_margins(pages, pdf, reader):
    """Of the widest chapter: what a table has beyond the margin would begin there."""
    numbers = page_numbers(pdf)
    at = [page.key for page in pages].index("evaluation_system_for_ml")
    bounds = numbers[pages[at].key] - 1, numbers[pages[at + 1].key] - 1
    outside = []

    def note(text, cm, tm, font, size):
        upright = not (cm[1] or cm[2])  # the heads of narrow columns are turned
        x = (tm[4] * cm[0] + cm[4]) / POINTS_PER_MM
        if text.strip() and upright and not 15 < x < 190:
            outside.append((text, x))

    words = "".join(
        reader.pages[n].extract_text(visitor_text=note) for n in range(*bounds)
    )
    assert not outside
    found = re.sub(r"\s+", "", words)
    for row in pages[at].article.select("table tr"):
        last = re.sub(r"\s+", "", row.find_all(["td", "th"])[-1].get_text())
        assert last in found


# --- A page that is printed -------------------------------------------------------


def test_no_table_or_line_is_cut_on_paper(browser, html, pages):
    paper = browser.new_page(viewport={"width": PAPER_PX, "height": 960})
    paper.emulate_media(media="print")
    cut = {}
    for page in pages:
        paper.goto((html / f"{page.name}.html").as_uri())
        wide = paper.evaluate(
            """() => {
                const article = document.querySelector("article");
                const edge = article.getBoundingClientRect().right + 1;
                return [...article.querySelectorAll("td, th, pre, img, math, svg")]
                    .filter((e) => e.getBoundingClientRect().right > edge
                        || e.matches("pre") && e.scrollWidth > e.clientWidth + 1)
                    .map((e) => e.textContent.trim().slice(0, 40) || e.outerHTML);
            }"""
        )
        if wide:
            cut[page.name] = wide
    paper.close()
    assert not cut


def test_chapter_prints_its_text_and_no_controls(browser, html):
    page = browser.new_page()
    page.add_init_script("localStorage.mode = localStorage.theme = 'dark'")
    page.goto((html / "notebooks" / "03_enhanced_sequencer.html").as_uri())
    assert page.evaluate("() => document.documentElement.dataset.theme") == "dark"
    page.evaluate(
        """() => addEventListener("beforeprint", () => {
            const style = getComputedStyle(document.querySelector("article p"));
            window.printed = [document.documentElement.dataset.theme, style.color];
        })"""
    )
    printed = PdfReader(BytesIO(page.pdf(prefer_css_page_size=True)))
    theme, color = page.evaluate("() => window.printed")
    assert theme == "light"
    assert max(map(int, re.findall(r"\d+", color)[:3])) < 100
    assert page.evaluate("() => document.documentElement.dataset.theme") == "dark"
    page.close()
    texts = [re.sub(r"\s+", " ", sheet.extract_text()) for sheet in printed.pages]
    assert "3. Enhanced sequencer for database systems" in texts[0]
    lines = "\n".join(sheet.extract_text() for sheet in printed.pages).split("\n")
    for word in ("Code", "Hide code", "Contents", "Search", "#"):
        assert word not in map(str.strip, lines), word


def test_the_notebooks_to_take_away_are_executed_and_clean(html):
    chapters = sorted((html / "_sources" / "notebooks").glob("*.ipynb"))
    assert len({path.stem.split("_details")[0] for path in chapters}) == 7
    for path in chapters:
        text = path.read_text()
        notebook = nbformat.reads(text, as_version=4)
        nbformat.validate(notebook)
        for mark in (
            "{glue",
            "{numref",
            "{eq}",
            '"papermill"',
            "scrapbook",
            "hide-input",
            "/home/",
        ):
            assert mark not in text, f"{path.name} holds {mark}"
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert all(cell.execution_count for cell in code)
        tags = [tag for cell in code for tag in cell.metadata.get("tags", [])]
        assert tags.count("parameters") <= 1
