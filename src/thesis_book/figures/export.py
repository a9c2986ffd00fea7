"""Files of a figure: a vector, a sharp raster, and its data."""

import base64
from collections.abc import Mapping
from io import BytesIO, StringIO
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

SVG, PNG, CSV = "image/svg+xml", "image/png", "text/csv"


class Drawing(NamedTuple):
    """A figure with the tidy frame that it draws; a notebook shows and keeps both.

    A row of the frame is a point, a bar or a cell. Names of columns say their units.
    """

    figure: Figure
    frame: pd.DataFrame

    def bundle(self) -> dict[str, str]:
        """Return the SVG, the PNG of two pixels a point in base 64, and the CSV.

        The keys are media types.
        """
        stream = BytesIO()
        self.figure.savefig(stream, format="png", dpi=2 * self.figure.dpi)
        return {
            SVG: as_vector(self.figure),
            PNG: base64.b64encode(stream.getvalue()).decode(),
            CSV: self.frame.to_csv(index=False),
        }

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return self.bundle()

    def __repr__(self) -> str:
        return repr(self.figure)


def stacked(frames: Mapping[Any, pd.DataFrame], name: str = "panel") -> pd.DataFrame:
    """Return frames below each other, their keys in a first column of this name."""
    rows = pd.concat(dict(frames), names=[name]).reset_index(level=0)
    return rows.reset_index(drop=True)


def as_vector(figure: Figure, fonttype: str = "path", transparent: bool = False) -> str:
    """Return a figure as matplotlib's SVG element, with the same ids in each process.

    Args:
        figure: The figure to save.
        fonttype: "path" draws letters as outlines, so that no font is needed; "none"
            keeps text as text.
        transparent: Whether the page shows through the background.
    """
    stream = StringIO()
    with plt.rc_context({"svg.fonttype": fonttype, "svg.hashsalt": "thesis"}):
        figure.savefig(
            stream, format="svg", transparent=transparent, dpi=240,
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
        )  # fmt: skip
    text = stream.getvalue()
    return text[text.index("<svg") :]
