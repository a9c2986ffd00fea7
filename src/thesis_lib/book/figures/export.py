"""What a notebook keeps of a figure: a vector, a sharp raster, and its data."""

import re
from io import StringIO
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from thesis_lib.book.figures.data import drawn

SVG, PNG, CSV = "image/svg+xml", "image/png", "text/csv"


def keep_files() -> None:
    """Let the notebook that calls this keep each figure's SVG, its data, a 2x PNG."""
    from IPython.core.getipython import get_ipython  # of the kernel, as matplotlib's
    from matplotlib_inline.config import InlineBackend

    shell: Any = get_ipython()
    if shell:
        InlineBackend.instance(parent=shell).figure_formats = {"retina"}
        formatter = shell.display_formatter.mimebundle_formatter
        formatter.for_type(Figure, lambda figure, **_: bundle(figure))


def bundle(figure: Figure) -> dict[str, str]:
    """A figure's vector and its data, by their media types."""
    return {SVG: as_vector(figure), CSV: drawn(figure).to_csv(index=False)}


def as_vector(figure: Figure) -> str:
    """A figure as an SVG file that is the same whenever it is drawn.

    Text becomes outlines, so that no other font can stand in for its own.
    """
    text = svg_element(figure, "path", transparent=False)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)  # the window's
    text = re.sub(r"scale\([^)]*\)|matrix\([^)]*\)|-?\d*\.\d{3,}", _rounded, text)
    text = re.sub(r'(?<= d=")[^"]*', _packed, text)
    return re.sub(r"<!--.*?-->|(?<=>)\s+(?=<)|(?<=>)\n", "", text, flags=re.DOTALL)


def svg_element(figure: Figure, fonttype: str, transparent: bool) -> str:
    """A figure as matplotlib's SVG, from its element on, with the same ids each time.

    `fonttype` is "path" or "none", which leaves text as text.
    """
    stream = StringIO()
    with plt.rc_context({"svg.fonttype": fonttype, "svg.hashsalt": "thesis"}):
        figure.savefig(
            stream, format="svg", transparent=transparent,
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
        )  # fmt: skip
    text = stream.getvalue()
    return text[text.index("<svg") :]


def _rounded(hit: re.Match) -> str:
    """A coordinate to a hundredth of a point; what scales others as it is."""
    if "(" in hit[0]:
        return hit[0]
    return f"{float(hit[0]):.2f}".rstrip("0").rstrip(".").replace("-0", "0") or "0"


def _packed(hit: re.Match) -> str:
    """The commands of a path without the blanks that they do not need."""
    return re.sub(r"\s*([A-Za-z])\s*", r"\1", " ".join(hit[0].split()))
