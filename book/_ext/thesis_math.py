"""Formulas as MathML, made while the book is built: no script runs in the reader's.

Browsers draw MathML by themselves, with the font of `_static/fonts.css`; it can be
selected, searched and read aloud, and it is no stop of the tabulator.
"""

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

LOGGER = logging.getLogger(__name__)
CONVERTER = LatexToMathML(fancy_error=False)


def mathml(node: nodes.math | nodes.math_block, display: bool) -> str:
    """The MathML of a formula; one that cannot be read is a warning of the build."""
    latex = node.astext()
    try:
        return CONVERTER.convert_with_local_state(latex, displaystyle=display)
    except LatexError as error:
        LOGGER.warning("%s in the formula %r", error, latex, location=node)
        return ""


def visit_math(writer: HTML5Translator, node: nodes.math) -> None:
    formula = mathml(node, display=False)
    writer.body.append(f'<span class="math notranslate nohighlight">{formula}</span>')
    raise nodes.SkipNode


def visit_math_block(writer: HTML5Translator, node: nodes.math_block) -> None:
    """A formula in its own box, with its number and the link to it behind."""
    start = writer.starttag(node, "div", CLASS="math notranslate nohighlight")
    writer.body.append(f'{start}<div class="formula">{mathml(node, True)}</div>')
    if node["number"]:
        number = get_node_equation_number(writer, node)
        writer.body.append(f'<span class="eqno">({number})')
        writer.add_permalink_ref(node, "Link to this equation")
        writer.body.append("</span>")
    writer.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
