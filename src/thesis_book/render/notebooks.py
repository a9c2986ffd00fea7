"""A chapter as a notebook for readers: executed, with its numbers in the text."""

import re
from collections.abc import Callable, Mapping
from itertools import compress

import nbformat

from thesis_book.figures.export import CSV, PNG, SVG

KEPT_TAGS = {
    "injected-parameters": "parameters", "parameters": "parameters", "limits": "limits",
}  # fmt: skip
# A label, and what only the page of the book can show.
_PAGE = re.compile(
    r"^\([\w-]+\)=\n|\n*^(::::+)\{container\} noprint\n(?s:.*?)^\1$", re.MULTILINE
)
_NOTE = re.compile(r"^:::\{margin\} (.*)\n((?s:.*?))^:::$", re.MULTILINE)
_ROLE = re.compile(
    r"\{(?P<role>[\w:]+)\}`(?P<text>[^`<]*[^`<\s])(?:\s*<(?P<place>[^`]*)>)?`"
)
# What has a title stands under it in bold.
_TITLED = re.compile(
    r"^(?P<fence>:::+|```+)\{(?P<kind>table|list-table|figure|prf:algorithm)\} "
    r"(?P<title>.*)\n(?::[\w-]+:.*\n)*(?P<body>(?s:.*?))^(?P=fence)$",
    re.MULTILINE,
)


def _shows(output: nbformat.NotebookNode) -> bool:
    """Whether a reader sees it: a published number is an output for Sphinx alone."""
    data = output.get("data")
    return not data or any("papermill" not in kind for kind in data)


def clean_notebook(executed: str, tell: Callable[[str], str]) -> str:
    """An executed notebook without what only the making of the book needs.

    `tell` puts the numbers into a text. The parameters are those that ran, and
    papermill can set them again.
    """
    notebook = nbformat.reads(executed, as_version=4)
    notebook.metadata.pop("papermill", None)
    tags = [set(cell.metadata.get("tags", [])) for cell in notebook.cells]
    if any("injected-parameters" in own for own in tags):
        shown = ["parameters" not in own for own in tags]
        notebook.cells = [*compress(notebook.cells, shown)]
    for cell in notebook.cells:
        named = [KEPT_TAGS[t] for t in cell.metadata.get("tags", []) if t in KEPT_TAGS]
        cell.metadata = nbformat.NotebookNode({"tags": named} if named else {})
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if _shows(output)]
            for data in (output.get("data", {}) for output in cell.outputs):
                for other in (CSV, PNG) if SVG in data else ():
                    data.pop(other, None)
        if cell.cell_type == "markdown":
            cell.source = _NOTE.sub(r"> **\1.** \2", _PAGE.sub("", tell(cell.source)))
    return nbformat.writes(notebook)


def without_roles(
    notebook: str, shown: Mapping[str, str], cited: Mapping[str, str]
) -> str:
    """A notebook whose references read as in the book, and other roles as their text.

    `shown` says how the book shows a place: Section 3.1 for sec-drop; `cited` how it
    shows the key of a work. Raises KeyError for one that is not there.
    """

    def plain(hit: re.Match) -> str:
        if hit["role"] == "cite":
            return f"[{', '.join(cited[key] for key in hit['text'].split(','))}]"
        place = f"equation-{hit['text']}" if hit["role"] == "eq" else hit["text"]
        place = hit["place"] if "{number}" in place else place
        return shown.get(place, hit["text"])

    def titled(hit: re.Match) -> str:
        kind, title, body = hit["kind"], hit["title"].strip(), hit["body"].strip()
        if kind == "figure":  # its title is a file of the book, and its body a caption
            return body
        prefix = "Algorithm: " if kind == "prf:algorithm" else ""
        return f"**{prefix}{title}**\n\n{body}"

    content = nbformat.reads(notebook, as_version=4)
    for cell in content.cells:
        if cell.cell_type == "markdown":
            cell.source = _TITLED.sub(titled, _ROLE.sub(plain, cell.source))
    return nbformat.writes(content)
