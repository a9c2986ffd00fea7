"""One theme, and what figures share: colours, marks, axes, legends."""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from string import ascii_lowercase
from typing import Any, TypeVar

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from matplotlib.scale import SymmetricalLogScale
from matplotlib.text import Annotation
from matplotlib.ticker import LogLocator, NullLocator
from matplotlib.transforms import Bbox, ScaledTranslation
from numpy.typing import ArrayLike

from thesis_book.figures.export import Drawing, as_vector
from thesis_lib.common.stats import Interval, mean_interval
from thesis_lib.sequencer.core.trace import F64
from thesis_lib.sequencer.policies.rules import RULES

T = TypeVar("T")

WIDTH_IN = 6.5

# Okabe and Ito's palette: distinguishable without colour vision.
INK, GRAY = "#222222", "#8a8a8a"
BLUE, VERMILION, GREEN = "#0072b2", "#d55e00", "#009e73"
PURPLE, ORANGE, SKY = "#cc79a7", "#e69f00", "#56b4e9"
PALETTE = [BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY]
MARKERS = "osD^vP"
GRID = "#e6e6e6"
# What a dark page needs other than a light one, whose colours are legible on both.
DARK = {
    INK: "#e6e6e6", "#ffffff": "#121212", GRID: "#3c3c3c", BLUE: "#4aa3df",
    "#a34700": "#f0904d",
}  # fmt: skip
UNDER = {"fc": "white", "ec": "none", "pad": 0.5}  # a text that stands on lines
RULE: dict[str, Any] = {"color": INK, "linewidth": 0.8}  # of a line to compare with


def theme() -> None:
    """Set the look of every figure; call once at the top of a notebook."""
    sns.set_theme(
        context="paper",
        style="ticks",
        palette=PALETTE,
        rc={
            "figure.dpi": 120,
            "savefig.bbox": "tight",
            "font.family": ["DejaVu Sans"],
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": GRID,
            "grid.linewidth": 0.6,
            **dict.fromkeys(
                (
                    "text.color",
                    "axes.edgecolor",
                    "axes.labelcolor",
                    "xtick.color",
                    "ytick.color",
                ),
                INK,
            ),
            "legend.frameon": False,
            "lines.linewidth": 1.6,
            "path.simplify_threshold": 0.3,  # of a pixel: long curves stay small
        },
    )


def axes(
    columns: int = 1,
    height_in: float = 3.4,
    rows: int = 1,
    letters: bool = True,
    **options: Any,
) -> tuple[Any, ...]:
    """A new figure of the book's width, and its axes row by row: (figure, axes…).

    Panels of one row that have no names get `letters`, by which a caption tells them
    apart.
    """
    figure, drawn = plt.subplots(
        rows, columns, figsize=(WIDTH_IN, height_in), layout="constrained",
        squeeze=False, **options,
    )  # fmt: skip
    if letters and rows == 1 < columns:
        for letter, panel in zip(ascii_lowercase, drawn.flat, strict=False):
            panel.set_title(letter, loc="left", fontsize=9, fontweight="bold")
    plt.close(figure)  # shown by its cell as a value, not twice
    return (figure, *drawn.flat)


def panels(
    items: Mapping[str, T], height_in: float, share: str = "y", **properties: Any
) -> tuple[Figure, list[tuple[Any, T]]]:
    """A figure with a panel for each item, under its name: the pairs of both.

    They `share` an axis; `properties` are those of `Axes.set`.
    """
    shared = {"sharex": share == "x", "sharey": share == "y"}
    figure, *drawn = axes(len(items), height_in, letters=False, **shared)
    for panel, title in zip(drawn, items, strict=True):
        panel.set(**properties)
        panel.set_title(title, fontsize=9)
    for panel in drawn[1:]:
        panel.set_ylabel("")
    return figure, list(zip(drawn, items.values(), strict=True))


PLAIN = "{x:,.10g}"  # 0.1 and 1,000 where matplotlib writes powers of ten


class _PlainSymlog(SymmetricalLogScale):
    """Use plain numbers at its ticks."""

    def set_default_locators_and_formatters(self, axis: Axis) -> None:
        super().set_default_locators_and_formatters(axis)
        axis.set_major_formatter(PLAIN)


def symlog(linear_to: float) -> SymmetricalLogScale:
    """A scale that is logarithmic, and linear up to a bound: for `Axes.set`."""
    return _PlainSymlog(None, linthresh=linear_to)


# --- Policies ----------------------------------------------------------------
LOOKS = {  # colour and marker; policies that are not here are drawn in INK
    "fifo": (GRAY, "o"),
    "drop": (VERMILION, "v"),
    "reorder": (BLUE, "s"),
    "hybrid": (PURPLE, "D"),
    "bid-price": (GREEN, "P"),
    "late-edf": (BLUE, None),
    "queue-cap": (ORANGE, None),
    "codel": (SKY, None),
    "late-sjf": (VERMILION, None),
    "search": (ORANGE, None),
}
LABELS = {"search": "best schedule found", "bound": "lower bound"} | {
    name: rule.label for name, rule in RULES.items()
}
VARIANTS = {
    "-corrected": ", corrected",
    "-batched": ", batched",
    "-oracle": ", exact estimates",
    "-constant": ", constant estimate",
    "-no-ghosts": " without ghosts",
}


def policy(name: str) -> dict[str, Any]:
    """Label, colour and mark; a variant's line is dashed, its marks are open."""
    variant = next((ending for ending in VARIANTS if name.endswith(ending)), "")
    base = name.removesuffix(variant)
    color, marker = LOOKS.get(base, (INK, None))
    dashed = "--" if variant else "-"
    return {
        "color": color,
        "marker": marker,
        "markersize": 4,
        "markerfacecolor": "white" if variant else color,
        "linestyle": ":" if name == "bound" else dashed,
        "label": LABELS.get(base, base) + VARIANTS.get(variant, ""),
    }


PRINTED = {
    "accelerate": "Accelerate", "bf16": "bfloat16", "fp4": "FP4", "nf4": "NF4",
    "int8": "LLM.int8()",
    "llama-65b": "LLaMA-65B", "llama2-7b": "Llama 2 7B", "llama2-13b": "Llama 2 13B",
    "llama2-70b": "Llama 2 70B", "mistral-7b": "Mistral 7B", "opt-66b": "OPT-66B",
}  # fmt: skip


# The longest first: a name in print may hold one of the code.
_NAMES = "|".join(map(re.escape, sorted({*PRINTED, *PRINTED.values()}, key=len)[::-1]))


def printed(text: str) -> str:
    """Replace the names of the code in `text` by those that readers know.

    They are formats, libraries and geometries. A text that is printed stays as it is.
    """
    whole = rf"(?<!\w)(?:{_NAMES})(?!\w)"
    return re.sub(whole, lambda hit: PRINTED.get(hit[0], hit[0]), text)


# --- Estimates with their intervals --------------------------------------------
def curve(
    panel: Axes, at: ArrayLike, ends: Sequence[Interval], look: dict[str, Any],
    aside_pt: float | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Draw estimates in percent against `at` (n,), their intervals shaded.

    Or as whiskers, which stand so many points `aside_pt` that others do not hide them.
    Returns the drawn columns `percent`, `low_percent` and `high_percent`.
    """
    value, low, high = (
        100 * np.array([getattr(end, each) for end in ends])
        for each in ("value", "low", "high")
    )
    if aside_pt is None:
        panel.plot(at, value, **look)
        panel.fill_between(at, low, high, color=look["color"], alpha=0.2, linewidth=0)
    else:
        inches: Any = panel.get_figure(root=True).dpi_scale_trans  # type: ignore[union-attr]
        aside = panel.transData + ScaledTranslation(aside_pt / 72, 0, inches)
        drawn = panel.errorbar(at, value, whiskers(value, low, high), capsize=2, **look)
        _, caps, bars = drawn.lines
        for each in (*caps, *bars):
            each.set_transform(aside)
    return pd.DataFrame({"percent": value, "low_percent": low, "high_percent": high})


def band(
    panel: Axes, runs: pd.DataFrame, name: str, column: str, x: str = "load",
    whole: float = 1.0, aside_pt: float | None = None, **look: Any,
) -> pd.DataFrame:  # fmt: skip
    """Draw a policy's mean over seeds in percent of `whole`, with its 95 % interval.

    Or as whiskers `aside_pt`, see `curve`. The line has the policy's own style, but for
    what `look` says. Returns the drawn columns `policy`, `x` and those of `curve`.
    """
    groups = runs[runs["policy"] == name].groupby(x)[column]
    options = {
        at: mean_interval(values.to_numpy() / whole).within(0.0)
        for at, values in groups
    }
    at, ends = np.array(list(options), float), [*options.values()]
    drawn = curve(panel, at, ends, policy(name) | look, aside_pt)
    drawn.insert(0, x, at)
    drawn.insert(0, "policy", name)
    return drawn


def whiskers(value: ArrayLike, low: ArrayLike, high: ArrayLike) -> F64:
    """(2, n) lengths of error bars; none where rounding puts an end past the value."""
    return np.clip([np.subtract(value, low), np.subtract(high, value)], 0, None)


def distribution(name: str, values: ArrayLike) -> pd.DataFrame:
    """Return the empirical distribution of n > 0 values, at most 1,000 rows.

    Columns are `name` and `percent_at_or_below`; rows are dense near the largest value.
    """
    ordered = np.sort(np.asarray(values, float))
    n = len(ordered)
    ranks = np.append(np.linspace(1, n, 500), n + 1 - np.geomspace(1, n, 500))
    ranks = np.unique(ranks.round().astype(int))
    return pd.DataFrame(
        {name: ordered[ranks - 1], "percent_at_or_below": 100 * ranks / n}
    )


def slower(panel: Axes, latency_s: F64, **look: Any) -> None:
    """The share of answers that are slower, against their latency in milliseconds."""
    panel.ecdf(1e3 * latency_s, complementary=True, **look)
    panel.set(ylabel="share that is slower (%)", yscale="log")
    panel.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g}")


# --- Axes, legends and labels ----------------------------------------------------
def legend_below(
    figure: Figure,
    handles: Sequence[Any] = (),
    ncols: int = 4,
    fontsize: str | float = "small",
) -> None:
    """One legend where it can hide no curve: by default of what one panel names."""
    named = (panel.get_legend_handles_labels()[0] for panel in figure.axes)
    shown = handles or next(filter(None, named))
    figure.legend(
        handles=shown, loc="outside lower center", ncols=ncols, fontsize=fontsize
    )


def name_rows(panel: Axes, names: Sequence[str], **text: Any) -> None:
    """A row for each name, the first on top, without lines along them."""
    panel.set_yticks(range(len(names)), names, **text)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.grid(axis="y", visible=False)


def log_ticks(axis: Axis, subs: Sequence[float] = (1, 2, 5)) -> None:
    """Ticks of a logarithmic axis at multiples of its decades, as plain numbers."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(PLAIN)
    axis.set_minor_locator(NullLocator())


def note(
    panel: Axes, text: str, at: tuple[Any, Any], offset: tuple[float, float] = (0, 0),
    **options: Any,
) -> Annotation:  # fmt: skip
    """A text at so many points from a place in the data."""
    return panel.annotate(text, at, offset, textcoords="offset points", **options)


def move_apart(panel: Axes, beside: bool = False) -> None:
    """Give each label, of those around its point, the place with the least under it.

    Within the panel and not nearer to another point; of equal places above its own, or
    `beside` it and off the stairs and upright lines that are drawn. The figure is laid
    out first: where there is room shows in its final form. All choose a second time, by
    where the others stand.
    """
    panel.get_figure(root=True).draw_without_rendering()  # type: ignore[union-attr]
    labels = [text for text in panel.texts if isinstance(text, Annotation)]
    others = [text for text in panel.texts if not isinstance(text, Annotation)]
    per_point = panel.figure.dpi / 72
    at = [panel.transData.transform(label.xy) for label in labels]
    taken = [Bbox.from_extents(*(x - 4 * per_point), *(x + 4 * per_point)) for x in at]
    taken += [text.get_window_extent() for text in others]
    for line in panel.lines if beside else ():
        corners = line.get_transform().transform(line.get_xydata())
        taken += [
            Bbox.from_extents(
                x, y, max(after, x + per_point), top if after == x else y + per_point
            )
            for (x, y), (after, top) in pairwise(corners)
        ]
    placed: dict[int, Bbox] = {}
    for own, label in [*enumerate(labels)] * 2:
        around = [*taken, *(box for each, box in placed.items() if each != own)]
        size = label.get_window_extent()
        shift = per_point * np.array(label.get_position())
        aside, above = size.width / per_point / 2 + 5, 8
        places = [(0, above), (aside, 0), (-aside, 0), (0, -above)]
        places[:2] = places[1::-1] if beside else places[:2]
        places += [(x, y) for y in (above, -above) for x in (aside, -aside)]
        places += [(x, times * y) for times in (2, 3) for x, y in places[4:8]]
        boxes = [
            size.translated(*(per_point * np.array(place) - shift)) for place in places
        ]
        costs = [
            round(sum(_overlap(box, other) for other in around) / per_point**2)
            + 1e3 * any(_away(box, x) < _away(box, at[own]) for x in at)
            + 1e6 * (_overlap(box, panel.bbox) < 0.999 * box.width * box.height)
            for box in boxes
        ]
        best = int(np.argmin(costs))
        label.set_position(places[best])
        placed[own] = boxes[best].padded(per_point)


def _away(box: Bbox, point: F64) -> float:
    """Return the distance of a point from a box, for a label next to another."""
    return float(np.hypot(*np.maximum(0, np.maximum(box.min - point, point - box.max))))


def _overlap(one: Bbox, other: Bbox) -> float:
    common = Bbox.intersection(one, other)
    return common.width * common.height if common else 0.0


# --- Drawings of how a thing works -------------------------------------------------
def canvas(
    height_in: float, parts: Mapping[str, float], xlim: tuple[float, float],
    ylim: tuple[float, float],
) -> tuple[Figure, Axes]:  # fmt: skip
    """An empty panel without a frame, on its left the names of parts at their y."""
    figure, panel = axes(height_in=height_in)
    panel.set(xlim=xlim, ylim=ylim)
    panel.set_xticks([])
    panel.set_yticks([*parts.values()], [*parts], fontsize=8, weight="bold")
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    panel.grid(False)
    return figure, panel


def say(panel: Axes, x: float, y: float, words: str, **look: Any) -> None:
    """A text of a drawing, its middle at a place of the data."""
    look = {"ha": "center", "va": "center", "fontsize": 7.5, "color": INK} | look
    panel.text(x, y, words, **look)


def box(
    panel: Axes, place: tuple[float, float], size: tuple[float, float],
    words: str = "", label: str = "", color: str = INK, **look: Any,
) -> None:  # fmt: skip
    """A rectangle of a size around a place of the data, with words of a colour in it.

    It is filled where `look` says so; `label` is what its row in the data is called.
    """
    look = {"facecolor": "none", "edgecolor": INK, "linewidth": 0.8} | look
    corner = place[0] - size[0] / 2, place[1] - size[1] / 2
    panel.add_patch(Rectangle(corner, *size, label=label or words, **look))
    say(panel, *place, words, fontsize=8, color=color)


def arrow(
    panel: Axes, *corners: tuple[float, float], gap_pt: float = 0, **look: Any
) -> None:
    """A line along corners of the data, its head so many points before the last."""
    look = {"color": INK, "linewidth": 1, "shrinkA": 0} | look
    *bends, last = pairwise(corners)
    for start, end in bends:
        line = FancyArrowPatch(start, end, arrowstyle="-", shrinkB=0, **look)
        panel.add_patch(line)
    head = {"arrowstyle": "-|>", "mutation_scale": 8, "shrinkB": gap_pt}
    panel.add_patch(FancyArrowPatch(*last, **look, **head))


# --- Runs beside each other -----------------------------------------------------
def against_reference(times: pd.DataFrame) -> Drawing:
    """Plot each time over that of the reference, in its expected band.

    Columns: says, ratio, low, high (NaN without an interval), expected_low and
    expected_high (NaN where no band is known), good. A claim's name stands above its
    line, so that the figure stays readable on a small screen.
    """
    figure, ax = axes(height_in=0.7 + 0.5 * len(times))
    figure.set_figwidth(5.2)
    for y, row in enumerate(times.to_dict("records")):
        color = GREEN if row["good"] else VERMILION
        ax.fill_betweenx(
            [y - 0.16, y + 0.16], row["expected_low"], row["expected_high"],
            color=GRAY, alpha=0.3, linewidth=0,
        )  # fmt: skip
        ax.plot([1, 1], [y - 0.2, y + 0.2], color=INK, linewidth=0.8)
        ax.plot([row["low"], row["high"]], [y, y], color=color, linewidth=2)
        marker = "o" if row["good"] else "X"  # told apart without colour, too
        ax.plot(row["ratio"], y, marker, color=color, markersize=6.5)
        ax.text(
            0, y - 0.26, row["says"], transform=ax.get_yaxis_transform(), color=INK,
            fontsize=9, va="bottom",
        )  # fmt: skip
    columns = ["ratio", "low", "high", "expected_low", "expected_high"]
    reach = np.nanmax(np.abs(np.log(times[columns].to_numpy(float))), initial=0.7)
    ax.set(xscale="log", xlim=np.exp([-1.1 * reach, 1.1 * reach]))
    log_ticks(ax.xaxis)
    ax.set(ylim=(len(times) - 0.6, -0.75), yticks=[])
    ax.tick_params(colors=INK)
    ax.set_xlabel("this run over the reference", color=INK)
    ax.spines[["left", "top", "right"]].set_visible(False)
    ax.spines["bottom"].set_color(INK)
    ax.grid(False)
    return Drawing(figure, times)


def as_svg(figure: Figure) -> str:
    """A figure as an SVG element that is the same whenever it is drawn.

    Text stays text, and takes the colour of the page that it stands on.
    """
    text = as_vector(figure, "none", transparent=True)
    return text.replace(INK, "currentColor")


def dark(svg: str) -> str:
    """The drawing of `export.as_vector` for a dark page: other colours, same lines."""
    return re.sub("#[0-9a-f]{6}", lambda hit: DARK.get(hit[0], hit[0]), svg)
