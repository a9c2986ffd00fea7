"""A table that a chapter computed, with a number, a caption and a label."""

from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class DataTable(SphinxDirective):
    """The rows are HTML; the argument is the caption, and `name` the label."""

    required_arguments = 1
    final_argument_whitespace = True
    option_spec: ClassVar = {
        "name": directives.unchanged,
        "class": directives.class_option,
    }
    has_content = True

    def run(self) -> list[nodes.Node]:
        said, faults = self.parse_inline(self.arguments[0])
        table = nodes.table("", nodes.title("", "", *said))
        table["classes"] += ["dataframe", *self.options.get("class", [])]
        table += nodes.raw("", "\n".join(self.content), format="html")
        self.add_name(table)
        self.set_source_info(table)
        return [table, *faults]


def setup(app: Sphinx) -> dict:
    app.add_directive("data-table", DataTable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
