"""What the book's extensions of Sphinx make of a formula, a word, a style, a page."""

import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pydata_sphinx_theme
import pytest
from bs4 import BeautifulSoup
from docutils import nodes
from pybtex.database import parse_file
from sphinx.addnodes import pending_xref
from thesis_content import (
    keep_units,
    number_appendices,
    set_minus_signs,
    show_figures,
)
from thesis_index import LOGGER as INDEX_LOGGER
from thesis_index import add_entries
from thesis_math import LOGGER, mathml
from thesis_pages import (
    STORED,
    THEME,
    mend,
    name_notes,
)
from thesis_references import CitedStyle, cite_thesis_once, cited
from thesis_search import SearchBoth

ROOT = Path(__file__).parents[2]
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$])\$(?! )([^$\n]+?)\$", re.DOTALL)


def formulas():
    """Every formula of the chapters and the pages, and whether it stands alone."""
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "markdown":
                for shown, inline in FORMULA.findall(cell.source):
                    yield shown or inline, bool(shown)


def test_every_formula_of_the_chapters_becomes_mathml():
    found = set(formulas())
    assert len(found) > 100
    for latex, shown in found:
        drawn = mathml(nodes.math(latex, latex), shown)
        assert drawn.startswith("<math"), latex
        assert "\\" not in re.sub("∖", "", drawn), latex


def test_a_formula_that_cannot_be_read_is_a_warning(monkeypatch):
    said = []
    monkeypatch.setattr(LOGGER, "warning", lambda *words, **_: said.append(words[2]))
    assert mathml(nodes.math("", r"\frac{1}"), False) == ""
    assert said == [r"\frac{1}"]


def test_references_stand_under_what_the_text_cites_without_tex():
    style = CitedStyle()
    works = style.sort(parse_file(ROOT / "book/references.bib").entries.values())
    before = [cited(work) for work in works]
    labels = list(style.format_labels(works))
    assert before == sorted(before, key=str.casefold)
    assert len({*before}) < len({*labels}) == len(works)
    for label, work in zip(labels, works, strict=True):
        told = style.format_entry(label, work).text.render_as("text")
        assert not re.search(r"[\\${}~]", label + told), told
        assert label == cited(work)  # the text cites the letter as well


def test_the_thesis_is_cited_in_full_once_on_a_page():
    def cite(work):
        said = nodes.inline("", f"<{work}>")
        known = {"refdomain": "cite", "reftarget": work}
        return pending_xref("", said, **known, ids=["id"])

    told = [
        ["It began ", "thesis", ", as ", "calvin2012", " did."],
        ["So.", "\n", "The thesis has 1.5 ms", "\n", "thesis", ". We", "\n", "thesis"],
        ["原論文減少 36% ", "thesis", "。"],
    ]
    page = nodes.section("")
    for texts in told:
        known = ("thesis", "calvin2012")
        parts = [cite(text) if text in known else nodes.Text(text) for text in texts]
        page += nodes.paragraph("", "", *parts)
    page += nodes.paragraph("", "", pending_xref("", reftarget="thesis"))  # no citation
    cite_thesis_once(None, page)
    assert [paragraph.astext() for paragraph in page.children] == [
        "It began <thesis>, as <calvin2012> did.",
        "So.\nThe thesis has 1.5 ms. We\n[thesis]",
        "原論文減少 36%。",
        "",
    ]


def test_a_number_keeps_its_sign_and_its_unit():
    pasted = nodes.inline("", "", nodes.Text("-0.1"), classes=["pasted-text"])
    words = [nodes.Text("in 8 GiB of 9 state-of-the-art "), pasted, nodes.Text(" % a")]
    claim = nodes.inline("", "", pasted.deepcopy(), classes=["claim", "claim-b"])
    code = nodes.literal("", "1 s")
    words += [nodes.Text(" in 2 sets "), claim, nodes.Text(" s ")]
    text = nodes.paragraph("", "", *words, code)
    zero = nodes.inline("", "", nodes.Text("-0.00"), classes=["pasted-text"])
    text += [nodes.Text(" or "), zero]
    set_minus_signs(None, text, "")
    keep_units(None, text, "")
    bound = "in 8~GiB of 9 state-of-the-art −0.1~% a in 2 sets −0.1~s 1 s or 0.00"
    assert text.astext().replace("\N{NO-BREAK SPACE}", "~") == bound


@pytest.mark.parametrize(
    ("british", "american"),
    [
        ("quantisation", "quantization"),
        ("quantised", "quantized"),
        ("optimiser", "optimizer"),
        ("colours", "color"),
        ("behaviour", "behavior"),
    ],
)
def test_both_spellings_are_one_word(british, american):
    search = SearchBoth({})
    assert search.stem(british) == search.stem(american)


def test_words_that_only_look_british_stay_apart():
    search = SearchBoth({})
    for one, other in [("four", "for"), ("our", "or"), ("hour", "hor"), ("is", "iz")]:
        assert search.stem(one) != search.stem(other)


def test_chinese_is_indexed_by_one_and_by_two_characters():
    found = SearchBoth({}).split("GPT 定序器，量化x2")
    assert found == ["GPT", "定", "序", "器", "定序", "序器", "量", "化", "量化", "x2"]


def test_figure_links_to_its_files_and_to_itself(tmp_path):
    folder = tmp_path / "book/_static/figures"
    folder.mkdir(parents=True)
    drawing = '<svg viewBox="0 0 468 200"><use transform="scale(0.01 -0.01)"/></svg>'
    ends = ["svg", "png", "csv"]
    for end in ends:
        (folder / f"fig-it.{end}").write_text(drawing)
    figure = nodes.figure("", nodes.image(alt="It."), ids=["fig-it"])
    output = nodes.container("", figure, classes=["cell_output"])
    page = nodes.section("", nodes.container("", output))
    builder = SimpleNamespace(format="html")
    show_figures(SimpleNamespace(srcdir=tmp_path, builder=builder), page, "notebooks/a")
    images = BeautifulSoup(output[0].astext(), "html.parser").find_all("img")
    assert [image["src"] for image in images] == [
        f"../_static/figures/fig-it{end}.svg" for end in ("", "-dark")
    ]
    assert images[0]["style"] == "min-width:602px"  # 7 points of 468 are 9 pixels
    offer = BeautifulSoup(output[1].astext(), "html.parser")
    assert offer.get_text() == "Use this figure: SVG, PNG, data (CSV), link"
    *files, link = offer.find_all("a")
    assert link["href"] == "#fig-it"
    assert [file["href"] for file in files] == [
        f"../_static/figures/fig-it.{end}" for end in ends
    ]
    assert all(file.has_attr("download") for file in files)


PAGE = """<html lang="{lang}"><head><meta charset="utf-8"><title>One – Book</title>
</head><body><button title="Toggle">x</button><a href="a.html">{link}</a>
<article><p>It says so [Somebody, 2020].</p><table><thead><tr><th></th><th>b</th></tr>
</thead><tbody><tr><th>a</th><td>1</td></tr></tbody></table></article></body></html>"""


def mended(folder, **words):
    page = folder / "page.html"
    page.write_text(PAGE.format(**words))
    mend(page, folder)
    return BeautifulSoup(page.read_text(), "html.parser")


def test_figures_of_a_page_without_a_number_are_numbered_apart():
    env = SimpleNamespace(
        toc_fignumbers={
            "notebooks/02": {"figure": {"fig-a": (2, 1)}},
            "book/rooms": {"figure": {"fig-b": (1,)}, "table": {"tab-c": (2,)}},
        }
    )
    number_appendices(None, env)
    pages = env.toc_fignumbers
    assert pages["notebooks/02"] == {"figure": {"fig-a": (2, 1)}}
    apart = {"figure": {"fig-b": ("A", 1)}, "table": {"tab-c": ("A", 2)}}
    assert pages["book/rooms"] == apart


def test_a_page_begins_in_the_mode_of_the_system_and_is_light_without_scripts(tmp_path):
    page = tmp_path / "page.html"
    page.write_text(f'<html data-theme="auto"><script>theme = {STORED}</script></html>')
    soup = mend(page, tmp_path)
    assert soup.html["data-theme"] == "light"
    assert soup.script.string == f"theme = {THEME}"
    layout = Path(pydata_sphinx_theme.__file__).parent / "theme/pydata_sphinx_theme"
    template = (layout / "layout.html").read_text()
    assert STORED.replace("auto", "{{ default_mode }}") in template


def test_a_mended_page_names_its_parts(tmp_path):
    page = mended(tmp_path, lang="en", link="摘要")
    assert page.button["aria-label"] == "Toggle"
    assert page.a["lang"] == "zh-Hant"
    assert page.find("meta", attrs={"name": "description"})["content"] == "It says so."
    assert page.find("meta", property="og:title")["content"] == "One"
    heads = [(cell.name, cell.get("scope")) for cell in page.find_all(["th", "td"])]
    assert heads == [("td", None), ("th", "col"), ("th", "row"), ("td", None)]


def test_a_side_note_begins_with_its_name_and_is_named_so():
    note = """<aside class="margin sidebar">
    <p class="sidebar-title">Units <em>a</em></p><p>In seconds.</p></aside>"""
    page = BeautifulSoup(f"{note}{note}", "html.parser")
    name_notes(page)
    for note in page.find_all("aside"):
        assert note["class"] == ["margin"]
        name = page.find(id=note["aria-labelledby"])
        assert name.get_text() == "Units a."
        assert name.find_parent("aside") is note
        assert note.get_text().strip() == "Units a. In seconds."


def test_a_chinese_page_speaks_chinese_and_marks_english(tmp_path):
    page = mended(tmp_path, lang="zh-Hant", link="Search")
    assert page.a.get_text() == "搜尋"
    assert not page.a.get("lang")
    assert mended(tmp_path, lang="zh-Hant", link="Glossary").a["lang"] == "en"
    fold = "<nav><li><a>1. One</a><details><summary>x</summary></details></li></nav>"
    page = mended(tmp_path, lang="zh-Hant", link=f'{fold}<button title="Page">.pdf')
    assert page.summary["aria-label"] == "下層頁面：1. One"
    button = page.find("button", attrs={"title": "本頁"})
    assert not button.get("lang")


def test_an_entry_of_the_index_without_its_place_is_a_warning(tmp_path, monkeypatch):
    said, folder = [], tmp_path / "book"
    folder.mkdir()
    (folder / "index_entries.yml").write_text(
        "entries: {a; of b: [sec-a, eq-a], c: gone}\nsee: {d: a}\n中文: {甲: a}\n"
    )
    known = {"book/index": [], "book/api_one": ["names of the package"]}
    env = SimpleNamespace(
        domaindata={
            "math": {"objects": {"eq-a": ("one", 1)}},
            "std": {"anonlabels": {"sec-a": ("one", "sec-a")}},
            "index": {"entries": known},
        },
        proof_list={},
        config=SimpleNamespace(root_doc="book/index"),
    )
    monkeypatch.setattr(INDEX_LOGGER, "warning", lambda *words: said.append(words[1:]))
    add_entries(SimpleNamespace(srcdir=tmp_path), env)
    assert said == [("c", "gone")]
    assert known["book/api_one"] == []
    assert [entry[1:3] for entry in known["one"]] == [
        ("a; of b", "sec-a"),
        ("a; of b", "equation-eq-a"),
    ]
    assert [entry[:2] for entry in known["book/index"]] == [
        ("see", "d; a"),
        ("see", "甲; a"),
    ]
