"""What a notebook keeps of a figure: a vector, a sharp raster, and its data."""

import base64
from collections.abc import Iterator, Mapping
from io import BytesIO, StringIO
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import (
    LineCollection,
    PathCollection,
    PolyCollection,
    QuadMesh,
)
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation

SVG, PNG, CSV = "image/svg+xml", "image/png", "text/csv"
MANY = 1_000  # points of a line, of which only those apart are told
PLACES = ("x", "y", "x_low", "x_high", "y_low", "y_high", "value")
Rows = Iterator[dict[str, Any]]
Notes = Mapping[tuple[float, float], str]  # texts beside points


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
    """Return a figure's SVG and its data as CSV, by media type."""
    table = drawn(figure)
    return {SVG: as_vector(figure), CSV: table.to_csv(index=False)}


def raster(figure: Figure) -> str:
    """A figure as a 2x PNG in base 64, as a notebook keeps it."""
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=2 * figure.dpi)
    return base64.b64encode(stream.getvalue()).decode()


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


# --- What is drawn, as numbers ---------------------------------------------------
def drawn(figure: Figure) -> pd.DataFrame:
    """What a figure draws, a row a point, bar, level or cell, panel by panel.

    Columns: panel (its title, or its number), series (its label, or the text beside
    its point), mark, those of PLACES that occur, x_axis and y_axis (their labels, with
    units). Bars reach from their low end to x or y; the ends of error bars and bands
    are low and high; where an axis names its ticks, a place has the nearest name.
    What is not finite is not drawn; of a line of MANY points those are left out that
    lie on the one before, to a pixel.
    """
    figure.draw_without_rendering()  # which names the ticks
    tables, labels = [], {"x": "", "y": ""}
    for number, panel in enumerate(figure.axes, 1):
        rows = pd.DataFrame(_marks(panel), columns=["series", "mark", *PLACES])
        rows[[*PLACES]] = rows[[*PLACES]].astype(float).replace([np.inf, -np.inf], None)
        whole = rows["mark"].isin(["level", "span"])
        rows = rows[whole | rows[["x", "y"]].notna().all(axis=1)]
        for way, axis in (("x", panel.xaxis), ("y", panel.yaxis)):
            names = _names(axis)
            if names:
                rows[way] = [names.get(at, at) for at in rows[way].round()]
            # A panel without a label shares that of the one before.
            labels[way] = axis.get_label_text() or ("" if names else labels[way])
            rows[f"{way}_axis"] = labels[way]
        title = panel.get_title() or panel.get_title(loc="left") or str(number)
        rows.insert(0, "panel", _one_line(title))
        tables.append(rows)
    return pd.concat(tables, ignore_index=True).dropna(axis=1, how="all")


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


def _names(axis: Any) -> dict[float, str]:
    """The names of an axis's rows or columns, by number; none where it only counts."""
    names = [_one_line(label.get_text()) for label in axis.get_ticklabels()]
    first = 0.5 if names and axis.get_ticklocs()[0] == 0.5 else 0  # cells are wide
    ticks = [tick - first for tick in axis.get_ticklocs()]
    counted = [f"{tick:g}" for tick in ticks]
    is_named = ticks == [*range(len(names))] and names != counted
    return dict(zip(ticks, names, strict=True)) if is_named else {}


def _row(drawing: Any, mark: str, **places: float) -> dict[str, Any]:
    """A row of what a legend names; its `gid` names what is in none."""
    label = drawing.get_label()
    if not label or str(label).startswith("_"):  # which matplotlib made up
        label = (hasattr(drawing, "get_gid") and drawing.get_gid()) or ""
    return {"series": _one_line(label), "mark": mark, **places}


def _marks(panel: Axes) -> Rows:
    """The marks of a panel as rows: series, mark and those of PLACES that it has."""
    notes = {
        (float(text.xy[0]), float(text.xy[1])): text.get_text()
        for text in panel.texts
        if isinstance(text, Annotation) and text.xycoords == "data"
    }
    told: list[Any] = []  # of its container
    for container in panel.containers:
        if isinstance(container, BarContainer):
            yield from _bars(container)
            told += container
        elif isinstance(container, ErrorbarContainer):
            yield from _error_bars(container, notes)
            points, caps, bars = container.lines
            told += [points, *caps, *bars]
    bands = [
        (_row(each, "band"), *ends)
        for each in panel.collections
        if isinstance(each, PolyCollection)
        for ends in _band(each)
    ]
    for line in panel.lines:
        if line not in told:
            yield from _line(panel, line, notes, bands)
    for row, way, *columns in bands:
        other = "y" if way == "x" else "x"
        for at, low, high in zip(*columns, strict=True):
            ends = {f"{way}_low": low, f"{way}_high": high}
            yield row | {other: at, way: (low + high) / 2} | ends
    for each in panel.collections:
        if each not in told:
            yield from _collection(each, notes)
    for patch in panel.patches:
        if isinstance(patch, Rectangle) and patch not in told:
            yield _span(panel, patch)


def _bars(container: BarContainer) -> Rows:
    for bar in container:
        (x, y), width, height = bar.xy, bar.get_width(), bar.get_height()
        places = {"x": x + width / 2, "y": y + height, "y_low": y}
        if container.orientation == "horizontal":
            places = {"x": x + width, "y": y + height / 2, "x_low": x}
        yield _row(container, "bar", **places)


def _error_bars(container: ErrorbarContainer, notes: Notes) -> Rows:
    points, _, bars = container.lines
    ways = ["x"] * container.has_xerr + ["y"] * container.has_yerr
    for i, (x, y) in enumerate(np.asarray(points.get_xydata())):
        row = _point(container, "point", x, y, notes)
        for way, bar in zip(ways, bars, strict=True):
            ends = np.asarray(bar.get_paths()[i].vertices)[:, "xy".index(way)]
            row |= dict(zip((f"{way}_low", f"{way}_high"), ends, strict=True))
        yield row


def _point(drawing: Any, mark: str, x: float, y: float, notes: Notes) -> dict:
    """A point; one without a label has the text beside it."""
    row = _row(drawing, mark, x=x, y=y)
    return row | {"series": row["series"] or _one_line(notes.get((x, y), ""))}


def _line(panel: Axes, line: Any, notes: Notes, bands: list[Any]) -> Rows:
    """A line's points, with the ends of the band around it, which is taken out."""
    along, across = line.get_transform().contains_branch_seperately(panel.transData)
    at = np.asarray(line.get_xydata(), float)
    if not (along and across):
        place = {"x": at[0, 0]} if along else {"y": at[0, 1]}
        yield _row(line, "level", **place)
        return
    around = [
        band
        for band in bands
        if not band[0]["series"]
        and band[1] == "y"
        and np.array_equal(band[2], at[:, 0])
    ][:1]
    for band in around:
        del bands[next(i for i, each in enumerate(bands) if each is band)]
    mark = "step" if line.get_drawstyle().startswith("steps") else "line"
    mark = "point" if line.get_linestyle() == "None" else mark
    with np.errstate(invalid="ignore"):  # of what is not finite
        pixels = np.round(panel.transData.transform(at))
    apart = np.append(True, np.any(pixels[1:] != pixels[:-1], axis=1))[: len(at)]
    for i in np.flatnonzero(apart | (len(at) < MANY)):
        row = _point(line, mark, at[i, 0], at[i, 1], notes)
        for _, _, _, low, high in around:
            row |= {"y_low": low[i], "y_high": high[i]}
        yield row


def _band(band: PolyCollection) -> Iterator[tuple[Any, ...]]:
    """What `fill_between` or `fill_betweenx` filled: way, at, low, high."""
    for path in band.get_paths():
        corners: Any = path.vertices
        n = (len(corners) - 3) // 2
        there, back = corners[1 : n + 1], corners[2 * n + 1 : n + 1 : -1]
        along = 0 if np.array_equal(there[:, 0], back[:, 0]) else 1
        ends = np.sort([there[:, 1 - along], back[:, 1 - along]], axis=0)
        yield "yx"[along], there[:, along], *ends


def _collection(drawing: Any, notes: Notes) -> Rows:
    if isinstance(drawing, PathCollection):
        for x, y in np.asarray(drawing.get_offsets()):
            yield _point(drawing, "point", x, y, notes)
    elif isinstance(drawing, LineCollection):
        for path in drawing.get_paths():
            (x, y), (x_to, y_to) = np.asarray(path.vertices)
            ends = {"y_low": y, "y_high": y_to} if x == x_to else {}
            ends |= {"x_low": x, "x_high": x_to} if y == y_to else {}
            yield _row(drawing, "segment", x=(x + x_to) / 2, y=(y + y_to) / 2, **ends)
    elif isinstance(drawing, QuadMesh):
        for (row, column), value in np.ndenumerate(np.asarray(drawing.get_array())):
            yield _row(drawing, "cell", x=column, y=row, value=value)


def _span(panel: Axes, patch: Rectangle) -> dict[str, Any]:
    """A shaded part of a panel, by the ends that the data has."""
    ways = patch.get_transform().contains_branch_seperately(panel.transData)
    lengths = patch.get_width(), patch.get_height()
    places = {}
    for way, start, length, is_data in zip("xy", patch.xy, lengths, ways, strict=True):
        if is_data:
            places |= {f"{way}_low": start, f"{way}_high": start + length}
    return _row(patch, "span", **places)
