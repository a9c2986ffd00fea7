"""One theme, and what figures share: colours, marks, axes, legends."""

from collections.abc import Sequence
from io import StringIO
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import LogLocator, NullLocator
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike

from thesis_lib.common.stats import Interval, mean_interval
from thesis_lib.sequencer.core.trace import F64

WIDTH_IN = 6.5

# Okabe and Ito's palette: distinguishable without colour vision.
INK, GREY = "#222222", "#8a8a8a"
COLOURS = {
    "fifo": "#8a8a8a",
    "drop": "#d55e00",
    "reorder": "#0072b2",
    "hybrid": "#cc79a7",
    "bid-price": "#009e73",
    "streamed": "#009e73",
    "search": "#e69f00",
    "bound": "#222222",
    "late-edf": "#0072b2",
    "queue-cap": "#e69f00",
    "codel": "#56b4e9",
}


def theme() -> None:
    """Set the look of every figure; call once at the top of a notebook."""
    sns.set_theme(
        context="paper",
        style="ticks",
        palette=["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"],
        rc={
            "figure.figsize": (WIDTH_IN, 3.4),
            "figure.dpi": 120,
            "savefig.bbox": "tight",
            "font.family": ["DejaVu Sans"],
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e6e6e6",
            "grid.linewidth": 0.6,
            "axes.edgecolor": INK,
            "legend.frameon": False,
            "lines.linewidth": 1.6,
        },
    )


def subplots(
    rows: int, columns: int, height_in: float, **options: Any
) -> tuple[Figure, Any]:
    """A new figure of the book's width, and its axes (rows, columns)."""
    figure, drawn = plt.subplots(
        rows, columns, figsize=(WIDTH_IN, height_in), layout="constrained",
        squeeze=False, **options,
    )  # fmt: skip
    plt.close(figure)  # shown by its cell as a value, not twice
    return figure, drawn


def axes(columns: int = 1, height_in: float = 3.4, **options: Any) -> tuple[Any, ...]:
    """A new figure of the book's width with `columns` axes: (figure, axes…)."""
    figure, drawn = subplots(1, columns, height_in, **options)
    return (figure, *drawn[0])


# --- Part I: the sequencer ---------------------------------------------------
_LABELS = {
    "fifo": "FIFO",
    "fifo-batched": "FIFO, batched",
    "drop": "Drop",
    "reorder": "Reorder",
    "hybrid": "Hybrid",
    "drop-corrected": "Drop, corrected",
    "reorder-corrected": "Reorder, corrected",
    "hybrid-corrected": "Hybrid, corrected",
    "hybrid-no-ghosts": "Hybrid without ghosts",
    "queue-cap": "capped queue",
    "codel": "CoDel",
    "late-edf": "earliest deadline, late-bound",
    "bid-price": "bid-price",
    "bid-price-oracle": "bid-price, exact estimates",
    "search": "best schedule found",
    "bound": "lower bound",
}
_MARKERS = {"fifo": "o", "drop": "v", "reorder": "s", "hybrid": "D", "bid-price": "P"}


def _style(policy: str) -> dict:
    """Colour by policy; corrected or better informed, it is dashed, its marks open."""
    base = policy
    for suffix in ("-corrected", "-batched", "-oracle"):
        base = base.removesuffix(suffix)
    dashed = "-" if policy == base else "--"
    return {
        "color": COLOURS.get(base, INK),
        "marker": _MARKERS.get(base),
        "markersize": 4,
        "markerfacecolor": COLOURS.get(base, INK) if policy == base else "white",
        "linestyle": ":" if policy == "bound" else dashed,
        "label": _LABELS.get(policy, policy),
    }


def _curve(
    panel: Axes, at: ArrayLike, ends: Sequence[Interval], style: dict, times: float = 1
) -> None:
    """Estimates `times` a unit against `at` (n,), their intervals shaded."""
    panel.plot(at, [times * end.value for end in ends], **style)
    panel.fill_between(
        at, [times * end.low for end in ends], [times * end.high for end in ends],
        color=style["color"], alpha=0.2, linewidth=0,
    )  # fmt: skip


def _band(
    panel: Axes, runs: pd.DataFrame, policy: str, column: str, x: str,
    dashes: str | tuple | None = None,
) -> None:  # fmt: skip
    """The mean over seeds against `x`, with its 95 % bootstrap interval shaded.

    The policy's own style of line, or the one that `dashes` says.
    """
    groups = runs[runs["policy"] == policy].groupby(x)[column]
    made = {at: mean_interval(values.to_numpy()) for at, values in groups}
    style = _style(policy)
    if dashes is not None:
        style["linestyle"] = dashes
    _curve(panel, np.array(list(made), float), list(made.values()), style)


def _whiskers(value: ArrayLike, low: ArrayLike, high: ArrayLike) -> F64:
    """(2, n) lengths of error bars; none where rounding puts an end past the value."""
    return np.clip([np.subtract(value, low), np.subtract(high, value)], 0, None)


def _legend_below(
    figure: Figure, panel: Axes, ncols: int = 4, fontsize: str | int = "small"
) -> None:
    """One legend for all panels, where it can hide no curve."""
    figure.legend(
        *panel.get_legend_handles_labels(), loc="outside lower center", ncols=ncols,
        fontsize=fontsize,
    )  # fmt: skip


def _round_ticks(drawn: Axes) -> None:
    """On logarithmic axes: ticks at one, two and five, as plain numbers."""
    for axis in (drawn.xaxis, drawn.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())


def _move_apart(drawn: Axes) -> None:
    """Give each label, of those around its point, the place with the least under it."""
    labels = [text for text in drawn.texts if isinstance(text, Annotation)]
    per_point = drawn.figure.dpi / 72
    at = [drawn.transData.transform(label.xy) for label in labels]
    taken = [Bbox.from_extents(*(x - 4 * per_point), *(x + 4 * per_point)) for x in at]
    for own, label in enumerate(labels):
        size = label.get_window_extent()
        aside, above = size.width / per_point / 2 + 5, 8
        places = [(0, above), (aside, 0), (-aside, 0), (0, -above)]
        places += [(x, y) for y in (above, -above) for x in (aside, -aside)]
        places += [(x, 2 * y) for x, y in places[4:]]
        boxes = [size.translated(*(per_point * np.array(place))) for place in places]
        covered = [sum(_overlap(box, other) for other in taken) for box in boxes]
        strange = [any(_away(b, x) < _away(b, at[own]) for x in at) for b in boxes]
        best = int(np.argmin(np.round(covered) + 1e3 * np.array(strange)))
        label.set_position(places[best])
        taken.append(boxes[best])


def _away(box: Bbox, point: F64) -> float:
    """How far a point is from a box, for a label that stands beside another's."""
    return float(np.hypot(*np.maximum(0, np.maximum(box.min - point, point - box.max))))


def _overlap(one: Bbox, other: Bbox) -> float:
    common = Bbox.intersection(one, other)
    return common.width * common.height if common else 0.0


# --- Runs beside each other --------------------------------------------------
def against_reference(times: pd.DataFrame) -> Figure:
    """Each time over that of the reference, in the band where it was to be expected.

    Columns: says, ratio, low, high (NaN without an interval), expected_low and
    expected_high (NaN where no band is known), good. A claim's name stands above its
    line, so that the figure stays readable on a small screen.
    """
    figure, ax = axes(height_in=0.7 + 0.5 * len(times))
    figure.set_figwidth(5.2)
    colours = {True: COLOURS["bid-price"], False: COLOURS["drop"]}
    for y, row in enumerate(times.to_dict("records")):
        colour = colours[bool(row["good"])]
        ax.fill_betweenx(
            [y - 0.16, y + 0.16], row["expected_low"], row["expected_high"],
            color=GREY, alpha=0.3, linewidth=0,
        )  # fmt: skip
        ax.plot([1, 1], [y - 0.2, y + 0.2], color=INK, linewidth=0.8)
        ax.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=2)
        marker = "o" if row["good"] else "X"  # told apart without colour, too
        ax.plot(row["ratio"], y, marker, color=colour, markersize=6.5)
        ax.annotate(
            row["says"], (0, y - 0.26), xycoords=ax.get_yaxis_transform(),
            color=INK, fontsize=9, ha="left", va="bottom", annotation_clip=False,
        )  # fmt: skip
    ax.set_xscale("log")
    columns = ["ratio", "low", "high", "expected_low", "expected_high"]
    reach = np.nanmax(np.abs(np.log(times[columns].to_numpy(float))), initial=0.7)
    low, high = np.exp(-1.1 * reach), np.exp(1.1 * reach)
    ax.set(xlim=(low, high), ylim=(len(times) - 0.6, -0.75), yticks=[])
    decades = [10.0**n * m for n in range(-3, 4) for m in (1, 2, 5)]
    ticks = [tick for tick in decades if low <= tick <= high]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.tick_params(colors=INK)
    ax.set_xlabel("this run over the reference", color=INK)
    ax.spines[["left", "top", "right"]].set_visible(False)
    ax.spines["bottom"].set_color(INK)
    ax.grid(False)
    return figure


def as_svg(figure: Figure) -> str:
    """A figure as an SVG element that is the same whenever it is drawn.

    Text stays text, and takes the colour of the page that it stands on.
    """
    stream = StringIO()
    with plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "thesis"}):
        figure.savefig(
            stream, format="svg", transparent=True,
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
        )  # fmt: skip
    text = stream.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


# --- Sweeps ------------------------------------------------------------------
def sweep_lines(
    x: Sequence[Any],
    y: F64,
    lines: Sequence[str] | None,
    xlabel: str,
    ylabel: str,
    legend: str,
) -> Figure:
    """A number of every run of a sweep against one parameter, on half a page's width.

    A dot is a run, a line joins the means at each x, a band is the 95 % bootstrap
    interval of the mean where three runs or more share an x. `lines` (n,) names the
    line of each run; words on the x axis stand in the order in which they come.
    """
    theme()
    figure, ax = axes(height_in=2.9)
    figure.set_figwidth(4.3)
    is_number = all(isinstance(value, int | float) for value in x)
    ticks = list(dict.fromkeys(map(str, x)))
    at = np.array(x, float) if is_number else np.array([ticks.index(str(v)) for v in x])
    names = np.array(lines if lines is not None else [""] * len(at))
    every = list(dict.fromkeys(names))
    colours = sns.color_palette() if len(every) <= 6 else None
    colours = colours or sns.color_palette("viridis", len(every))
    for name, colour in zip(every, colours, strict=False):
        chosen = names == name
        places = np.unique(at[chosen])
        runs = [y[chosen & (at == place)] for place in places]
        runs = [values[np.isfinite(values)] for values in runs]
        means = [values.mean() if len(values) else np.nan for values in runs]
        ax.plot(places, means, color=colour, label=name)
        ax.plot(at[chosen], y[chosen], "o", color=colour, markersize=3, alpha=0.6)
        if all(len(values) >= 3 for values in runs):
            ends = [mean_interval(values) for values in runs]
            ax.fill_between(
                places, [end.low for end in ends], [end.high for end in ends],
                color=colour, alpha=0.18, linewidth=0,
            )  # fmt: skip
    if not is_number:
        ax.set_xticks(range(len(ticks)), ticks)
    ax.set_xlabel(xlabel, color=INK, wrap=True)
    ax.set_title(ylabel, color=INK, fontsize=9, loc="left", wrap=True)
    ax.tick_params(colors=INK)
    ax.grid(color=GREY, alpha=0.3)  # seen on a light and on a dark page
    if lines is not None:
        key = ax.legend(title=legend, fontsize=7, title_fontsize=7, labelcolor=INK)
        key.get_title().set_color(INK)
    return figure
