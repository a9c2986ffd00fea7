"""A chapter as a notebook for readers: executed, with its numbers in the text."""

import itertools
import re
from collections.abc import Callable

import nbformat

from thesis_lib.book.figures.export import CSV, PNG, SVG

KEPT_TAGS = {"injected-parameters": "parameters", "limits": "limits"}  # papermill's
_LABEL = re.compile(r"^\([\w-]+\)=\n", re.MULTILINE)
_ROLE = re.compile(r"\{[\w:]+\}`([^`<]*[^`<\s])(?:\s*<[^`]*>)?`")


def _shows(output: nbformat.NotebookNode) -> bool:
    """Whether a reader sees it: a published number is an output for Sphinx alone."""
    data = output.get("data")
    return not data or any("papermill" not in kind for kind in data)


def clean_notebook(executed: str, fill: Callable[[str], str]) -> str:
    """An executed notebook without what only the making of the book needs.

    `fill` puts the numbers into a text. References show the name that they lead to,
    as only Sphinx can number it. Parameters can be set again by papermill.
    """
    notebook = nbformat.reads(executed, as_version=4)
    tagged = [set(cell.metadata.get("tags", [])) for cell in notebook.cells]
    if any("injected-parameters" in tags for tags in tagged):  # the values that ran
        shown = ["parameters" not in tags for tags in tagged]
        notebook.cells = [*itertools.compress(notebook.cells, shown)]
    for cell in notebook.cells:
        tags = [KEPT_TAGS[t] for t in cell.metadata.get("tags", []) if t in KEPT_TAGS]
        cell.metadata = nbformat.NotebookNode({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if _shows(output)]
            for data in (output.get("data", {}) for output in cell.outputs):
                for other in (CSV, PNG) if SVG in data else ():
                    data.pop(other, None)
        if cell.cell_type == "markdown":
            text = _LABEL.sub("", fill(cell.source))
            cell.source = _ROLE.sub(r"\1", text)
    return nbformat.writes(notebook)
