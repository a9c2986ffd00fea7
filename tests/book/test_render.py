"""What the book is rendered from: results that belong together, pages from records."""

import base64
import json
import threading
from dataclasses import replace

import nbformat
import pandas as pd
import pytest
from runs import CLAIMS_TEXT, record

from thesis_book.execute import chapters
from thesis_book.execute.chapters import CUSTOM
from thesis_book.figures.style import DARK, INK
from thesis_book.render import build as render_room
from thesis_book.render.build import render, stage
from thesis_book.render.staging import ABSENT, Published, write_picture
from thesis_book.tables.printed import table
from thesis_lib.common.errors import InvalidInput
from thesis_lib.common.files import content_hash


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout of two executed chapters, with claims and a reference of both."""
    names = ("04_evaluation", "06_evaluation")
    for part in ("notebooks", "book", "examples", "executed", "data/reference/smoke"):
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / "_config.yml").write_text("title: x")
    (tmp_path / "README.md").write_text("# x\n")
    (tmp_path / "requirements.lock").write_text("numpy==2\n")
    (tmp_path / "data" / "claims.yml").write_text(CLAIMS_TEXT)
    cell = nbformat.v4.new_code_cell("1 + 1")
    for name in names:
        notebook = nbformat.v4.new_notebook(cells=[cell])
        nbformat.write(notebook, tmp_path / "notebooks" / f"{name}.ipynb")
        write_result(tmp_path, [cell], record(name))
        made = record(name, rate=1e9 if name == names[0] else None)
        made.write(tmp_path / "data/reference/smoke" / f"{name}.json")
    monkeypatch.setattr(chapters, "root", lambda: tmp_path)
    monkeypatch.setenv("THESIS_DATA", str(tmp_path / "data"))
    return tmp_path


def write_result(checkout, cells, made):
    path = checkout / "executed" / f"{made.chapter}.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    made = replace(made, notebook_sha256=content_hash(path))
    made.write(path.with_suffix(".json"))


def staged(checkout, name):
    stage(checkout / "executed", checkout / "source")
    return (checkout / "source" / "book" / name).read_text()


def test_the_page_of_the_readers_hardware_is_written_from_the_records(checkout):
    text = staged(checkout, "your_hardware_results.txt")
    assert text.startswith("2 of 2 exact claims are equal bit for bit; ")
    front = staged(checkout, "front_claims.txt")
    assert front.startswith(
        "**3 claims are equal to the reference or within tolerance**, on the machine"
    )
    assert "[equal]{.verdict-good}" in text
    assert "36 % {cite}`thesis`" in text
    assert "| 4 | Wins of \\<bid-price\\> (%) |" in text
    assert "[expected to differ]{.verdict-open}" in text  # one record has no rate
    for end in (".svg", "-dark.svg", ".png", ".csv"):
        name = f"source/book/_static/figures/fig-your-hardware{end}"
        assert (checkout / name).stat().st_size > 100
    assert "| smoke |" in staged(checkout, "your_hardware_durations.txt")


def test_without_a_reference_or_claims_the_page_says_so(checkout):
    for path in checkout.glob("data/reference/smoke/*.json"):
        path.unlink()
    (checkout / "data" / "claims.yml").write_text("claims: {}\n")
    assert staged(checkout, "your_hardware_results.txt").startswith("No claim")
    assert staged(checkout, "front_claims.txt").startswith("No claim")
    assert "No reference run" in staged(checkout, "your_hardware_durations.txt")


def test_provenance_says_with_what_each_chapter_was_made(checkout):
    text = staged(checkout, "provenance_table.txt")
    for part in ("`c0ffee`", "llllllll", "256 MiB", "0.50, 0.90", "float64"):
        assert part in text, part


def test_packages_table_lists_purpose_and_lines_of_each_package(checkout):
    folder = checkout / "src" / "thesis_book" / "render"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text('"""A package.\n\nMore."""\n')
    (folder / "__init__.py").write_text('"""Pages."""\n')
    (folder / "build.py").write_text("x = 1\n\ny = 2\n")
    text = staged(checkout, "packages_table.txt")
    for row in (
        "| `thesis_book` | A package. | 3 |",
        "| `thesis_book.render` | Pages. | 4 |",
        "| 7 |",
    ):
        assert row in text, row


def test_the_page_of_parameters_says_what_is_allowed_and_what_ran(checkout):
    sources = {
        "parameters": "seeds: int = 2  # paired seeds\n"
        "layers: list[int] = [0, 1, 2, 3, 4, 5]  # replaced",
        "limits": "parameters.check(globals(), 'seeds  2 .. 100 runs; work\\n"
        "layers  0 .. 9; 1 .. 30 items')",
    }
    cells = [
        nbformat.v4.new_code_cell(source, metadata={"tags": [tag]})
        for tag, source in sources.items()
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python"}
    nbformat.write(notebook, checkout / "notebooks" / "04_evaluation.ipynb")
    text = staged(checkout, "parameters_table.txt")
    assert "| `seeds` | paired seeds | 2 .. 100 runs; work | `6` |" in text
    assert "| `[0, ..., 5]` |" in text


def test_large_runs_are_reported_from_their_record(checkout):
    assert "not been recorded" in staged(checkout, "parameters_large.txt")
    run = {
        "commit": "c0ffee", "points": 4, "failed": {"a": "b"}, "workers": 2,
        "point_s": {"sum": 7200.0, "median": 1.0, "most": 60.0},
        "rows": [
            {"load": 0.9, "points": 2, "FIFO (%)": [12.0, 11.0, 13.0]},
            {"load": 0.7, "points": 20480, "FIFO (%)": [0.1, -0.2, 0.4]},
            {"load": 1.5, "points": 2, "FIFO (%)": [100.0, 100.0, 100.0]},
        ],
    }  # fmt: skip
    full = {"commit": "beef", "seconds": {"a": 60.0, "b": 120.0},
            "peak_memory_bytes": 2**30}  # fmt: skip
    folder = checkout / "data" / "measurements"
    folder.mkdir()
    (folder / "grids.json").write_text(json.dumps({"g": run, "full": full}))
    text = staged(checkout, "parameters_large.txt")
    assert "4 points, 1 of them failed; 120 min on 2 workers, 60 s for" in text
    assert "took 3 min and 1 GiB at most, at `beef`." in text
    assert "| 0.9 | 2 | 12 (11 to 13) |" in text
    assert "| 0.7 | 20,480 | 0.1 (0 to 0.4) |" in text  # a share is not below 0
    assert "| 1.5 | 2 | 100 |" in text


@pytest.mark.parametrize("profile", ["smoke", CUSTOM])
def test_a_number_is_marked_absent_only_where_the_readers_parameters_left_it_out(
    checkout, profile
):
    cited = "{glue:text}`here:.1f` {glue:text}`gone:.1f`"
    made = record("04_evaluation", here=1.0)
    made.parameters["profile"] = profile
    prose = nbformat.v4.new_markdown_cell(cited)
    write_result(checkout, [prose], made)
    page = "{glue:text}`../notebooks/04_evaluation.ipynb::gone:.1f`"
    (checkout / "book" / "page.md").write_text(page)
    absent = {"smoke": False, CUSTOM: True}[profile]
    assert (staged(checkout, "page.md") == ABSENT) == absent
    text = (checkout / "source" / "notebooks" / "04_evaluation.ipynb").read_text()
    assert "`here:.1f`" in text
    assert ("gone" not in text) == absent


def test_staging_the_same_results_gives_the_same_hash(checkout):
    made = captioned(glued("n", 1.0), SHOWN)  # of which three cells are staged
    write_result(checkout, [made], record("04_evaluation", n=1.0))
    first = stage(checkout / "executed", checkout / "source")
    assert stage(checkout / "executed", checkout / "source") == first
    (checkout / "data" / "claims.yml").write_text("claims: {}\n")
    assert stage(checkout / "executed", checkout / "source") != first


def test_a_notebook_that_is_not_its_records_is_rejected(checkout):
    path = checkout / "executed" / "06_evaluation.ipynb"
    path.write_text(path.read_text() + "\n")
    with pytest.raises(InvalidInput, match="not the notebook that its record"):
        stage(checkout / "executed", checkout / "source")
    path.unlink()
    with pytest.raises(InvalidInput, match="has no result in"):
        stage(checkout / "executed", checkout / "source")


def test_two_renderings_of_one_book_take_turns(checkout, monkeypatch):
    inside, most, waited = [], [], []
    second_waits = threading.Event()

    def rendered(executed, output):
        inside.append(1)
        most.append(len(inside))
        assert second_waits.wait(15)
        inside.pop()
        return output / "html" / "index.html", True

    def waits():
        waited.append(1)
        second_waits.set()

    monkeypatch.setattr(render_room, "_render", rendered)
    both = [
        threading.Thread(target=render, args=(checkout, checkout / "book_out", waits))
        for _ in range(2)
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(120)
    assert most == [1, 1]
    assert waited == [1]


def test_a_folder_that_cannot_be_written_is_a_rejection(checkout):
    (checkout / "file").write_text("")
    with pytest.raises(InvalidInput, match="cannot be written"):
        render(checkout / "executed", checkout / "file" / "out")


# --- Times in doubt ---------------------------------

CITED = "{glue:text}`token_s:.1f` s, {glue:text}`ppl:.1f`, {glue:text}`pace:s`"
ELSEWHERE = "{glue:text}`../notebooks/06_evaluation.ipynb::token_s:.2f` s"
# As Sphinx reads both: the number of a claim is in a span that names the claim.
SPANNED = (
    "[{glue:text}`token_s:.1f`]{.claim .claim-token-s} s, "
    "[{glue:text}`ppl:.1f`]{.claim .claim-ppl}, {glue:text}`pace:s`"
)
SPANNED_ELSEWHERE = f"[{ELSEWHERE[:-2]}]{{.claim .claim-token-s}} s"
MARK = " {ref}`(in doubt) <sec-doubts>`"


SHOWN = nbformat.v4.new_output(
    "execute_result",
    data={"text/html": table(pd.DataFrame({"late": [1]}))._repr_html_()},
)


def glued(name, value, **noted):
    """The output by which a cell publishes a number."""
    return nbformat.v4.new_output(
        "display_data",
        data={"text/plain": repr(value)},
        metadata={"scrapbook": {"name": name, "mime_prefix": "", **noted}},
    )


def with_times(checkout, **changes):
    """A chapter whose text cites a time, in text, caption and alternative text."""
    made = record("06_evaluation", pace="slow", **changes)
    outputs = [glued(name, value) for name, value in made.numbers.items()]
    cell = nbformat.v4.new_code_cell("1", outputs=[*outputs, SHOWN])
    cell.metadata["mystnb"] = {"figure": {"caption": CITED}, "image": {"alt": CITED}}
    cells = [nbformat.v4.new_markdown_cell(CITED), cell]
    write_result(checkout, cells, made)
    record("06_evaluation").write(checkout / "data/reference/smoke/06_evaluation.json")
    for name, start in (("page", ""), ("page_zh", "---\nlang: zh-Hant\n---\n")):
        (checkout / "book" / f"{name}.md").write_text(start + ELSEWHERE)
    stage(checkout / "executed", checkout / "source")
    notebook = nbformat.read(
        checkout / "source" / "notebooks" / "06_evaluation.ipynb", as_version=4
    )
    (shown,) = (c.metadata["mystnb"] for c in notebook.cells if "mystnb" in c.metadata)
    book_pages = [
        (checkout / "source" / "book" / f"{name}.md").read_text()
        for name in ("page", "page_zh")
    ]
    return (
        notebook.cells[0].source, shown["figure"]["caption"], shown["image"]["alt"],
        *book_pages, (checkout / "source/book/your_hardware_results.txt").read_text(),
    )  # fmt: skip


def test_a_time_that_is_as_expected_is_not_marked(checkout):
    text, caption, alt, page, _, hardware = with_times(checkout)
    assert text == caption == SPANNED
    assert alt == "0.4 s, 20.0, slow"
    assert page == SPANNED_ELSEWHERE
    assert "doubt" not in hardware


@pytest.mark.parametrize(
    "changes",
    [
        {"token_s": 4.0},  # ten times the reference, on the same machine
        {"disturbed": "token_s pace", "disturbed_by": "others took 1.90 cores"},
    ],
    ids=["unexpected", "disturbed"],
)
def test_a_time_in_doubt_is_marked_on_every_page_that_cites_it(checkout, changes):
    text, caption, alt, page, chinese, hardware = with_times(checkout, **changes)
    first, second, third = SPANNED.split(", ")
    word = "disturbed" in changes  # it was published with the time
    assert text == caption == f"{first}{MARK}, {second}, {third}{MARK * word}"
    seconds = changes.get("token_s", 0.4)
    assert alt == f"{seconds:.1f} s (in doubt), 20.0, slow{' (in doubt)' * word}"
    assert page == SPANNED_ELSEWHERE + MARK
    assert chinese.endswith(" s {ref}`（存疑） <sec-doubts>`")
    assert "(sec-doubts)=" in hardware
    assert r"token\_s" in hardware
    assert changes.get("disturbed_by", "10.00 times") in hardware


def test_an_alternative_text_cites_only_what_its_chapter_published(checkout):
    none = Published({"x": record("x", a=1.25, less=-3.0, of="a-b")}, {})
    assert none.plain("a is {glue:text}`a:.1f`", "x") == "a is 1.2"
    less = "{glue:text}`less:.0f` of {glue:text}`of:s`"
    assert none.plain(less, "x") == "\N{MINUS SIGN}3 of a-b"
    with pytest.raises(InvalidInput, match="cites b"):
        none.plain("{glue:text}`b`", "x")


def test_the_alternative_text_of_a_directive_is_filled_as_well(checkout):
    text = ":::{figure} a\n:alt: Of {glue:text}`wins:.0f`\n\nIt, {glue:text}`wins`\n:::"
    pages = pages_of(checkout, [nbformat.v4.new_markdown_cell(text)])
    told = pages["04_evaluation"][0].source.splitlines()
    assert told[1:] == [
        ":alt: Of 96",
        "",
        "It, [{glue:text}`wins`]{.claim .claim-wins}",
        ":::",
    ]


# --- Tables and pages of details -------------------------------------------------


def pages_of(checkout, cells):
    """The staged pages of chapter 4 made of cells, by name."""
    made = record("04_evaluation", n=1.0)
    write_result(checkout, cells, made)
    stage(checkout / "executed", checkout / "source")
    return {
        path.stem: nbformat.read(path, as_version=4).cells
        for path in (checkout / "source" / "notebooks").glob("04_*.ipynb")
    }


def captioned(*outputs, tags=()):
    said = {"caption": "Late, of {glue:text}`n:.0f`", "name": "tab-late"}
    metadata = {"table": said, "tags": [*tags]}
    return nbformat.v4.new_code_cell("table(x)", outputs=[*outputs], metadata=metadata)


def test_a_table_with_a_caption_stands_before_the_call_that_made_it(checkout):
    cells = pages_of(checkout, [captioned(glued("n", 1.0), SHOWN)])["04_evaluation"]
    numbers, shown, call = cells
    assert numbers.metadata["tags"] == ["remove-cell"]
    first, name, *rows = shown.source.split("\n")
    assert first == ":::{data-table} Late, of {glue:text}`n:.0f`"
    assert name == ":name: tab-late"
    assert '<tr><th scope="row">0</th><td>1</td></tr>' in rows
    assert "table(x)" in call.source
    assert not call.outputs


def test_the_number_of_a_claim_in_a_table_is_marked_as_in_prose(checkout):
    def page(late, *names):
        frame = pd.DataFrame({"late": [1.0, late], "of": ["x", "y"]})
        places = dict.fromkeys(names, (1, "late"))
        data, noted = table(frame, claims=places)._repr_mimebundle_()
        shown = nbformat.v4.new_output("execute_result", data=data, metadata=noted)
        cells = pages_of(checkout, [captioned(glued("n", 1.0), shown)])["04_evaluation"]
        return cells[1].source

    claim = '<td><span class="claim claim-wins">95.9</span></td><td class="text">y</td>'
    assert claim in page(95.9, "wins")
    with pytest.raises(InvalidInput, match=r"says 95\.8 where wins should stand"):
        page(95.8, "wins")
    with pytest.raises(InvalidInput, match="where setting should stand, which is A"):
        page(95.9, "setting")
    assert "claim" not in page(95.9)


@pytest.mark.parametrize("outputs", [[], [SHOWN, SHOWN]])
def test_a_caption_is_of_one_table(checkout, outputs):
    text = nbformat.v4.new_output("stream", name="stdout", text="x")
    with pytest.raises(InvalidInput, match="a caption for one table"):
        pages_of(checkout, [captioned(text, *outputs)])


def test_details_are_a_page_that_cites_the_numbers_of_their_chapter(checkout):
    """Every number is still published by the chapter, whoever cites it."""
    prose = nbformat.v4.new_markdown_cell(
        "# Details\n{glue:text}`n:.0f` {glue:text}`06_evaluation.ipynb::n`"
    )
    prose.metadata["tags"] = ["details"]
    made = captioned(glued("n", 1.0), SHOWN, tags=["details"])
    home = nbformat.v4.new_markdown_cell("# Home\n{glue:text}`n`")
    pages = pages_of(checkout, [home, prose, made])
    first, numbers = pages["04_evaluation"]
    assert first.source.endswith("{glue:text}`n`")
    assert [output.metadata["scrapbook"]["name"] for output in numbers.outputs] == ["n"]
    text, shown, _ = pages["04_evaluation_details"]
    here = "{glue:text}`04_evaluation.ipynb::n"
    assert f"{here}:.0f` {{glue:text}}`06_evaluation.ipynb::n`" in text.source
    assert f"Late, of {here}:.0f`" in shown.source
    prose.source = "{glue:text}`n`"
    with pytest.raises(InvalidInput, match="cite n without a form"):
        pages_of(checkout, [home, prose, made])


def test_details_with_several_titles_are_pages_with_a_list_of_their_questions(checkout):
    texts = [
        "(ch-x-details)=\n# Details\n\nAll.\n\n(sec-how)=\n## How\n\n*How?*\n\nSo.",
        "(ch-x-details-load)=\n# Details: load\n\n(sec-load)=\n## Load\n\n*How\nmuch?*",
        "(sec-more)=\n## More\n\n*And more?*\n\n{glue:text}`n:.0f`",
        "(ch-x-details-cost)=\n# Details: cost\n\n(sec-cost)=\n## Cost\n\n*Why so?*",
    ]
    cells = [nbformat.v4.new_markdown_cell(text) for text in ["# Home", *texts]]
    for cell in cells[1:]:
        cell.metadata["tags"] = ["details"]
    pages = pages_of(checkout, cells)
    page = "04_evaluation_details"
    assert {*pages} == {"04_evaluation", page, f"{page}_load", f"{page}_cost"}
    assert [cell.source for cell in pages[f"{page}_cost"]] == [texts[3]]
    assert "`04_evaluation.ipynb::n:.0f`" in pages[f"{page}_load"][1].source
    (first,) = pages[page]
    assert [line for line in first.source.split("\n") if line] == [
        *["(ch-x-details)=", "# Details", "All."],
        "- {ref}`How? <sec-how>`",
        "{ref}`ch-x-details-load`:",
        "- {ref}`How much? <sec-load>`",
        "- {ref}`And more? <sec-more>`",
        "{ref}`ch-x-details-cost`:",
        "- {ref}`Why so? <sec-cost>`",
        *["(sec-how)=", "## How", "*How?*", "So."],
    ]


def test_a_fragment_of_html_is_filled_with_numbers(checkout):
    cited = "{glue:text}`../notebooks/04_evaluation.ipynb::wins:.1f`"
    (checkout / "book" / "front.html").write_text(f'<i style="--of: {cited}">{cited}')
    numbers = record("04_evaluation").numbers
    text = f"{numbers['wins']:.1f}"
    shown = f'<span class="claim claim-wins">{text}</span>'
    assert staged(checkout, "front.html") == f'<i style="--of: {text}">{shown}'


def test_a_change_is_the_number_of_its_claim_and_an_end_is_none(checkout):
    at = "../notebooks/04_evaluation.ipynb"
    cited = [f"{{glue:text}}`{at}::{n}:.1f`" for n in ("wins_by", "wins_low", "n")]
    (checkout / "book" / "page.md").write_text(" ".join(cited))
    first, *others = cited
    told = " ".join([f"[{first}]{{.claim .claim-wins}}", *others])
    assert staged(checkout, "page.md") == told


def test_every_claim_of_the_run_has_a_staged_card(checkout):
    cards = json.loads(staged(checkout, "claim_cards.json"))
    assert [*cards] == ["claim-wins", "claim-setting", "claim-ppl", "claim-token-s"]
    for anchor in cards:
        assert f"[]{{#{anchor}}}" in staged(checkout, "audit_table.txt")


# --- Figures -------------------------------------------------------------------
def test_a_figure_becomes_files_under_its_name_and_stays_a_vector_in_the_chapter(
    checkout,
):
    data = {
        "image/svg+xml": f'<svg fill="{INK}"/>',
        "text/csv": "x,y\n1,2\n",
        "image/png": base64.b64encode(b"png").decode(), "text/plain": "<Figure>",
    }  # fmt: skip
    output = nbformat.v4.new_output("display_data", data=data)
    metadata = {"mystnb": {"figure": {"caption": "It.", "name": "fig-it"}}}
    cell = nbformat.v4.new_code_cell("it()", outputs=[output], metadata=metadata)
    write_result(checkout, [cell], record("04_evaluation"))
    stage(checkout / "executed", checkout / "source")
    folder = checkout / "source/book/_static/figures"
    found = {path.name: path.read_bytes().decode() for path in folder.glob("fig-it*")}
    assert found == {
        "fig-it.svg": data["image/svg+xml"], "fig-it.csv": data["text/csv"],
        "fig-it-dark.svg": data["image/svg+xml"].replace(INK, DARK[INK]),
        "fig-it.png": "png",
    }  # fmt: skip
    path = checkout / "source/notebooks/04_evaluation.ipynb"
    (staged_cell,) = nbformat.read(path, as_version=4).cells
    assert set(staged_cell.outputs[0].data) == {"image/svg+xml", "text/plain"}
    assert staged_cell.metadata["mystnb"]["code_prompt_show"] == "Code of this figure"


def test_picture_names_its_run_and_a_missing_one_is_rejected(checkout, tmp_path):
    drawing = f'<svg><path fill="{INK}"/></svg>'
    output = nbformat.v4.new_output("display_data", data={"image/svg+xml": drawing})
    metadata = {"mystnb": {"figure": {"caption": "It.", "name": "fig-it"}}}
    cell = nbformat.v4.new_code_cell("it()", outputs=[output], metadata=metadata)
    made, executed = record("04_evaluation"), checkout / "executed"
    write_result(checkout, [cell], made)
    write_picture(executed, made, "fig-it", tmp_path)
    run = f"<desc>Commit {made.commit}, notebook {made.notebook_sha256}</desc>"
    for end, ink in (("", INK), ("-dark", DARK[INK])):
        kept = (tmp_path / f"fig-it{end}.svg").read_text()
        assert kept == f'<svg>{run}<path fill="{ink}"/></svg>'
    with pytest.raises(InvalidInput, match="0 figures fig-other, expected one"):
        write_picture(executed, made, "fig-other", tmp_path)
