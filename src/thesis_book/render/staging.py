"""Stage an executed chapter for Sphinx: pages, numbers, tables and figures."""

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import nbformat

from thesis_book.execute.chapters import CUSTOM, PROFILE_PARAMETER
from thesis_book.execute.records import Record
from thesis_book.figures.export import CSV, PNG, SVG
from thesis_book.figures.style import dark
from thesis_book.tables.printed import CLAIMS, HTML, signed
from thesis_lib.common.errors import require

DETAILS = "details"  # the tag of cells on pages of their own, and in these pages' names

_CITED = re.compile(
    r"(?P<cited>\{glue:text\}`(?:(?P<path>[^`:]*?)(?P<chapter>\d\d_\w+)\.ipynb::)?"
    r"(?P<name>\w+)(?::(?P<form>[^`]*))?`)"
    r"(?P<unit>(?: (?:%|[nµm]?s|points?|times|[MG]i?B(?:/s)?|毫?秒)(?![\w/]))?)"
)

# The label above the title of a page of details: "details-NAME" names the page.
_PAGE = re.compile(r"\((?P<label>[\w-]+-details(?:-(?P<name>\w+))?)\)=\n# ")
_QUESTION = re.compile(r"(?m)^\(([\w-]+)\)=\n## .+\n\n\*([^*]+\?)\*$")

MARKS = {"en": "(in doubt)", "zh-Hant": "（存疑）"}
ABSENT = "– *(not computed with these parameters)*"


@dataclass(frozen=True, slots=True)
class Published:
    """Published values of the chapters of a run, with the unreliable ones."""

    records: Mapping[str, Record]  # by chapter
    doubted: Mapping[str, Mapping[str, str]]  # by chapter and name, with the reason
    # By chapter and name: the anchor of the claim that a number states.
    claims: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def _absent(self, chapter: str, name: str) -> bool:
        """Return whether the reader's parameters left a number out; profiles do not."""
        record = self.records.get(chapter)
        return (
            record is not None
            and record.parameters.get(PROFILE_PARAMETER) == CUSTOM
            and name not in record.numbers
        )

    def mark(self, text: str, home: str = "", language: str = "en") -> str:
        """MyST text that says of each number it cites whether it is absent or doubted.

        `home` is the chapter that the text stands in. A doubt stands behind the unit
        and leads to its reason; the number of a claim is in a span of the classes
        `claim` and its anchor.
        """

        def marked(hit: re.Match) -> str:
            chapter = hit["chapter"] or home
            if self._absent(chapter, hit["name"]):
                return ABSENT + hit["unit"]
            mark = f" {{ref}}`{MARKS[language]} <sec-doubts>`"
            claim = self.claims.get(chapter, {}).get(hit["name"])
            number = f"[{hit['cited']}]{{.claim .{claim}}}" if claim else hit["cited"]
            doubted = hit["name"] in self.doubted.get(chapter, {})
            return number + hit["unit"] + mark * doubted

        return _CITED.sub(marked, text)

    def html(self, text: str, home: str) -> str:
        """A fragment of HTML as `plain` fills it, with spans as `mark` makes them."""

        def spanned(hit: re.Match) -> str:
            claim = self.claims.get(hit["chapter"] or home, {}).get(hit["name"])
            span = f'<span class="claim {claim}">{hit["cited"]}</span>{hit["unit"]}'
            return span if claim else hit[0]

        shown = re.sub(r">[^<]+", lambda part: _CITED.sub(spanned, part[0]), text)
        return self.plain(shown, home)

    def cells(self, table: str, home: str, places: Mapping[str, Sequence[int]]) -> str:
        """The HTML of a table with spans as `mark` makes them round what claims state.

        `places` are those of `printed.Table`. Raises InvalidInput where a cell does not
        say the number that was published under its name.
        """
        head, body = table.split("<tbody>\n")
        rows = body.split("\n")
        for name, (row, column) in places.items():
            cells = rows[row].split("<td")
            text = re.findall(">([^<]*)<", cells[column])[0]
            _, _, digits = text.partition(".")
            number = self.records[home].numbers.get(name)
            require(
                isinstance(number, int | float)
                and signed(f"{number:,.{len(digits)}f}") == text,
                f"a table of {home} says {text} where {name} should stand, which is "
                f"{number}: correct its `claims`",
            )
            if claim := self.claims.get(home, {}).get(name):
                span = f'><span class="claim {claim}">{text}</span><'
                cells[column] = cells[column].replace(f">{text}<", span, 1)
            rows[row] = "<td".join(cells)
        return "\n".join([f"{head}<tbody>", *rows])

    def plain(self, text: str, home: str, reject: bool = True) -> str:
        """Text that can hold no role, such as an alternative one: filled and marked.

        Raises InvalidInput for a name that the chapter did not publish, unless `reject`
        is off: then the name stays, and the build rejects it.
        """

        def filled(hit: re.Match) -> str:
            chapter, name = hit["chapter"] or home, hit["name"]
            if self._absent(chapter, name):
                return "(not computed)" + hit["unit"]
            numbers = self.records[chapter].numbers if chapter in self.records else {}
            if name not in numbers and not reject:
                return hit[0]
            require(
                name in numbers,
                f"an alternative text of {home} cites {name}, which {chapter} did not "
                "publish: publish it, or correct the text",
            )
            mark = f" {MARKS['en']}" * (name in self.doubted.get(chapter, {}))
            number = signed(format(numbers[name], hit["form"] or ""))
            return number + hit["unit"] + mark

        return _CITED.sub(filled, text)


def stage_notebook(
    executed: Path, published: Published, figures: Path
) -> dict[str, str]:
    """A chapter's pages as readers see them, by name: the chapter, and its details.

    Cells tagged `details` make the other pages: a title with a label `x-details-NAME`
    begins one. If there are several, the first lists the questions of all. Every number
    stays published by the chapter's own page. Times in doubt are marked, alternative
    texts filled in, and the files of figures written to `figures`. Raises InvalidInput
    if the run wrote to standard error: a reader would see it.
    """
    notebook, home = nbformat.read(executed, as_version=4), executed.stem
    notebook.metadata.pop("papermill", None)
    pages: dict[str, list[Any]] = {home: []}
    details = f"{home}_{DETAILS}"  # the present page of details
    plain = partial(published.plain, home=home)  # for what can hold no role
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        tags = cell.metadata.setdefault("tags", [])
        aside = DETAILS in tags
        if aside and (begin := _PAGE.match(cell.source)):
            details = "_".join(filter(None, [home, DETAILS, begin["name"]]))
        page = pages.setdefault(details if aside else home, [])
        tell = partial(_told, published, home, aside)
        if cell.cell_type == "markdown":
            text = re.sub(r"(?m)^:alt: .*", lambda alt: plain(alt[0]), cell.source)
            cell.source = tell(text)
            page.append(cell)
            continue
        _reject_errors(executed.name, cell)
        numbers = [o for o in cell.outputs if "scrapbook" in o.get("metadata", {})]
        if numbers:
            hidden = {"tags": ["remove-cell"]}
            cell_id = f"{cell.id}-numbers"  # the same each time
            pages[home].append(
                nbformat.v4.new_code_cell(id=cell_id, outputs=numbers, metadata=hidden)
            )
        cell.outputs = [output for output in cell.outputs if output not in numbers]
        if cell.outputs:
            if alt := cell.metadata.get("mystnb", {}).get("image", {}).get("alt"):
                cell.metadata["mystnb"]["image"]["alt"] = plain(alt)
            page += _shown(cell, tell, partial(published.cells, home=home), figures)
    if len(pages) > 2:
        _, *others = pages.values()
        title, top = others[0][0], re.compile(r"(?=\n\n\([\w-]+\)=\n## |\Z)")
        title.source = top.sub(lambda _: _questions(others), title.source, count=1)
    staged = {}
    for name, cells in pages.items():
        notebook.cells = cells
        staged[name] = nbformat.writes(notebook)
    return staged


def _questions(pages: Sequence[list[Any]]) -> str:
    """Return the list of questions that the details answer, page by page."""
    lines = []
    for cells in pages:
        text = "\n\n".join(c.source for c in cells if c.cell_type == "markdown")
        begin = _PAGE.match(text) if lines else None
        lines += ["", f"{{ref}}`{begin['label']}`:"] if begin else []
        lines += [""]
        for label, question in _QUESTION.findall(text):
            lines.append(f"- {{ref}}`{' '.join(question.split())} <{label}>`")
    return "\n".join(["", *lines])


def _told(published: Published, home: str, aside: bool, text: str) -> str:
    """MyST text with its doubts marked; on the page of details it cites `home`.

    Raises InvalidInput for a number there without a form, which would not be shown.
    """
    text = published.mark(text, home)
    if not aside:
        return text
    bare = re.findall(r"\{glue:text\}`(\w+)`", text)
    require(
        not bare,
        f"the details of {home} cite {', '.join(bare)} without a form: a page shows "
        "numbers of another only with one, such as `name:.1f`, `name:d` or `name:s`",
    )
    return re.sub(r"(?<=\{glue:text\}`)(?=\w+:(?!:))", f"{home}.ipynb::", text)


def _reject_errors(name: str, cell: Any) -> None:
    for output in cell.outputs:
        require(
            output.get("name") != "stderr",
            f"{name} wrote to standard error: {str(output.get('text'))[:200]!r}; mend "
            f"the cell that starts {cell.source[:60]!r}",
        )


def _shown(
    cell: Any, tell: Callable[[str], str], say: Callable[..., str], figures: Path
) -> list[Any]:
    """Render a table or figure with its caption; raise InvalidInput without a table."""
    mystnb, cells, what = cell.metadata.get("mystnb", {}), [], ""
    figure = mystnb.get("figure", {})
    if caption := figure.get("caption"):
        figure["caption"] = tell(caption)
    if table := cell.metadata.pop("table", None):
        cells = [_captioned(cell, say, tell(table["caption"]), table["name"])]
        cell.outputs, what = [], "table"
    csv_data = [o.data for o in cell.outputs if CSV in o.get("data", {})]
    if "name" in figure and csv_data:
        write_figure(csv_data[0], figure["name"], figures)
        for kind in {CSV, PNG} & csv_data[0].keys():
            del csv_data[0][kind]
        what = "figure"
    if what:
        mystnb["code_prompt_show"] = f"Code of this {what}"
        mystnb["code_prompt_hide"] = f"Hide the code of this {what}"
        cell.metadata["mystnb"] = mystnb
    if not {"hide-input", "remove-input", "remove-cell"} & {*cell.metadata["tags"]}:
        cell.metadata["tags"].append("hide-input")
    return [*cells, cell]


def _captioned(cell: Any, say: Callable[..., str], caption: str, name: str) -> Any:
    """Return a cell's table with number and caption; raise InvalidInput without one."""
    shown = [output.get("data", {}).get("text/html") for output in cell.outputs]
    rows = re.findall(r"<thead>.*?</tbody>", "".join(filter(None, shown)), re.DOTALL)
    require(
        len(rows) == len(shown) == 1,
        f"the cell that starts {cell.source[:60]!r} has a caption for one table and "
        f"shows {len(rows)} of {len(shown)} outputs: end it with `table(...)`",
    )
    places = cell.outputs[0].get("metadata", {}).get(HTML, {}).get(CLAIMS, {})
    lines = [
        f":::{{data-table}} {caption}",
        f":name: {name}",
        *[":class: marks"] * ("marks" in cell.metadata["tags"]),
        "",
        say(rows[0], places=places),
        ":::",
    ]
    return nbformat.v4.new_markdown_cell("\n".join(lines), id=f"{cell.id}-caption")


def write_figure(data: Mapping[str, str], name: str, folder: Path) -> None:
    """Write the files of a figure from what a notebook keeps of it, by media types.

    They are NAME.svg, for a dark page NAME-dark.svg, NAME.png and NAME.csv.
    """
    (folder / f"{name}.svg").write_text(data[SVG])
    (folder / f"{name}-dark.svg").write_text(dark(data[SVG]))
    (folder / f"{name}.csv").write_text(data[CSV])
    (folder / f"{name}.png").write_bytes(base64.b64decode(data[PNG]))


def write_picture(executed: Path, record: Record, name: str, folder: Path) -> None:
    """Write the vectors of a chapter's figure, which say the run that drew them.

    They are FOLDER/NAME.svg and, for a dark page, NAME-dark.svg. Raises InvalidInput
    where the executed chapter of `record` has no such figure.
    """
    path = executed / f"{record.chapter}.ipynb"
    drawings = [
        output.data[SVG]
        for cell in nbformat.read(path, as_version=4).cells
        if cell.metadata.get("mystnb", {}).get("figure", {}).get("name") == name
        for output in cell.outputs
        if SVG in output.get("data", {})
    ]
    require(
        len(drawings) == 1,
        f"{path} has {len(drawings)} figures {name}, expected one: execute the chapter "
        "again, or name another figure",
    )
    says = f"<desc>Commit {record.commit}, notebook {record.notebook_sha256}</desc>"
    drawing = drawings[0].replace(">", f">{says}", 1)
    (folder / f"{name}.svg").write_text(drawing)
    (folder / f"{name}-dark.svg").write_text(dark(drawing))
