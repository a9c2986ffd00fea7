"""Pages of HTML that are one file each, from templates or from notebooks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thesis_lib.common.files import write_whole

TEMPLATES = Path(__file__).parents[1] / "templates"


def render_page(template: str, **values: Any) -> str:
    """The page that a template makes of `values`, which are escaped as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def write_notebook(path: Path, title: str, code: Sequence[str]) -> None:
    """Execute a notebook in its folder, and export it as one HTML file.

    Args:
        path: Where to write the notebook; the page is written with the suffix .html.
        title: Markdown of the first cell.
        code: Sources of the other cells. The page shows only their outputs.
    """
    from nbclient import NotebookClient
    from nbconvert import HTMLExporter
    from nbformat import v4, writes

    cells = [v4.new_markdown_cell(title), *map(v4.new_code_cell, code)]
    notebook = v4.new_notebook(cells=cells)
    NotebookClient(
        notebook,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        extra_arguments=["--log-level=CRITICAL"],
    ).execute()
    write_whole(path, writes(notebook))
    offline = dict.fromkeys(["mathjax_url", "require_js_url", "mermaid_js_url"], "")
    page, _ = HTMLExporter(exclude_input=True, **offline).from_notebook_node(notebook)
    write_whole(path.with_suffix(".html"), page)
