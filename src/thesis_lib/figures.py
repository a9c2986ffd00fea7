"""The only plotting import: one theme, and one function for each figure.

Every function takes data, draws on a new figure of at most 6.5 inches and returns
it. Colours belong to a policy or a method, never to a position in a list.
"""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from thesis_lib.sequencer.trace import F64, Trace

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

ESTIMATOR_COLOURS = {
    "constant": "#8a8a8a",
    "sum-max": "#d55e00",
    "linear": "#e69f00",
    "boosted": "#009e73",
}


def collected_trace(trace: Trace) -> Figure:
    """Where a measured transaction spends its time, and how that scatters by type."""
    figure, left, right = axes(2, height_in=3.2)
    bottom = np.zeros(len(trace.kinds))
    for unit, name in enumerate(trace.unit_names):
        mean_us = [
            1e6 * trace.units_s[trace.kind == k, unit].mean()
            for k in range(len(trace.kinds))
        ]
        left.bar(range(len(trace.kinds)), mean_us, bottom=bottom, label=name)
        bottom += mean_us
    labels = [kind.replace("_", "\n") for kind in trace.kinds]
    left.set_xticks(range(len(trace.kinds)), labels, fontsize=7)
    left.set_ylabel("mean time in each unit (µs)")
    left.legend(title="operating unit", fontsize=7, title_fontsize=7)
    for k, kind in enumerate(trace.kinds):
        rows = trace.kind == k
        service_us = np.sort(1e6 * trace.service_s[rows])
        share = np.arange(1, len(service_us) + 1) / max(len(service_us), 1)
        (line,) = right.plot(service_us, share, label=kind.replace("_", " "))
        cpu_us = np.sort(1e6 * trace.measured["cpu_s"][rows])
        right.plot(cpu_us, share, ":", color=line.get_color(), linewidth=1.1)
    right.set_xscale("log")
    right.set_xlabel("service time (µs); dotted: processor time")
    right.set_ylabel("share of transactions at or below")
    right.legend(fontsize=7)
    return figure


def worker_timelines(traces: dict[str, Trace], window_s: float) -> Figure:
    """Which worker ran what, and when, within `window_s` from the middle of the run."""
    figure, *panels = axes(len(traces), height_in=2.4, sharex=True)
    panels = panels if len(traces) > 1 else [panels[0]]
    colours = sns.color_palette()
    for panel, (label, trace) in zip(panels, traces.items(), strict=True):
        start_s = trace.arrival_s + sum(
            trace.measured[stage] for stage in ("sequence_s", "lock_wait_s", "queue_s")
        )
        start_s = start_s - np.median(start_s)
        rows = (start_s + trace.service_s > 0) & (start_s < window_s)
        for k in range(len(trace.kinds)):
            chosen = rows & (trace.kind == k)
            panel.barh(
                trace.measured["worker"][chosen],
                1e3 * trace.service_s[chosen],
                left=1e3 * start_s[chosen],
                color=colours[k],
                height=0.8,
                linewidth=0,
            )
        panel.set_yticks(range(round(trace.measured["worker"].max()) + 1))
        panel.set_xlim(0, 1e3 * window_s)
        panel.set_title(label, fontsize=8)
        panel.set_xlabel("time (ms)")
        panel.grid(axis="y", visible=False)
    panels[0].set_ylabel("worker")
    kinds = next(iter(traces.values())).kinds
    patches = [
        Patch(color=colours[k], label=kind.replace("_", " "))
        for k, kind in enumerate(kinds)
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=5, fontsize=7)
    return figure


def q_error_curves(errors: dict[str, dict[str, F64]]) -> Figure:
    """Share of held-out transactions within a q-error: a panel each, a line each.

    `errors` maps what is predicted to the q-errors (n,) of each estimator.
    """
    figure, *panels = axes(len(errors), height_in=3.0, sharey=True)
    for panel, (target, by_estimator) in zip(panels, errors.items(), strict=True):
        for name, error in by_estimator.items():
            ordered = np.sort(error)
            share = np.arange(1, len(ordered) + 1) / len(ordered)
            # two estimators of the same quality must both be seen
            style = "--" if name == "boosted" else "-"
            colour = ESTIMATOR_COLOURS[name]
            panel.plot(ordered, share, style, color=colour, label=name)
        panel.set_xscale("log")
        panel.set_xlim(1, 10)
        panel.set_xticks([1, 1.5, 2, 3, 5, 10], ["1", "1.5", "2", "3", "5", "10"])
        panel.minorticks_off()
        panel.set_xlabel("q-error")
        panel.set_title(target, fontsize=9)
    panels[0].set_ylabel("share of transactions at or below")
    panels[-1].legend(loc="lower right")
    return figure


# --- Part I: the sequencer ---------------------------------------------------

# --- Part II: memory and time ------------------------------------------------

# --- Part II: compression and cost -------------------------------------------

# --- Introduction ------------------------------------------------------------
