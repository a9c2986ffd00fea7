"""The only plotting import: one theme, and one function for each figure.

Every function takes data, draws on a new figure of at most 6.5 inches and returns
it. Colours belong to a policy or a method, never to a position in a list.
"""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MultipleLocator

WIDTH_IN = 6.5

# Okabe and Ito's palette: distinguishable without colour vision.
INK, GREY = "#222222", "#8a8a8a"
COLOURS = {
    "fifo": "#8a8a8a",
    "drop": "#d55e00",
    "reorder": "#0072b2",
    "hybrid": "#cc79a7",
    "ours": "#009e73",
    "bound": "#222222",
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


def axes(columns: int = 1, height_in: float = 3.4, **options: Any) -> tuple[Any, ...]:
    """A new figure of the book's width with `columns` axes: (figure, axes…)."""
    figure, drawn = plt.subplots(
        1, columns, figsize=(WIDTH_IN, height_in), layout="constrained", **options
    )
    plt.close(figure)  # shown by its cell as a value, not twice
    return (figure, *([drawn] if columns == 1 else drawn))


# --- Part I: the estimator ---------------------------------------------------

# --- Part I: the sequencer ---------------------------------------------------

# --- Part II: memory and time ------------------------------------------------

# --- Part II: compression and cost -------------------------------------------

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
