"""A chapter as a notebook for readers: executed, with its numbers in the text."""

import re
from collections.abc import Callable

import nbformat

KEPT_TAGS = {"injected-parameters": "parameters", "limits": "limits"}  # papermill's
_LABEL = re.compile(r"^\([\w-]+\)=\n", re.MULTILINE)
_ROLE = re.compile(r"\{[\w:]+\}`([^`<]*[^`<\s])(?:\s*<[^`]*>)?`")


def _shows(output: nbformat.NotebookNode) -> bool:
    """Whether a reader sees it: a published number is an output for Sphinx alone."""
    data = output.get("data")
    return not data or any("papermill" not in kind for kind in data)


def clean_notebook(staged: str, fill: Callable[[str], str]) -> str:
    """A staged notebook without what only the making of the book needs.

    `fill` puts the numbers into a text. References show the name that they lead to,
    as only Sphinx can number it. Parameters can be set again by papermill.
    """
    notebook = nbformat.reads(staged, as_version=4)
    for cell in notebook.cells:
        tags = [KEPT_TAGS[t] for t in cell.metadata.get("tags", []) if t in KEPT_TAGS]
        cell.metadata = nbformat.NotebookNode({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if _shows(output)]
        if cell.cell_type == "markdown":
            text = _LABEL.sub("", fill(cell.source))
            cell.source = _ROLE.sub(r"\1", text)
    return nbformat.writes(notebook)
