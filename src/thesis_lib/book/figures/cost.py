"""Figures of what a token costs, and of the models' sizes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MultipleLocator, NullLocator, ScalarFormatter
from numpy.typing import ArrayLike

from thesis_lib.book.figures.style import GREY, INK, axes


def monthly_bills(
    tokens: ArrayLike,
    bills: Mapping[str, ArrayLike],
    crossings: Sequence[tuple[float, float]],
) -> Figure:
    """US dollars a month (n,) of each option against tokens a month (n,).

    An option ends where its dollars are infinite. `crossings` are points at which one
    option begins to cost less than another.
    """
    figure, axis = axes(height_in=4.2)
    for (name, usd), dashes in zip(
        bills.items(), ("-", "--", ":", "-.", (0, (5, 1, 1, 1))), strict=False
    ):
        (line,) = axis.plot(tokens, usd, linestyle=dashes, label=name)
        end = np.flatnonzero(np.isfinite(np.asarray(usd, float)))
        if 0 < len(end) < np.size(tokens):
            last = end[-1]
            axis.plot(
                np.asarray(tokens)[last],
                np.asarray(usd)[last],
                "|",
                color=line.get_color(),
                markersize=10,
            )
    for at, usd in crossings:
        axis.plot(at, usd, "o", color=INK, markersize=5, zorder=3)
    axis.set(
        xlabel="generated tokens a month",
        ylabel="US$ a month",
        xscale="log",
        yscale="log",
    )
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return figure


SWING = "#56b4e9"


def tornado(bars: Sequence[Any], base: float, labels: Mapping[str, str]) -> Figure:
    """How far a cost moves over the range of each input, the largest on top.

    `bars` are those of `deployment.tornado`, `base` the cost with every input at its
    value; an input that moves nothing is left out.
    """
    shown = [bar for bar in bars if bar.swing > 0]
    figure, axis = axes(height_in=0.8 + 0.32 * len(shown))
    for row, bar in enumerate(shown):
        ends = sorted([(bar.at_low, bar.range.low), (bar.at_high, bar.range.high)])
        usd, inputs = zip(*ends, strict=True)
        axis.barh(row, usd[1] - usd[0], left=usd[0], height=0.6, color=SWING)
        for at, value, side, gap in zip(
            usd, inputs, ("right", "left"), (-4, 4), strict=True
        ):
            axis.annotate(
                f"{value:,.4g}",
                (at, row),
                xytext=(gap, 0),
                textcoords="offset points",
                ha=side,
                va="center",
                fontsize=7,
            )
    axis.axvline(base, color=INK, linewidth=1)
    axis.set_yticks(range(len(shown)), [labels[bar.name] for bar in shown])
    axis.set_ylim(len(shown) - 0.5, -0.5)
    axis.set(xlabel="US$ per million tokens", xscale="log")
    ends = [usd for bar in shown for usd in (bar.at_low, bar.at_high)]
    axis.set_xlim(min(ends) / 1.25, max(ends) * 1.25)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_locator(NullLocator())
    axis.grid(axis="y", visible=False)
    return figure


# --- Introduction ------------------------------------------------------------
def model_sizes(models: pd.DataFrame, devices: pd.DataFrame) -> Figure:
    """Bytes of published models against the memory of devices, over the years.

    `models` has columns model, year and fp16_bytes; `devices` has device, year, class
    and memory_bytes. A class of devices is one staircase, labelled where it
    ends with the memory of its last device.
    """
    figure, ax = axes(height_in=4.2)
    ax.set_yscale("log")
    end = max(models["year"].max(), devices["year"].max()) + 1.6
    for colour, (name, group) in zip(
        (GREY, INK), devices.groupby("class", sort=True), strict=True
    ):
        stairs = group.sort_values("year")
        level = stairs["memory_bytes"].to_numpy() / 1e9
        years = np.append(stairs["year"], end)
        ax.step(years, np.append(level, level[-1]), where="post", color=colour)
        ax.annotate(
            f"{name} GPU, {stairs['memory_bytes'].iloc[-1] / 2**30:.0f} GiB",
            (end, level[-1]), (0, -5), textcoords="offset points",
            color=colour, ha="right", va="top", fontsize=8,
        )  # fmt: skip
    ax.scatter(models["year"], models["fp16_bytes"] / 1e9, 22, "#d55e00", zorder=3)
    table = models.sort_values(["year", "fp16_bytes"])
    year, size = table["year"].to_numpy(), np.log10(table["fp16_bytes"].to_numpy())
    for i, model in enumerate(table["model"]):
        # Names closer than a line of text lean away from each other; a name that
        # would run into next year's, or out of the figure, stands on the left.
        gap = np.where(year == year[i], size - size[i], np.inf)
        below = bool(((gap < 0) & (gap > -0.2)).any())
        above = bool(((gap > 0) & (gap < 0.2)).any())
        crowded = bool(((year == year[i] + 1) & (abs(size - size[i]) < 0.2)).any())
        left = crowded or year[i] == year[-1]
        ax.annotate(
            model, (year[i], 10 ** size[i] / 1e9),
            (-6 if left else 6, 5 * (below - above)), textcoords="offset points",
            ha="right" if left else "left", va="center", fontsize=8, color="#a34700",
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
    ax.set(
        xlim=(devices["year"].min() - 0.4, end),
        xlabel="Year of publication or release",
        ylabel="16-bit weights, device memory (GB)",
    )
    ax.xaxis.set_major_locator(MultipleLocator(2))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.grid(False, axis="x")
    return figure


def parameter_shares(parts: pd.DataFrame) -> Figure:
    """Share of the parameters in each part of some models, one bar a model.

    `parts` counts parameters, models by rows and parts by columns.
    """
    figure, ax = axes(height_in=0.7 + 0.45 * len(parts))
    shares = 100 * parts.div(parts.sum(axis=1), axis=0)
    left = np.zeros(len(shares))
    for column, colour in zip(
        shares, ("#0072b2", "#d55e00", "#8a8a8a", "#cc79a7"), strict=False
    ):
        width = shares[column].to_numpy()
        bars = ax.barh(shares.index, width, 0.62, left, color=colour, edgecolor="white")
        # A share too small for its number is drawn without one.
        ax.bar_label(
            bars, [f"{value:.0f}" if value >= 3 else "" for value in width],
            label_type="center", color="white", fontsize=8,
        )  # fmt: skip
        ax.annotate(
            column, (left[0] + width[0] / 2, 1.0), color=colour, fontsize=9,
            xycoords=ax.get_xaxis_transform(), ha="center", va="bottom",
        )  # fmt: skip
        left += width
    ax.invert_yaxis()
    ax.set(xlim=(0, 100), xlabel="Share of the parameters (%)")
    ax.grid(False, axis="y")
    ax.tick_params(axis="y", length=0)
    return figure
