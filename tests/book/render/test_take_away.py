"""A small rendered book becomes one text, a PDF and clean notebooks."""

import nbformat
import pytest
from bs4 import BeautifulSoup

from thesis_book.render import offers, pdf
from thesis_book.render.articles import read_pages
from thesis_book.render.notebooks import clean_notebook, without_roles
from thesis_lib.common.errors import InvalidInput

ABOUT = {"title": "Books & “pages”", "author": "A <B>", "copyright": "2026"}
PNG = bytes.fromhex("89504e470d0a1a0a")
FIRST = """<section id="first"><h1>First<a class="headerlink" href="#first">#</a></h1>
<p class="take-away" hidden></p>
<p>See <a href="../notebooks/01_one.html#sec">one</a>, <a href="../x.ipynb">a file</a>,
<a href="https://example.org/a?b=1&amp;c=2">elsewhere</a>.</p></section>"""
ONE = """<section id="one"><h1><span>1. </span>One</h1>
<div class="cell"><details class="hide"><summary>Code</summary>secret</details></div>
<section id="sec"><h2>1.1. Part</h2>
<p id="c">Table 1</p>
<table aria-labelledby="c" border="1"><tr>
<td valign="top">7&nbsp;&lt; 8<br>or</td></tr></table>
<math><mfrac displaystyle="true"><mi>x</mi><mi>y</mi></mfrac></math>
<figure id="fig"><a href="../_images/a.png"><img class="only-light" alt="A curve."
src="../_images/a.png" loading="lazy" width="9"></a>
<a class="only-dark" href="../_images/d.png"><img class="only-dark" alt="A curve."
src="../_images/d.png"></a>
<figcaption><span class="caption-number">Fig. 1.1 </span>Curve</figcaption></figure>
<p id="same">a</p><p id="same">b</p><p>Back to <a href="../book/first.html">it</a></p>
</section><script>1 < 2</script></section>"""


MORE = "<section id='more'><h1>More</h1></section>"


@pytest.fixture
def book(tmp_path):
    """The folders `html` and `source` of a book of three pages with a figure."""
    html, source = tmp_path / "html", tmp_path / "source"
    for folder in (
        html / "book",
        html / "notebooks",
        html / "_images",
        source / "book",
    ):
        folder.mkdir(parents=True)
    pages = {"book/first": FIRST, "notebooks/01_one": ONE, "book/more": MORE}
    for name, article in pages.items():
        (html / f"{name}.html").write_text(
            "<html lang='en'><head><link rel='stylesheet' href='../_static/a.css'>"
            f"</head><body><article class='bd-article'>{article}</article></body>"
        )
    (html / "index.html").write_text("")
    (html / "_sources").mkdir()
    (html / "_sources" / "cited.json").write_text("{}")
    for name in "ad":
        (html / "_images" / f"{name}.png").write_bytes(PNG)
    (source / "_config.yml").write_text(
        "title: Books & “pages”\nauthor: A <B>\ncopyright: '2026'\n"
    )
    (source / "book" / "_toc.yml").write_text(
        "root: book/first\nparts:\n- caption: Part\n  chapters:\n"
        "  - file: notebooks/01_one\n    sections:\n    - file: book/more\n"
    )
    return html, source


def pages_of(book):
    html, source = book
    return read_pages(html, source / "book" / "_toc.yml")


def test_every_link_of_one_text_leads_to_an_id_that_is_there_once(book):
    pages = pages_of(book)
    ids = [tag["id"] for p in pages for tag in [p.article, *p.article.select("[id]")]]
    assert len(ids) == len(set(ids))
    links = [str(a["href"]) for p in pages for a in p.article.select("a")]
    assert sorted(links) == [
        "#first", "#one--sec", "https://example.org/a?b=1&c=2",
    ]  # fmt: skip
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)


def test_paper_has_the_words_and_the_light_picture_and_nothing_of_the_screen(book):
    text = " ".join(page.article.get_text() for page in pages_of(book))
    assert "7\xa0< 8" in text
    assert "a file" in text
    for gone in ("secret", "Code", "#", "1 < 2"):
        assert gone not in text, gone
    images = [i for page in pages_of(book) for i in page.article.select("img")]
    assert [image["src"] for image in images] == ["_images/a.png"]
    assert "loading" not in images[0].attrs
    assert [*pages_of(book)[1].sections()] == [("one--sec", "1.1. Part")]


def test_a_page_that_was_not_rendered_and_two_of_one_name_are_rejected(book):
    _, source = book
    toc = source / "book" / "_toc.yml"
    toc.write_text(toc.read_text() + "  - file: notebooks/02_one\n")
    with pytest.raises(InvalidInput, match="the same file name"):
        pages_of(book)
    toc.write_text(toc.read_text().replace("02_one", "02_two"))
    with pytest.raises(InvalidInput, match=r"02_two\.html is not there"):
        pages_of(book)


# --- Notebooks, PDF --------------------------------


def test_a_notebook_is_taken_away_with_its_numbers_and_without_the_books_marks():
    executed = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell(
                "(ch-a)=\n# A\n\nIt is N, by {cite}`x` and {term}`key sets <key set>`."
                "\n\n::::{container} noprint\nGuess.\n\n:::{play} cost\n:::\n::::"
            ),
            nbformat.v4.new_code_cell("n = 1", metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell(
                "n = 2",
                execution_count=3,
                outputs=[
                    nbformat.v4.new_output("stream", text="2\n"),
                    nbformat.v4.new_output(
                        "display_data",
                        data={"application/papermill.record/text/plain": "2"},
                    ),
                ],
                metadata={
                    "execution": {"shell.execute_reply": "2026"},
                    "tags": ["hide-input", "injected-parameters", "keep_output"],
                },
            ),
        ],
        metadata={"papermill": {"output_path": "/home/me/out.ipynb"}},
    )
    clean = clean_notebook(
        nbformat.writes(executed), lambda text: text.replace("N", "7")
    )
    assert "papermill" not in clean
    prose, code = nbformat.reads(clean, as_version=4).cells
    assert (
        prose.source == "# A\n\nIt is 7, by {cite}`x` and {term}`key sets <key set>`."
    )
    assert code.metadata == {"tags": ["parameters"]}
    assert (code.source, code.execution_count) == ("n = 2", 3)
    assert [output.get("text") for output in code.outputs] == ["2\n"]


def test_a_side_note_of_a_notebook_is_a_quotation():
    prose = "It is so.\n\n:::{margin} How\nBy N\nruns.\n:::\n\n:::{x} y\n:::"
    cells = [nbformat.v4.new_markdown_cell(prose)]
    text = nbformat.writes(nbformat.v4.new_notebook(cells=cells))
    clean = clean_notebook(text, lambda text: text.replace("N", "7"))
    (cell,) = nbformat.reads(clean, as_version=4).cells
    assert cell.source == "It is so.\n\n> **How.** By 7\nruns.\n\n\n:::{x} y\n:::"


def test_a_reference_of_a_notebook_reads_as_in_the_book():
    prose = (
        "{numref}`sec-a`, {eq}`e`, {ref}`b <sec-a>`, {term}`key sets <k>`, {cite}`x,y`,"
        " {numref}`Chapter {number} <ch-a>`"
    )
    cells = [nbformat.v4.new_markdown_cell(prose), nbformat.v4.new_code_cell(prose)]
    text = nbformat.writes(nbformat.v4.new_notebook(cells=cells))
    shown = {"sec-a": "Section 3.1", "equation-e": "(2.1)", "ch-a": "Chapter 3"}
    cited = {"x": "Abadi, 2018", "y": "Who *et al.*, 2020"}
    plain = without_roles(text, shown, cited)
    changed, code = nbformat.reads(plain, as_version=4).cells
    works = "[Abadi, 2018, Who *et al.*, 2020]"
    assert changed.source == f"Section 3.1, (2.1), b, key sets, {works}, Chapter 3"
    assert code.source == prose
    with pytest.raises(KeyError, match="'y'"):
        without_roles(text, shown, {"x": "Abadi, 2018"})


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (
            ":::{table} What.\n:name: t\n\n| a |\n|---|\n:::",
            "**What.**\n\n| a |\n|---|",
        ),
        (
            "```{prf:algorithm} Drop\n:label: d\n\n1. x\n```",
            "**Algorithm: Drop**\n\n1. x",
        ),
        (":::{figure} a.svg\n:name: f\n\nA curve.\n:::", "A curve."),
        ("```python\nx\n```", "```python\nx\n```"),
    ],
)
def test_what_has_a_title_in_the_book_has_it_in_a_notebook(written, read):
    cell = nbformat.v4.new_markdown_cell(f"A.\n\n{written}\n\nB.")
    text = nbformat.writes(nbformat.v4.new_notebook(cells=[cell]))
    (changed,) = nbformat.reads(without_roles(text, {}, {}), as_version=4).cells
    assert changed.source == f"A.\n\n{read}\n\nB."


def test_first_page_links_the_pdf_with_its_size(book, monkeypatch):
    html, source = book
    first = html / "book" / "first.html"

    def printed(browser, page):
        assert "<b>" not in page.read_text()
        return b"x" * 2048

    monkeypatch.setattr(offers, "chromium", lambda: None)
    offers.offer_pdf(html, source)
    assert "PDF" not in first.read_text()
    monkeypatch.setattr(offers, "chromium", lambda: "a browser")
    monkeypatch.setattr(pdf, "print_pdf", printed)
    monkeypatch.setattr(pdf, "page_numbers", lambda content: {"one": 9})
    offers.offer_pdf(html, source)
    assert 'href="../thesis.pdf" download>PDF, 2 KiB<' in first.read_text()
    stamps = {path: path.stat().st_mtime_ns for path in html.rglob("*")}
    offers.offer_pdf(html, source)
    assert {path: path.stat().st_mtime_ns for path in html.rglob("*")} == stamps


def test_notebooks_beside_the_pages_show_numbers_of_references(book):
    html, source = book
    notebook = html / "_sources" / "notebooks" / "01_one.ipynb"
    notebook.parent.mkdir(parents=True)
    cell = nbformat.v4.new_markdown_cell("as by {numref}`sec`, or")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), notebook)
    offers.number_references(html, source / "book" / "_toc.yml")
    assert "as by one, or" in notebook.read_text()


def test_the_second_printing_says_the_pages_that_the_first_found(book, monkeypatch):
    html, _ = book
    texts = []
    monkeypatch.setattr(
        pdf, "print_pdf", lambda browser, page: texts.append(page.read_text()) or b""
    )
    monkeypatch.setattr(pdf, "page_numbers", lambda content: {"one": 1234})
    pdf.write_pdf("a browser", html, pages_of(book), ABOUT, html / "a.pdf")
    assert ["1234" in text for text in texts] == [False, True]
    assert "_static/a.css" in texts[0]
    assert 'content: "Books & “pages”"' in texts[0]
    assert 'content: "1. One"' in texts[0]
    assert sorted(p.name for p in html.iterdir() if p.is_file()) == [
        "a.pdf", "index.html",
    ]  # fmt: skip


def test_an_index_says_its_pages_in_their_order_and_each_once(book, monkeypatch):
    html, _ = book
    more, texts = html / "book" / "more.html", []
    places = ["first.html#first", "../notebooks/01_one.html#sec", "#more", "#more"]
    names = ["word", "[1]", "[2]", "[3]"]
    pairs = zip(places, names, strict=True)
    links = [f'<a href="{to}">{name}</a>' for to, name in pairs]
    entries = f"<ul class='genindextable'><li>{', '.join(links)}</li></ul>"
    more.write_text(more.read_text().replace("</h1>", f"</h1>{entries}"))
    numbers = {"first--first": 7, "one--sec": 12, "more--more": 3}
    monkeypatch.setattr(
        pdf, "print_pdf", lambda browser, page: texts.append(page.read_text()) or b""
    )
    monkeypatch.setattr(pdf, "page_numbers", lambda content: numbers)
    pdf.write_pdf("a browser", html, pages_of(book), ABOUT, html / "a.pdf")
    entry = BeautifulSoup(texts[1], "html.parser").select_one(".genindextable li")
    assert entry.get_text() == "word 3, 7, 12"
    leads = [link["href"] for link in entry.select("a")]
    assert leads == ["#more--more", "#first--first", "#one--sec"]


def test_a_pdf_is_rejected_where_no_browser_prints_it(monkeypatch, tmp_path):
    monkeypatch.setattr(offers, "chromium", lambda: None)
    offers.require_browser(False)
    with pytest.raises(InvalidInput, match="install it"):
        offers.require_browser(True)
    broken = tmp_path / "browser"
    broken.write_text("#!/bin/sh\necho no display >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(InvalidInput, match=r"(?s)did not print .*no display"):
        pdf.print_pdf(str(broken), tmp_path / "page.html")
