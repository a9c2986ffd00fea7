"""Figures of low rank and of few bits."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from numpy.typing import ArrayLike

from thesis_book.figures import style
from thesis_book.figures.export import Drawing, stacked

# Ticks of an axis of times the perplexity.
TIMES = (1, 1.02, 1.05, 1.1, 1.2, 1.5, 2, 4, 10, 100, 10_000, 1_000_000)


def _scale_in_times(panel: Axes, least: float, most: float) -> None:
    """Scale a perplexity: linear near its least value, by its digits far from it."""
    linear = np.log(TIMES[1])
    ways = (
        lambda times: np.arcsinh(np.log(np.maximum(times, 1e-9)) / linear),
        lambda place: np.exp(linear * np.sinh(place)),
    )
    panel.set_yscale("function", functions=ways)
    ticks = [times for times in TIMES if least <= times < most]
    panel.set_ylim(least, most)
    panel.set_yticks(ticks, [f"{times:,}" for times in ticks])
    panel.yaxis.set_minor_locator(NullLocator())


# --- Low rank ----------------------------------------------------------------------
def spectra(curves: Mapping[str, ArrayLike], break_even: float) -> Drawing:
    """Singular values over the largest, per curve (k,), against their rank."""
    figure, panel = style.axes(height_in=3.0)
    shares = {}
    for name, values in curves.items():
        curve = np.asarray(values, float)
        shares[name] = pd.DataFrame({"value_over_largest": curve / curve[0]})
        shares[name].insert(0, "rank", np.arange(1, len(curve) + 1))
        panel.plot(*shares[name].to_numpy().T, label=name)
    panel.axvline(break_even, color=style.GRAY, linestyle="--", linewidth=1)
    style.note(
        panel, "factors cost as\nmuch as the matrix", (break_even, 0.03), (-5, 0),
        xycoords=("data", "axes fraction"), color=style.GRAY, ha="right", fontsize=8,
    )  # fmt: skip
    panel.set(xlabel="rank", ylabel="singular value over the largest", yscale="log")
    style.legend_below(figure)
    frame = stacked(shares, "curve").assign(break_even_rank=break_even)
    return Drawing(figure, frame)


def perplexity_by_ratio(
    ratios: ArrayLike, curves: Mapping[str, ArrayLike], dense: float
) -> Drawing:
    """Perplexity of each method (r,) against the share of entries kept (r,)."""
    figure, panel = style.axes(height_in=3.0)
    for (name, values), marker in zip(curves.items(), style.MARKERS, strict=False):
        panel.plot(ratios, np.asarray(values, float), marker=marker, label=name)
    panel.axhline(dense, color=style.INK, linewidth=1, label="dense")
    panel.set(
        xlabel="share of entries kept",
        ylabel="perplexity per token",
        xticks=ratios,
    )
    _log_where_wide(panel, [dense, *np.concatenate([*curves.values()])])
    panel.invert_xaxis()
    style.legend_below(figure, ncols=5)
    frame = pd.DataFrame({"share_kept": ratios, **curves})
    frame = frame.melt("share_kept", var_name="method", value_name="perplexity")
    return Drawing(figure, frame.assign(dense_perplexity=dense))


def losses_by_ratio(table: pd.DataFrame) -> Drawing:
    """Perplexity over that of the dense model against the share kept, a panel a text.

    `table` is that of `tables.low_rank_steps.curves`. Steps that lose little and
    truncation that ruins the model can both be read.
    """
    texts = {str(text): rows for text, rows in table.groupby("text", sort=False)}
    figure, drawn = style.panels(
        texts,
        3.6,
        xticks=sorted(set(table.ratio)),
        xlabel="share of entries kept",
        ylabel="times the perplexity of the dense model",
    )
    for panel, rows in drawn:
        steps = rows.groupby("step", sort=False)
        for (step, own), marker in zip(steps, style.MARKERS, strict=False):
            panel.errorbar(
                own.ratio, own.times, yerr=style.whiskers(own.times, own.low, own.high),
                marker=marker, markersize=4, capsize=2, linewidth=1, label=step,
            )  # fmt: skip
        panel.tick_params(labelsize=8)
        panel.invert_xaxis()
    for panel in figure.axes:
        _scale_in_times(panel, table.low.min() ** 0.8, table.high.max() ** 1.2)
    style.legend_below(figure, ncols=3, fontsize=8)
    columns = ["text", "step", "ratio", "times", "low", "high"]
    return Drawing(figure, table.filter(columns))


# --- Few bits ----------------------------------------------------------------------
def quantization_levels(blocks: ArrayLike, books: Mapping[str, ArrayLike]) -> Drawing:
    """A histogram of weights over their block's largest, above rows of levels."""
    figure, top, bottom = style.axes(rows=2, sharex=True, height_ratios=[2, 1])
    weights = np.asarray(blocks, float).ravel()
    look: dict[str, Any] = {"density": True, "color": style.GRAY}
    density, edges, _ = top.hist(weights, bins=101, range=(-1.01, 1.01), **look)
    top.set(ylabel="density")
    for row, levels in enumerate(books.values()):
        bottom.plot(levels, np.full(np.size(levels), row), "|", markersize=14)
    style.name_rows(bottom, list(books))
    bottom.set(xlabel="weight over the largest of its block")
    bins = {"weight_low": edges[:-1], "weight_high": edges[1:], "density": density}
    levels = {name: pd.DataFrame({"level": each}) for name, each in books.items()}
    frames = {"weights": pd.DataFrame(bins), "levels": stacked(levels, "format")}
    return Drawing(figure, stacked(frames))


def bytes_and_perplexity(table: pd.DataFrame) -> Drawing:
    """Perplexity with its interval against bytes, a point per row of the index.

    Columns: bytes_percent, perplexity, low, high.
    """
    figure, panel = style.axes(height_in=3.0)
    for name, row in table.iterrows():
        ends = style.whiskers([row.perplexity], [row.low], [row.high])
        panel.errorbar(row.bytes_percent, row.perplexity, ends, fmt="o", capsize=3)
        place = row.bytes_percent, row.perplexity
        style.note(panel, style.printed(str(name)), place, (7, 4))
    panel.set(
        xlabel="bytes of the linear layers, % of bfloat16",
        ylabel="perplexity per token",
        xlim=(0, 112),
    )
    shown = table[["bytes_percent", "perplexity", "low", "high"]]
    return Drawing(figure, shown.rename_axis("format").reset_index())


def bits_and_perplexity(table: pd.DataFrame) -> Drawing:
    """Perplexity against bits a weight, a line for each method.

    Columns: method, bits, perplexity, low, high. A method without bits below 16 is a
    level that the others are measured against. The axis is logarithmic where they
    differ by more than four times.
    """
    figure, panel = style.axes(height_in=3.6)
    for method, rows in table.sort_values("bits").groupby("method", sort=False):
        if rows.bits.min() >= 16:
            level, label = rows.perplexity.mean(), style.printed(str(method))
            panel.axhline(level, color=style.GRAY, ls=":", label=label)
            continue
        ends = style.whiskers(rows.perplexity, rows.low, rows.high)
        look = {"fmt": "o-", "capsize": 3, "label": str(method)}
        panel.errorbar(rows.bits, rows.perplexity, ends, **look)
    panel.set(
        xlabel="bits a weight, scales and factors counted",
        ylabel="perplexity per token",
    )
    _log_where_wide(panel, table.perplexity)
    panel.legend()
    columns = ["method", "bits", "perplexity", "low", "high"]
    return Drawing(figure, table.filter(columns))


def _log_where_wide(panel: Axes, values: ArrayLike) -> None:
    """Use a logarithmic axis if values differ by more than a factor of four."""
    ratio = np.max(values) / np.min(values)
    if ratio > 4:
        panel.set(yscale="log")
        style.log_ticks(panel.yaxis, (1,) if ratio > 1_000 else (1, 2, 5))


# --- Every way on one scale ----------------------------------------------------------
FAMILY_LOOKS = {  # of `tables.pareto`: colour and marker
    "16 bits": (style.INK, "o"),
    "bitsandbytes": (style.ORANGE, "s"),
    "GPTQ": (style.BLUE, "^"),
    "GPTQ + low rank": (style.GREEN, "D"),
    "low rank": (style.VERMILION, "v"),
    "rounding": (style.PURPLE, "X"),
}


def pareto(table: pd.DataFrame) -> Drawing:
    """Perplexity over that of 16 bits against bytes, a panel a text, and against time.

    `table` is that of `tables.pareto.ways`. The line is the front; ways that lose are
    hollow. Time has a panel, of the first text, once a way has been timed.
    """
    texts = list(dict.fromkeys(table.text))
    size, time = "bytes of the decoder layers (MB)", "time of a streamed token (ms)"
    places = [(text, table.bytes / 1e6, size, "front") for text in texts]
    if table.token_s.notna().any():
        places.append((texts[0], 1e3 * table.token_s, time, "time_front"))
    figure, *drawn = style.axes(rows=len(places), height_in=0.6 + 2.7 * len(places))
    for panel, (text, cost, xlabel, front) in zip(drawn, places, strict=True):
        rows = table.assign(cost=cost, wins=table[front])
        _ways(panel, rows[(rows.text == text) & rows.cost.notna()])
        panel.set_title(text, fontsize=8, loc="left")
        panel.set_xlabel(xlabel, fontsize=8)
    handles = [
        Line2D([], [], color=color, marker=marker, linestyle="", label=kind)
        for kind, (color, marker) in FAMILY_LOOKS.items()
        if kind in set(table.family)
    ]
    handles.append(Line2D([], [], color=style.GRAY, linewidth=1, label="front"))
    style.legend_below(figure, handles, fontsize=7)
    for panel in drawn:
        style.move_apart(panel)
    dense = table.perplexity / table.ratio
    frame = table[["text", "name", "family"]].assign(
        megabytes=table.bytes / 1e6, token_ms=1e3 * table.token_s, times=table.ratio,
        times_low=table.low / dense, times_high=table.high / dense, front=table.front,
        time_front=table.time_front,
    )  # fmt: skip
    return Drawing(figure, frame)


def _ways(panel: Axes, rows: Any) -> None:
    """One panel: rows at their cost, higher the more they lose, `wins` in full."""
    dense = rows.perplexity / rows.ratio
    times = rows[["perplexity", "low", "high"]].div(dense, axis=0)
    front = rows[rows.wins].sort_values("cost", kind="stable")
    lost = times.perplexity[front.index]
    panel.step(front.cost, lost, where="post", color=style.GRAY, linewidth=1, zorder=1)
    for i, row in rows.iterrows():
        color, marker = FAMILY_LOOKS.get(row.family, (style.GRAY, "P"))
        at, ends = (row.cost, times.perplexity[i]), times.loc[[i]].to_numpy().T
        panel.errorbar(
            *at, yerr=style.whiskers(*ends), fmt=marker, color=color, markersize=5,
            mfc=color if row.wins else "white", capsize=2, linewidth=0.9,
        )  # fmt: skip
        text = style.note(
            panel, _short(row["name"]), at, ha="center", va="center", fontsize=7,
            bbox=style.UNDER,
        )  # fmt: skip
        text.set_in_layout(False)
    panel.set(xscale="log", xlim=(rows.cost.min() / 1.1, rows.cost.max() * 1.2))
    top = max(times.high.max(), TIMES[2]) ** 1.6
    _scale_in_times(panel, min(times.low.min() ** 1.3, TIMES[1] ** -0.4), top)
    style.log_ticks(panel.xaxis, (1, 1.5, 2, 3, 4, 5, 7))
    panel.tick_params(labelsize=7)
    panel.set_ylabel("times the perplexity of bfloat16", fontsize=8)


def _short(name: str) -> str:
    """The name of a way without what the colour says of it."""
    for word in ("GPTQ ", "low rank ", "nearest "):
        name = name.removeprefix(word)
    return style.printed(name).replace(" + rank ", "+")
