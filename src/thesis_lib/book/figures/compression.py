"""Figures of low rank and of few bits."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator
from numpy.typing import ArrayLike

from thesis_lib.book.figures.style import (
    GREY,
    INK,
    _legend_below,
    _move_apart,
    axes,
    subplots,
)


# --- Part II: compression and cost -------------------------------------------
def spectra(curves: Mapping[str, ArrayLike], break_even: float) -> Figure:
    """Singular values over the largest, per curve (k,), against their rank."""
    figure, axis = axes(height_in=3.0)
    for name, values in curves.items():
        found = np.asarray(values, float)
        axis.plot(np.arange(1, len(found) + 1), found / found[0], label=name)
    axis.axvline(break_even, color=GREY, linestyle="--", linewidth=1)
    axis.annotate(
        "factors cost as\nmuch as the matrix",
        (break_even, 0.03),
        xycoords=("data", "axes fraction"),
        xytext=(-5, 0),
        textcoords="offset points",
        color=GREY,
        ha="right",
        fontsize=8,
    )
    axis.set(
        xlabel="rank",
        ylabel="singular value over the largest",
        yscale="log",
    )
    axis.legend()
    return figure


def perplexity_by_ratio(
    ratios: ArrayLike, curves: Mapping[str, ArrayLike], dense: float
) -> Figure:
    """Perplexity of each method (r,) against the share of entries kept (r,)."""
    figure, axis = axes(height_in=3.0)
    for (name, values), marker in zip(curves.items(), "osD^vP", strict=False):
        axis.plot(ratios, np.asarray(values, float), marker=marker, label=name)
    axis.axhline(dense, color=INK, linewidth=1, label="dense")
    axis.set(
        xlabel="share of entries kept in the replaced layers",
        ylabel="perplexity per token",
        yscale="log",
    )
    axis.set_xticks(ratios)
    axis.invert_xaxis()
    axis.legend()
    return figure


def losses_by_ratio(table: pd.DataFrame) -> Figure:
    """Perplexity over that of the dense model against the share kept, a panel a text.

    `table` is that of `memory.steps.curves`. The axis is logarithmic in the logarithm:
    steps that lose little and truncation that ruins the model can both be read.
    """
    texts = list(dict.fromkeys(table.text))
    figure, *panels = axes(len(texts), 3.6, sharey=True)
    for drawn, text in zip(panels, texts, strict=True):
        rows: Any = table[table.text == text]
        for (step, own), marker in zip(
            rows.groupby("step", sort=False), "osD^vP", strict=False
        ):
            lost, low, high = (np.log(own[end]) for end in ("times", "low", "high"))
            drawn.errorbar(
                own.ratio, lost, yerr=[lost - low, high - lost], marker=marker,
                markersize=4, capsize=2, linewidth=1, label=step,
            )  # fmt: skip
        drawn.set_title(text, fontsize=8, loc="left")
        drawn.set_xlabel("share of entries kept", fontsize=8)
        drawn.set_xticks(sorted(set(table.ratio)))
        drawn.set_yscale("log")
        drawn.tick_params(labelsize=7)
        drawn.invert_xaxis()
    first = panels[0]
    least, most = np.log(table.low.min()) / 1.2, 1.2 * np.log(table.high.max())
    first.set_ylim(least, most)
    ticks = [times for times in TIMES if least < np.log(times) < most]
    first.set_yticks(np.log(ticks), [f"{times:,}" for times in ticks])
    first.yaxis.set_minor_locator(NullLocator())
    first.set_ylabel("times the perplexity of the dense model", fontsize=8)
    _legend_below(figure, first, ncols=3, fontsize=7)
    return figure


def quantisation_levels(blocks: ArrayLike, books: Mapping[str, ArrayLike]) -> Figure:
    """A histogram of weights over their block's largest, above rows of levels."""
    figure, drawn = subplots(2, 1, 3.4, sharex=True, height_ratios=[2, 1])
    top, bottom = drawn[:, 0]
    weights = np.asarray(blocks, float).ravel()
    top.hist(weights, bins=101, range=(-1.01, 1.01), density=True, color=GREY)
    top.set(ylabel="density")
    for row, levels in enumerate(books.values()):
        values = np.asarray(levels, float)
        bottom.plot(values, np.full(len(values), -row), "|", markersize=14)
    bottom.set_yticks([-row for row in range(len(books))], list(books))
    bottom.set(
        xlabel="weight over the largest magnitude of its block",
        ylim=(-len(books) + 0.4, 0.6),
    )
    bottom.grid(axis="y", visible=False)
    return figure


def bytes_and_perplexity(table: pd.DataFrame) -> Figure:
    """Perplexity with its interval against bytes, a point per row of the index.

    Columns: bytes_percent, perplexity, low, high.
    """
    figure, axis = axes(height_in=3.0)
    for name, row in table.iterrows():
        spread = [[row.perplexity - row.low], [row.high - row.perplexity]]
        axis.errorbar(
            row.bytes_percent, row.perplexity, yerr=spread, fmt="o", capsize=3
        )
        axis.annotate(
            str(name),
            (row.bytes_percent, row.perplexity),
            xytext=(7, 4),
            textcoords="offset points",
        )
    axis.set(
        xlabel="bytes of the linear layers, % of bfloat16",
        ylabel="perplexity per token",
        xlim=(0, 112),
    )
    return figure


def bits_and_perplexity(table: pd.DataFrame) -> Figure:
    """Perplexity on a logarithmic axis against bits a weight, a line for each method.

    Columns: method, bits, perplexity, low, high. A method without bits below 16 is a
    level that the others are measured against.
    """
    figure, axis = axes(height_in=3.6)
    for method, rows in table.groupby("method", sort=False):
        if rows.bits.min() >= 16:
            axis.axhline(rows.perplexity.mean(), color=GREY, ls=":", label=str(method))
            continue
        ordered = rows.sort_values("bits")
        spread = [ordered.perplexity - ordered.low, ordered.high - ordered.perplexity]
        axis.errorbar(
            ordered.bits, ordered.perplexity, yerr=spread, fmt="o-", capsize=3,
            label=str(method),
        )  # fmt: skip
    axis.set(
        xlabel="bits a weight, scales and factors counted",
        ylabel="perplexity per token",
        yscale="log",
    )
    axis.legend()
    return figure


WAY_LOOKS = {  # by the family of `memory.pareto`: colour and marker
    "16 bits": (INK, "o"),
    "bitsandbytes": ("#e69f00", "s"),
    "GPTQ": ("#0072b2", "^"),
    "GPTQ, corrected": ("#009e73", "D"),
    "low rank": ("#d55e00", "v"),
    "rounding": ("#cc79a7", "X"),
}
# Ticks of an axis of logarithms of ratios, linear below the least one over one.
TIMES = (1, 1.02, 1.05, 1.1, 1.2, 1.5, 2, 4, 10, 100, 10_000, 1_000_000)


def pareto(table: pd.DataFrame) -> Figure:
    """Perplexity over that of 16 bits against bytes, a panel a text, and against time.

    `table` is that of `memory.pareto.ways`. The line is the front; ways that lose are
    hollow. Time has a panel, of the first text, once a way has been timed.
    """
    texts = list(dict.fromkeys(table.text))
    places = [(text, "bytes", 1e6, "front") for text in texts]
    if table.token_s.notna().any():
        places.append((texts[0], "token_s", 1e-3, "time_front"))
    figure, grid = subplots(len(places), 1, 0.6 + 2.7 * len(places))
    for drawn, (text, column, unit, front) in zip(grid[:, 0], places, strict=True):
        rows: Any = table[(table.text == text) & table[column].notna()]
        _ways(drawn, rows[column] / unit, rows, rows[front])
        drawn.set_title(text, fontsize=8, loc="left")
        label = "bytes of the decoder layers (MB)"
        drawn.set_xlabel(
            label if column == "bytes" else "time of a streamed token (ms)"
        )
    handles = [
        Line2D([], [], color=look[0], marker=look[1], linestyle="", label=kind)
        for kind, look in WAY_LOOKS.items()
        if kind in set(table.family)
    ]
    handles.append(Line2D([], [], color=GREY, linewidth=1, label="front"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=7)
    figure.draw_without_rendering()  # where a label has room shows in the final layout
    for drawn in grid[:, 0]:
        _move_apart(drawn)
    return figure


def _ways(drawn: Axes, at: Any, rows: Any, front: Any) -> None:
    """One panel: the rows at their cost `at`, higher the more nats they lose."""
    dense = rows.perplexity / rows.ratio
    lost, low, high = (
        np.log(rows[end] / dense) for end in ("perplexity", "low", "high")
    )
    below, above = (lost - low).clip(lower=0), (high - lost).clip(lower=0)  # rounding
    kept = at[front].sort_values(kind="stable").index
    drawn.step(at[kept], lost[kept], where="post", color=GREY, linewidth=1, zorder=1)
    for i, row in rows.iterrows():
        colour, marker = WAY_LOOKS.get(row.family, (GREY, "P"))
        drawn.errorbar(
            at[i], lost[i], yerr=[[below[i]], [above[i]]], fmt=marker,
            color=colour, mfc=colour if front[i] else "white", markersize=5,
            capsize=2, linewidth=0.9,
        )  # fmt: skip
        label = drawn.annotate(
            _short(row["name"]), (at[i], lost[i]), textcoords="offset points",
            xytext=(0, 0), ha="center", va="center", fontsize=6.5,
        )  # fmt: skip
        label.set_in_layout(False)
    top = 1.6 * max(high.max(), np.log(TIMES[2]))
    drawn.set_xscale("log")
    drawn.set_yscale("symlog", linthresh=np.log(TIMES[1]), linscale=0.4)
    drawn.set_xlim(at.min() / 1.1, at.max() * 1.2)
    drawn.set_ylim(min(1.3 * low.min(), -0.4 * np.log(TIMES[1])), top)
    ticks = [times for times in TIMES if np.log(times) < top]
    drawn.set_yticks(np.log(ticks), [f"{times:,}" for times in ticks])
    drawn.yaxis.set_minor_locator(NullLocator())
    drawn.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
    drawn.xaxis.set_minor_locator(NullLocator())
    drawn.xaxis.set_major_formatter("{x:g}")
    drawn.tick_params(labelsize=7)
    drawn.set_ylabel("times the perplexity of bf16", fontsize=8)
    drawn.xaxis.label.set_fontsize(8)


def _short(name: str) -> str:
    """The name of a way without what the colour says of it."""
    for word in ("GPTQ ", "low rank ", "nearest "):
        name = name.removeprefix(word)
    return name.replace(" + rank ", "+")
