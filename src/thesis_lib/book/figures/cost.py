"""Figures of what a token costs, and of the models' sizes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator
from numpy.typing import ArrayLike

from thesis_lib.book.figures import style


def monthly_bills(
    tokens: ArrayLike,
    bills: Mapping[str, ArrayLike],
    crossings: Sequence[tuple[float, float]],
) -> Figure:
    """US dollars a month (n,) of each option against tokens a month (n,).

    An option ends where its dollars are infinite. `crossings` are points at which one
    option begins to cost less than another.
    """
    figure, panel = style.axes(height_in=4.2)
    lines = ("-", "--", ":", "-.", (0, (5, 1, 1, 1)))
    for (name, usd), dashes in zip(bills.items(), lines, strict=False):
        label = style.printed(name)
        (line,) = panel.plot(tokens, usd, linestyle=dashes, label=label)
        payable = line.get_xydata()[np.isfinite(line.get_ydata())]
        if 0 < len(payable) < np.size(tokens):
            panel.plot(*payable[-1], "|", color=line.get_color(), markersize=10)
    for crossing in crossings:
        panel.plot(*crossing, "o", color=style.INK, markersize=5, zorder=3)
    panel.set(xlabel="generated tokens a month", ylabel="US$ a month")
    panel.set(xscale="log", yscale="log")
    style.legend_below(figure, ncols=2, fontsize=8)
    return figure


def tornado(bars: Sequence[Any], base: float, labels: Mapping[str, str]) -> Figure:
    """How far a cost moves over the range of each input, the largest on top.

    `bars` are those of `deployment.tornado`, `base` the cost with every input at its
    value; an input that moves nothing is left out.
    """
    shown = [bar for bar in bars if bar.swing > 0]
    figure, panel = style.axes(height_in=0.8 + 0.32 * len(shown))
    reach = []
    for row, bar in enumerate(shown):
        low, high = sorted([(bar.at_low, bar.range.low), (bar.at_high, bar.range.high)])
        panel.barh(row, high[0] - low[0], left=low[0], height=0.6, color=style.SKY)
        for (usd, value), side, gap in ((low, "right", -4), (high, "left", 4)):
            text = {"ha": side, "va": "center", "fontsize": 7}
            style.note(panel, f"{value:,.4g}", (usd, row), (gap, 0), **text)
            reach.append(usd)
    panel.axvline(base, color=style.INK, linewidth=1)
    style.name_rows(panel, [labels[bar.name] for bar in shown])
    panel.set(xlabel="US$ per million tokens", xscale="log")
    panel.set_xlim(min(reach) / 1.6, max(reach) * 1.4)
    style.log_ticks(panel.xaxis, (1, 2, 3, 5))
    return figure


# --- Introduction --------------------------------------------------------------------
def model_sizes(models: pd.DataFrame, devices: pd.DataFrame) -> Figure:
    """Bytes of published models against the memory of devices, over the years.

    `models` has columns model, year and fp16_bytes; `devices` has device, year, class
    and memory_bytes. A class of devices is one staircase, labelled where it
    ends with the memory of its last device.
    """
    figure, panel = style.axes(height_in=4.2)
    panel.set_yscale("log")
    end = max(models["year"].max(), devices["year"].max()) + 1.6
    for colour, (name, group) in zip(
        (style.GREY, style.INK), devices.groupby("class", sort=True), strict=True
    ):
        stairs = group.sort_values("year")
        level = [*stairs["memory_bytes"] / 1e9, stairs["memory_bytes"].iloc[-1] / 1e9]
        look = {"color": colour, "label": f"{name} GPU"}
        panel.step([*stairs["year"], end], level, where="post", **look)
        gpu = f"{name} GPU, {stairs['memory_bytes'].iloc[-1] / 2**30:.0f} GiB"
        text = {"color": colour, "ha": "right", "va": "top", "fontsize": 8}
        panel.text(end, 0.95 * level[-1], gpu, **text)
    sizes = models.assign(gigabytes=models["fp16_bytes"] / 1e9)
    at = ["year", "gigabytes"]
    places = [sizes[column] for column in at]
    panel.scatter(*places, 22, style.VERMILION, zorder=3)
    look = {"ha": "center", "va": "center", "fontsize": 8, "bbox": style.UNDER}
    for name, *place in sizes[["model", *at]].itertuples(index=False):
        style.note(panel, name, tuple(place), color="#a34700", **look)
    panel.set(
        xlim=(devices["year"].min() - 0.4, end),
        xlabel="Year of publication or release",
        ylabel="16-bit weights, device memory (GB)",
    )
    panel.xaxis.set_major_locator(MultipleLocator(2))
    panel.yaxis.set_major_formatter(style.PLAIN)
    panel.grid(False, axis="x")
    style.move_apart(panel, beside=True)
    return figure


def parameter_shares(parts: pd.DataFrame) -> Figure:
    """Share of the parameters in each part of some models, one bar a model.

    `parts` counts parameters, models by rows and parts by columns.
    """
    figure, panel = style.axes(height_in=1 + 0.45 * len(parts))
    shares = 100 * parts.div(parts.sum(axis=1), axis=0)
    colours = [style.BLUE, style.VERMILION, style.GREY, style.PURPLE]
    shares.plot.barh(
        stacked=True, ax=panel, width=0.62, color=colours, ec="white", legend=False
    )
    for bars, part in zip(panel.containers, shares, strict=True):
        # A share too small for its number is drawn without one.
        numbers = [f"{share:.0f}" if share >= 5 else "" for share in shares[part]]
        text = {"label_type": "center", "color": "white", "fontsize": 8}
        panel.bar_label(bars, numbers, **text)
    panel.invert_yaxis()
    panel.set(xlim=(0, 100), xlabel="Share of the parameters (%)", ylabel="")
    panel.grid(False, axis="y")
    panel.tick_params(axis="y", length=0)
    style.legend_below(figure)
    return figure
