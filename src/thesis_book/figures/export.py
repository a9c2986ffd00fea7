"""What a notebook keeps of a figure: a vector, a sharp raster, and its data."""

import base64
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO, StringIO
from itertools import accumulate, combinations, pairwise
from math import dist, nan
from typing import Any
from weakref import WeakKeyDictionary

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import (
    LineCollection,
    PathCollection,
    PolyCollection,
    QuadMesh,
)
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Affine2D, Bbox

SVG, PNG, CSV = "image/svg+xml", "image/png", "text/csv"
NARROW = "image/vnd.thesis.narrow+svg"  # another SVG, for a narrow screen
NARROW_IN, LEAST_PT = 3.45, 7.0  # on a phone such letters are as high as 9 pixels
MANY = 1_000  # points of a line, of which only those apart are told
PLACES = ("x", "y", "x_low", "x_high", "y_low", "y_high", "value")
Rows = Iterator[dict[str, Any]]
Notes = Mapping[tuple[float, float], str]  # texts beside points
# How the labels of a panel find their places, once it has another width.
LABELLED: WeakKeyDictionary[Axes, Callable[[Axes], None]] = WeakKeyDictionary()


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
    """A figure's vectors and its data, by their media types.

    One is for a narrow screen, where the figure is not shown in `pieces` and has room.
    """
    table = drawn(figure)
    with _as_in_its_file(figure):
        found, before = pieces(figure), _collisions(figure)
        kept = {SVG: _written(figure, found), CSV: table.to_csv(index=False)}
        if found:
            return kept
        with _narrowed(figure):
            figure.draw_without_rendering()
            letters: Any = figure.findobj(Text)
            least = min(each.get_fontsize() for each in letters)
            shown = min(1, NARROW_IN / figure.get_tightbbox().width)
            fits = least * shown >= LEAST_PT and _collisions(figure) <= before
            return kept | ({NARROW: _written(figure, [])} if fits else {})


def _collisions(figure: Figure) -> int:
    """Pairs of texts that share a place, texts that are cut, and that cross an axis."""
    labels = [(panel, text) for panel in figure.axes for text in panel.texts]
    legends = [*figure.legends, *filter(None, (p.get_legend() for p in figure.axes))]
    texts = [text for _, text in labels]
    texts += [text for legend in legends for text in legend.get_texts()]
    boxes = [text.get_window_extent().padded(-1) for text in texts if text.get_text()]
    pairs = sum(one.overlaps(other) for one, other in combinations(boxes, 2))
    cut = sum(box.xmax > figure.bbox.xmax or box.xmin < 0 for box in boxes)
    edges = [
        (text.get_window_extent(), panel.get_window_extent().xmin)
        for panel, text in labels
    ]
    return pairs + cut + sum(box.xmin + 1 < at < box.xmax - 1 for box, at in edges)


@contextmanager
def _narrowed(figure: Figure) -> Iterator[None]:
    """A figure in its file, of another width, its legends in columns that have room.

    Its panels stay as high as they were. Labels that found their places find them anew.
    """
    size_in, legends = figure.get_size_inches(), figure.legends
    labelled = [panel for panel in figure.axes if panel in LABELLED]
    places = [(each, each.get_position()) for p in labelled for each in p.texts]
    made = [_reflowed(figure, legend) for legend in legends]
    grown = sum(map(_height_in, made)) - sum(map(_height_in, legends))
    figure.legends = made
    figure.set_size_inches(NARROW_IN, size_in[1] + grown)
    for panel in labelled:
        LABELLED[panel](panel)
    try:
        yield
    finally:
        for text, place in places:
            text.set_position(place)
        figure.legends = legends
        figure.set_size_inches(*size_in)


def _reflowed(figure: Figure, legend: Legend) -> Legend:
    """A legend of the same marks and names that a narrow figure has room for."""
    texts = legend.get_texts()
    names, font = [each.get_text() for each in texts], texts[0].get_fontproperties()
    handles: Any = legend.legend_handles

    def made(columns: int) -> Legend:
        place = {"loc": "outside lower center", "ncols": columns, "prop": font}
        return Legend(figure, handles, names, **place)

    def fits(columns: int) -> bool:
        return made(columns).get_window_extent().width <= 72 * NARROW_IN

    return made(next(filter(fits, range(len(texts), 1, -1)), 1))


def _height_in(legend: Legend) -> float:
    return legend.get_window_extent().height / 72


def raster(figure: Figure) -> str:
    """A figure as a 2x PNG in base 64, as a notebook keeps it."""
    stream = BytesIO()
    figure.savefig(stream, format="png", dpi=2 * figure.dpi)
    return base64.b64encode(stream.getvalue()).decode()


def as_vector(figure: Figure) -> str:
    """A figure as a small SVG file that is the same whenever it is drawn.

    Text becomes outlines, so that no other font can stand in for its own. Places are
    rounded to a hundredth of a point. The attribute `data-panels` has what `pieces`
    finds: its boxes as "x y width height", those of a piece behind commas.
    """
    with _as_in_its_file(figure):
        return _written(figure, pieces(figure))


def _written(figure: Figure, found: list[list[Bbox]]) -> str:
    """The file of a figure that is laid out as there, of these pieces."""
    with _laid_out(figure):
        text = svg_element(figure, "path", transparent=False)
    for blank in re.findall(r'id="([^"]+)" transform="scale\(0.015625\)"/>', text):
        text = re.sub(rf'<(path id="|use [^>]*href="#){blank}"[^>]*/>', "", text)
    text = re.sub(r' d="([^"]*)" transform="scale\(0.015625\)"', _letter, text)
    # Of letters; a raster stands in the scale of one.
    text = re.sub(r"scale\((0\.\d+) -\1\)(.*?</g>)", _on_grid, text, flags=re.DOTALL)
    text = re.sub(r'(?<= d=")[^"]*', _steps, text)
    text = re.sub(r"scale\([^)]*\)|matrix\([^)]*\)|-?\d*\.\d{3,}", _rounded, text)
    text = re.sub(r'(?<=style=")[^"]*', lambda hit: re.sub(r"\s", "", hit[0]), text)
    text = re.sub(r'transform="translate\(([\d.]+) 0\)"/>', r'x="\1"/>', text)
    text = re.sub(r"<!--.*?-->|(?<=>)\s+(?=<)|(?<=>)\n", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns:xlink="[^"]+"', "", text.replace("xlink:href", "href"))
    used = dict.fromkeys(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    short = {name: _letters(number) for number, name in enumerate(used)}
    text = re.sub(r' id="([^"]+)"', lambda hit: hit[0] * (hit[1] in short), text)
    text = re.sub(
        r'(id="|href="#|url\(#)([^")]+)', lambda hit: hit[1] + short[hit[2]], text
    )
    text = _with_shared_classes(_with_classes(text))
    text = _without_repeated_texts(_without_bare_groups(text), len(short))
    boxes = [
        ",".join(" ".join(f"{side:.1f}" for side in box.bounds) for box in piece)
        for piece in found
    ]
    said = f' data-panels="{";".join(boxes)}"' if boxes else ""
    return text.replace("<svg", f"<svg{said}", 1)


@contextmanager
def _as_in_its_file(figure: Figure) -> Iterator[None]:
    """A figure whose pixels are points and whose letters are as wide as in its file."""
    canvas, dpi = figure.canvas, figure.dpi
    FigureCanvasSVG(figure)
    figure.dpi = 72
    figure.draw_without_rendering()
    try:
        yield
    finally:
        figure.set_canvas(canvas)
        figure.dpi = dpi


@contextmanager
def _laid_out(figure: Figure) -> Iterator[None]:
    """A figure whose panels stay where they are, however often it is drawn."""
    engine = figure.get_layout_engine()
    with plt.rc_context({"figure.constrained_layout.use": False}):
        figure.set_layout_engine(None)
    try:
        yield
    finally:
        figure.set_layout_engine(engine)


def pieces(figure: Figure) -> list[list[Bbox]]:
    """What a narrow screen shows of a figure one below the other, in its order.

    The figure stands `_as_in_its_file`. That is nothing where no panels stand side by
    side. Else it is the columns of the legend below them, then their own. A piece is
    boxes side by side, in points from the upper left of the drawing. The last is its
    own; before it stands, for panels whose y axis says no numbers, that of the first
    column. The own boxes share no place, and together they hold every letter.
    """
    whole = figure.get_tightbbox().padded(plt.rcParams["savefig.pad_inches"])
    whole = Bbox(72 * whole.get_points())
    in_points = Affine2D().translate(-whole.xmin, -whole.ymax).scale(1, -1)

    def box(drawn: Any) -> Bbox:
        return drawn.get_tightbbox().transformed(in_points)

    panels = {panel: box(panel) for panel in figure.axes}
    spans = [(each.xmin, each.xmax) for each in panels.values()]
    columns = _columns(spans, 0, whole.width)
    if len(columns) < 2:
        return []
    found, floor = [], whole.height
    for legend in figure.legends:
        floor = (max(each.ymax for each in panels.values()) + box(legend).ymin) / 2
        before: Any = legend.handlelength + legend.handletextpad  # in its letters' size
        spans = [
            (box(text).xmin - before * text.get_fontsize(), box(text).xmax)
            for text in legend.get_texts()
        ]
        ends = np.add([np.min(spans), np.max(spans)], [-4, 4])
        for start, end in _columns(spans, *ends):
            found.append([Bbox.from_extents(start, floor, end, whole.height)])
    axis = Bbox.from_extents(0, 0, 0, floor)
    for start, end in columns:
        drawn = [each for each, at in panels.items() if start <= at.xmin < end]
        own = Bbox.from_extents(start, 0, end, floor)
        if start == 0:
            numbers = max(box(each.yaxis).xmax for each in drawn)
            axis = Bbox.from_extents(0, 0, numbers + 1, floor)
        ticks = [each.yaxis.get_tick_params() for each in drawn]
        says = any(tick.get("labelleft", True) for tick in ticks)
        found.append([own] if says else [axis, own])
    return found


def _columns(
    spans: Iterable[tuple[float, float]], start: float, end: float
) -> list[tuple[float, float]]:
    """From a start to an end, parted in the middle of each gap between spans."""
    spans = sorted(spans)
    reach = accumulate((high for _, high in spans), max)
    gaps = zip(reach, (low for low, _ in spans[1:]), strict=False)
    edges = [(high + low) / 2 for high, low in gaps if low > high]
    return [*pairwise([start, *edges, end])]


def _letters(number: int) -> str:
    """A name for a number, as short as names of XML can be: no digit begins them."""
    return "".join(chr(ord("a") + int(digit, 16)) for digit in f"{number:x}")


def unsized(svg: str) -> str:
    """A drawing that is as large as the window that it is opened in."""
    return re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)


def _with_classes(svg: str) -> str:
    """An SVG whose looks are classes, each said once."""
    names: dict[str, str] = {}

    def named(hit: re.Match) -> str:
        look = ";".join(filter(None, [hit[1] and f"clip-path:{hit[1]}", hit[2]]))
        return f' class="{names.setdefault(look, f"c{len(names)}")}"'

    svg = re.sub(r'(?: clip-path="([^"]+)")? style="([^"]+)"', named, svg)
    rules = "".join(f".{name}{{{look}}}" for look, name in names.items())
    return svg.replace("</style>", f"{rules}</style>", 1)


def _with_shared_classes(svg: str) -> str:
    """An SVG whose marks of one look stand in a group that says it."""

    def shared(hit: re.Match) -> str:
        looks = set(re.findall(r"( class=[^/]+)/>|/>", hit[2]))
        look = looks.pop() if len(looks) == 1 else ""
        return f"<g{hit[1]}{look}>{hit[2].replace(look, '')}</g>"

    return re.sub(r"<g( clip-path=[^>]+)>((?:<use [^>]+>)+)</g>", shared, svg)


def _without_repeated_texts(svg: str, named: int) -> str:
    """An SVG that draws a text again by its first; `named` are the names it has."""
    texts = re.compile(r"(?<=>)(?:<use[^>]*/>){3,}(?=</g>)")
    counted = Counter(texts.findall(svg))
    often = (text for text, times in counted.items() if times > 1)
    for number, text in enumerate(often, named):
        name = _letters(number)
        first, *others = svg.split(f">{text}</g>")
        again = f'><use href="#{name}"/></g>'
        svg = f'{first}><g id="{name}">{text}</g></g>{again.join(others)}'
    return svg


def _without_bare_groups(svg: str) -> str:
    """An SVG without the groups that say nothing of what is in them."""
    kept, open_groups = [], []
    for part in re.split(r"(<g\b[^>]*>|</g>)", re.sub(r"<g\b[^>]*/>", "", svg)):
        if part.startswith("<g"):
            open_groups.append(part != "<g>")
        stays = open_groups.pop() if part == "</g>" else part != "<g>"
        kept += [part] * stays
    return "".join(kept)


def svg_element(figure: Figure, fonttype: str, transparent: bool) -> str:
    """A figure as matplotlib's SVG, from its element on, with the same ids each time.

    `fonttype` is "path" or "none", which leaves text as text.
    """
    stream = StringIO()
    with plt.rc_context({"svg.fonttype": fonttype, "svg.hashsalt": "thesis"}):
        figure.savefig(
            stream, format="svg", transparent=transparent, dpi=240,
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
        )  # fmt: skip
    text = stream.getvalue()
    return text[text.index("<svg") :]


def _short(number: float) -> str:
    return re.sub(r"^(-?)0(?=\.)|\.?0+$", r"\1", f"{round(number, 2) + 0.0:.2f}") or "0"


def _rounded(hit: re.Match) -> str:
    """A place to a hundredth of a point; what scales others as it is."""
    return hit[0] if "(" in hit[0] else _short(float(hit[0]))


def _letter(hit: re.Match) -> str:
    """An outline of a letter, of 6,400 units of its size, on a grid of 800."""
    places = re.sub(r"-?\d+", lambda unit: f"{round(int(unit[0]) / 8)}", hit[1])
    return f' d="{places}"'


def _on_grid(hit: re.Match) -> str:
    """A text whose letters stand on the grid of their outlines, 8 times its own."""
    size, letters = float(hit[1]) / 8, hit[2]

    def placed(at: re.Match) -> str:
        return f"translate({round(8 * float(at[1]))} {round(8 * float(at[2]))})"

    letters = re.sub(r"translate\((\S+) (\S+)\)", placed, letters)
    letters = letters.replace("<path d=", '<path transform="scale(8)" d=')
    return f"scale({size:g} -{size:g}){letters}"


def _steps(hit: re.Match) -> str:
    """A path by its steps, shorter than places; whole hundredths do not drift."""
    text, at, start, mirrored = "", (0, 0), (0, 0), (nan, nan)
    grid = 1 if "." in hit[0] else 100  # of a letter: whole numbers
    for command, written in re.findall(r"([A-Za-z])([^A-Za-z]*)", hit[0]):
        numbers = [round(100 * float(number)) for number in written.split()]
        places = [*zip(numbers[::2], numbers[1::2], strict=True)]
        steps = [step for x, y in places for step in (x - at[0], y - at[1])]
        if command == "Q":
            bend, end = places
            if dist(bend, mirrored) <= grid:  # as it is without being said
                command, steps, bend = "T", steps[2:], mirrored
            mirrored = 2 * end[0] - bend[0], 2 * end[1] - bend[1]
        else:
            mirrored = nan, nan
        if command == "L" and 0 in steps:
            along, across = steps
            text += (
                f"v{_short(across / 100)}" if not along else f"h{_short(along / 100)}"
            )
        else:
            text += command.lower() + " ".join(_short(step / 100) for step in steps)
        start = places[0] if command == "M" else start
        at = places[-1] if places else start  # a path that closes is where it began
    return text.replace(" -", "-")


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
