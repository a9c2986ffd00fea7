"""The only plotting import: one theme, and one function for each figure.

Every function takes data, draws on a new figure of at most 6.5 inches and returns
it. Colours belong to a policy or a method, never to a position in a list.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from thesis_lib.sequencer.report import mean_interval
from thesis_lib.sequencer.trace import History

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


def axes(columns: int = 1, height_in: float = 3.4, **options) -> tuple[Figure, ...]:
    """A new figure of the book's width with `columns` axes: (figure, axes…)."""
    figure, drawn = plt.subplots(
        1, columns, figsize=(WIDTH_IN, height_in), layout="constrained", **options
    )
    plt.close(figure)  # shown by its cell as a value, not twice
    return (figure, *([drawn] if columns == 1 else drawn))


# --- Part I: the estimator ---------------------------------------------------

# --- Part I: the sequencer ---------------------------------------------------

_LABELS = {
    "fifo": "FIFO",
    "fifo-batched": "FIFO, batched",
    "drop": "Drop",
    "reorder": "Reorder",
    "hybrid": "Hybrid",
    "drop-fixed": "Drop, mended",
    "reorder-fixed": "Reorder, mended",
    "hybrid-fixed": "Hybrid, mended",
    "ours": "ours",
    "bound": "lower bound",
}
_MARKERS = {"fifo": "o", "drop": "v", "reorder": "s", "hybrid": "D", "ours": "P"}


def _style(policy: str) -> dict:
    """Colour by policy; a mended policy keeps its colour and is dashed."""
    base = policy.removesuffix("-fixed").removesuffix("-batched")
    dashed = "-" if policy == base else "--"
    return {
        "color": COLOURS.get(base, INK),
        "marker": _MARKERS.get(base),
        "markersize": 4,
        "linestyle": ":" if policy == "bound" else dashed,
        "label": _LABELS.get(policy, policy),
    }


def schedules(histories: dict[str, History]) -> Figure:
    """When each transaction of one small batch runs, one panel for each policy.

    Bars are executions; a tick marks each deadline; dropped transactions have a cross.
    """
    first = next(iter(histories.values()))
    n = len(first.arrival_s)
    figure, drawn = plt.subplots(
        len(histories), 1, figsize=(WIDTH_IN, 1.45 * len(histories)),
        sharex=True, layout="constrained",
    )  # fmt: skip
    plt.close(figure)
    for panel, (name, history) in zip(
        np.atleast_1d(drawn), histories.items(), strict=True
    ):
        for i in range(n):
            panel.plot(
                1e3 * history.deadline_s[i], i, marker="|", color=INK, markersize=7
            )
            if history.dropped[i]:
                panel.plot(1e3 * history.decided_s[i], i, marker="x", color="#d55e00")
                continue
            start_ms, finish_ms = 1e3 * history.start_s[i], 1e3 * history.finish_s[i]
            colour = "#d55e00" if history.late[i] else "#009e73"
            panel.barh(i, finish_ms - start_ms, left=start_ms, height=0.7, color=colour)
            panel.plot(
                [1e3 * history.arrival_s[i], start_ms],
                [i, i],
                color=GREY,
                linewidth=0.8,
            )
        panel.set_ylabel(_LABELS.get(name, name))
        panel.set_yticks(range(0, n, 2))
        panel.set_ylim(n - 0.4, -0.6)
    np.atleast_1d(drawn)[-1].set_xlabel("time (ms)")
    return figure


def _band(panel: Axes, runs: pd.DataFrame, policy: str, column: str, x: str) -> None:
    """The mean over seeds against `x`, with its 95 % bootstrap interval shaded."""
    groups = runs[runs["policy"] == policy].groupby(x)[column]
    made = {at: mean_interval(values.to_numpy()) for at, values in groups}
    at = list(made)
    style = _style(policy)
    panel.plot(at, [m.value for m in made.values()], **style)
    panel.fill_between(
        at,
        [m.low for m in made.values()],
        [m.high for m in made.values()],
        color=style["color"], alpha=0.2, linewidth=0,
    )  # fmt: skip


def violations_against_load(runs: pd.DataFrame, policies: Sequence[str]) -> Figure:
    """Violations in percent against load: linear beside logarithmic."""
    percent = runs.assign(violations=100 * runs["violations"])
    figure, linear, log = axes(2, height_in=3.6)
    for panel in (linear, log):
        for policy in policies:
            _band(panel, percent, policy, "violations", "load")
        panel.axvline(1.0, color=GREY, linewidth=0.8)
        panel.set_xlabel("load, of FIFO's saturation")
    linear.set_ylabel("violations (% of arrivals)")
    log.set_yscale("symlog", linthresh=0.1)
    log.set_ylim(0, 150)
    linear.legend(fontsize="small")
    return figure


def rates_against_load(runs: pd.DataFrame, policies: Sequence[str]) -> Figure:
    """Throughput, and the part of it that is on time, against load."""
    figure, *drawn = axes(2, height_in=3.2, sharey=True)
    for panel, name, title in zip(
        drawn,
        ("throughput_per_s", "goodput_per_s"),
        ("all commits", "commits on time"),
        strict=True,
    ):
        for policy in policies:
            _band(panel, runs, policy, name, "load")
        panel.axvline(1.0, color=GREY, linewidth=0.8)
        panel.set_xlabel("load, of FIFO's saturation")
        panel.set_title(title, fontsize="medium")
    drawn[0].set_ylabel("transactions per second")
    drawn[1].legend(fontsize="small")
    return figure


def misestimation(
    noise: pd.DataFrame, bias: pd.DataFrame, policies: Sequence[str]
) -> Figure:
    """Violations in percent against the scatter and the bias of the estimates."""
    figure, left, right = axes(2, height_in=3.0, sharey=True)
    for panel, runs, x, label in (
        (left, noise, "noise", "scatter of the estimates (σ of the logarithm)"),
        (right, bias, "bias", "estimate / truth, on average"),
    ):
        percent = runs.assign(violations=100 * runs["violations"])
        for policy in policies:
            _band(panel, percent, policy, "violations", x)
        panel.set_xlabel(label)
    left.set_ylabel("violations (% of arrivals)")
    left.legend(fontsize="small")
    return figure


# --- Part II: memory and time ------------------------------------------------

# --- Part II: compression and cost -------------------------------------------

# --- Introduction ------------------------------------------------------------
