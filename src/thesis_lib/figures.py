"""The only plotting import: one theme, and one function for each figure.

Every function takes data, draws on a new figure of at most 6.5 inches and returns
it. Colours belong to a policy or a method, never to a position in a list.
"""

from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import ConnectionPatch, Patch
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.ticker import (
    LogLocator,
    MultipleLocator,
    NullLocator,
    ScalarFormatter,
)
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike

from thesis_lib.checks import require
from thesis_lib.sequencer import report, sla
from thesis_lib.sequencer.trace import F64, History, Trace
from thesis_lib.stats import mean_interval
from thesis_lib.units import GiB, MiB

WIDTH_IN = 6.5

# Okabe and Ito's palette: distinguishable without colour vision.
INK, GREY = "#222222", "#8a8a8a"
COLOURS = {
    "fifo": "#8a8a8a",
    "drop": "#d55e00",
    "reorder": "#0072b2",
    "hybrid": "#cc79a7",
    "ours": "#009e73",
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
    "quantiles": "#0072b2",
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


def operating_units(
    trace: Trace, predicted_s: Mapping[str, F64], totals_s: Mapping[str, F64]
) -> Figure:
    """Mean time in each unit, measured and estimated; and totals over the truth.

    `predicted_s` (n,) by unit, of which `rest` is what no unit claims; `totals_s` are
    estimates (n,) of the service time, by how they were learned.
    """
    figure, left, right = axes(2, height_in=3.4)
    kinds = [k for k in range(len(trace.kinds)) if (trace.kind == k).any()]
    measured_s = dict(zip(trace.unit_names, trace.units_s.T, strict=True))
    measured_s["rest"] = trace.service_s - trace.units_s.sum(axis=1)
    for shift, columns, hatch in ((-0.2, measured_s, None), (0.2, predicted_s, "////")):
        bottom = np.zeros(len(kinds))
        for number, unit in enumerate(measured_s):
            column = columns.get(unit, np.zeros(len(trace)))
            mean_us = np.array([1e6 * column[trace.kind == k].mean() for k in kinds])
            left.bar(
                np.arange(len(kinds)) + shift,
                mean_us,
                0.36,
                bottom=bottom,
                color=[*sns.color_palette(), GREY][number % 7],
                label=unit if hatch is None else None,
                hatch=hatch,
                edgecolor="white",
                linewidth=0,
            )
            bottom += mean_us
    labels = [trace.kinds[k].replace("_", "\n") for k in kinds]
    left.set_ylabel("mean time (µs)")
    left.legend(title="operating unit", fontsize=7, title_fontsize=7)
    colours = (ESTIMATOR_COLOURS["sum-max"], GREY)
    width = 0.8 / len(totals_s)
    for number, ((name, total_s), colour) in enumerate(
        zip(totals_s.items(), colours, strict=True)
    ):
        ratio = [
            total_s[trace.kind == k].sum() / trace.service_s[trace.kind == k].sum()
            for k in kinds
        ]
        shift = (number - (len(totals_s) - 1) / 2) * width
        right.bar(np.arange(len(kinds)) + shift, ratio, width, color=colour, label=name)
    right.axhline(1, color=INK, linewidth=0.8)
    right.set_ylabel("estimated over true time")
    right.legend(fontsize=7, loc="lower left", framealpha=0.9, frameon=True)
    for panel in (left, right):
        panel.set_xticks(range(len(kinds)), labels, fontsize=7)
        panel.grid(axis="x", visible=False)
    return figure


def coverage(
    trace: Trace, bounds_s: Mapping[str, Mapping[float, F64]], window: int
) -> Figure:
    """How many times stay within their bound: over the run, and by type.

    `bounds_s` (n,) by how they were made (the last one in full colour) and level. The
    left panel counts the last `window` transactions, the right one all of a type.
    """
    figure, left, right = axes(2, height_in=3.2)
    *_, last = bounds_s
    kinds = [k for k in range(len(trace.kinds)) if (trace.kind == k).any()]
    for name, by_level in bounds_s.items():
        for (level, bound_s), colour in zip(
            by_level.items(), sns.color_palette(), strict=False
        ):
            within = 100 * (trace.service_s <= bound_s)
            moving = np.convolve(within, np.ones(window) / window, "valid")
            style = (
                {"linewidth": 1.4} if name == last else {"linestyle": ":", "alpha": 0.8}
            )
            at = np.arange(len(moving)) + window
            left.plot(at, moving, color=colour, label=f"{level:.0%}, {name}", **style)
            left.axhline(100 * level, color=colour, linewidth=0.6)
            if name == last:
                share = [within[trace.kind == k].mean() for k in kinds]
                miss = np.array(share) - 100 * level
                right.plot(miss, range(len(kinds)), "o", color=colour, alpha=0.8)
    left.set_xlabel("held-out transactions so far")
    left.set_ylabel(f"within the bound, of the last {window:,} (%)")
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=7)
    right.axvspan(-2, 2, color=GREY, alpha=0.15, linewidth=0)
    right.axvline(0, color=INK, linewidth=0.8)
    right.set_xlim(-4, 4)
    labels = [trace.kinds[k].replace("_", " ") for k in kinds]
    right.set_yticks(range(len(kinds)), labels, fontsize=8)
    right.set_xlabel("covered less promised (points)")
    return figure


def hidden_patterns(
    importance: pd.DataFrame, dependence_s: Mapping[str, pd.Series], features: int = 9
) -> Figure:
    """What shuffling a feature costs, by type; and estimates against one feature.

    `importance` has a row a type and a column a feature, in percent; the `features`
    that matter most anywhere are shown. `dependence_s` are mean estimates in seconds by
    the value of a feature, by what they show.
    """
    figure, left, right = axes(2, height_in=3.4)
    most = importance.max().sort_values(ascending=False).index[:features]
    shown = importance[list(most)].T.clip(lower=0)
    sns.heatmap(
        shown, ax=left, cmap="crest", annot=True, fmt=".1f", annot_kws={"size": 7},
        cbar=False, linewidths=0.5,
    )  # fmt: skip
    left.set_xticklabels([t.replace(" ", "\n") for t in shown.columns], rotation=0)
    left.set_yticklabels([name.replace("_", " ") for name in shown.index], rotation=0)
    left.tick_params(labelsize=7, length=0)
    left.set_xlabel("")
    left.set_ylabel("")
    left.set_title("q-error lost by shuffling (%)", fontsize=8)
    for (label, series), marker in zip(dependence_s.items(), "osD^v", strict=False):
        relative = 100 * (series.to_numpy() / series.iloc[0] - 1)
        right.plot(series.index, relative, marker=marker, ms=3, label=label)
    right.axhline(0, color=INK, linewidth=0.6)
    right.set_xlabel("value of the feature")
    right.set_ylabel("mean estimate against the smallest (%)")
    right.legend(fontsize=7)
    return figure


# --- Part I: service level agreements ------------------------------------------


def agreements(
    trace: Trace,
    latency_s: F64,
    slo_s: float,
    type_slo_s: F64,
    worthless_s: float,
) -> Figure:
    """What an answer costs against its latency, under four kinds of agreement.

    `latency_s` (n,) are answers whose tails the panel of classes shows; `type_slo_s`
    (k,) belong to the types of the trace.
    """
    figure, *panels = axes(4, height_in=2.5)
    constant, by_type, by_class, linear = panels
    end_s = 1.15 * max(worthless_s, type_slo_s.max())
    at_s = np.linspace(0, end_s, 800)
    constant.plot(1e3 * at_s, sla.step_cost(at_s, slo_s), color=INK)
    linear.plot(1e3 * at_s, sla.linear_cost(at_s, slo_s, worthless_s), color=INK)
    for k, kind in enumerate(trace.kinds):
        label = kind.replace("_", " ")
        by_type.plot(1e3 * at_s, sla.step_cost(at_s, type_slo_s[k]), label=label)
        ordered_s = np.sort(latency_s[trace.kind == k])
        slower = 1 - np.arange(len(ordered_s)) / len(ordered_s)
        (line,) = by_class.plot(1e3 * ordered_s, 100 * slower)
        by_class.plot(1e3 * type_slo_s[k], 1.0, "v", color=line.get_color())
    by_class.set_yscale("log")
    by_class.set_ylim(0.1, 100)
    by_class.yaxis.set_major_formatter("{x:g}")
    by_class.set_ylabel("share that is slower (%)", fontsize=8)
    for panel, title in zip(
        panels,
        ("constant, firm", "per type, firm", "p99 per class", "piecewise linear"),
        strict=True,
    ):
        panel.set_title(title, fontsize=8)
        panel.set_xlabel("latency (ms)", fontsize=8)
        panel.tick_params(labelsize=7)
    for panel in (constant, by_type, linear):
        panel.set_ylim(-0.05, 1.1)
    constant.set_ylabel("cost of an answer", fontsize=8)
    handles, labels = by_type.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=4, fontsize="small"
    )
    return figure


def coordinated_omission(
    arrival_s: F64, clocks_s: Mapping[str, F64], window_s: tuple[float, float]
) -> Figure:
    """The same answers by several clocks: about a stall, and what share is slower.

    Each clock has the latencies (n,) of all; the left panel shows those due within
    `window_s`.
    """
    figure, left, right = axes(2, height_in=3.0)
    rows = (arrival_s >= window_s[0]) & (arrival_s < window_s[1])
    for (label, latency_s), style in zip(
        clocks_s.items(), ({"color": "#d55e00"}, {"color": "#0072b2"}), strict=True
    ):
        at_s = arrival_s[rows] - window_s[0]
        left.plot(at_s, 1e3 * latency_s[rows], ".", ms=3, label=label, **style)
        ordered_s = np.sort(latency_s)
        slower = 1 - np.arange(len(ordered_s)) / len(ordered_s)
        right.plot(1e3 * ordered_s, 100 * slower, **style)
    left.legend(fontsize=8, loc="upper right", markerscale=3)
    left.set_xlabel("due at (s)")
    left.set_ylabel("latency (ms)")
    right.set_xscale("log")
    right.set_yscale("log")
    right.yaxis.set_major_formatter("{x:g}")
    right.set_xlabel("latency (ms)")
    right.set_ylabel("share that is slower (%)")
    return figure


def collapse(
    runs: Mapping[float, History], slo_s: float, on_time: Mapping[float, float]
) -> Figure:
    """Latency over time at each load, and the share of answers on time against load.

    `runs` are first come first served, by load; `on_time` are their shares, for more
    loads. Dashed lines are what arithmetic says: a queue that grows by (load - 1), and
    the most that any order could serve.
    """
    figure, left, right = axes(2, height_in=3.2)
    for load, history in runs.items():
        block = max(len(history.arrival_s) // 150, 1)
        n = len(history.arrival_s) // block * block
        at_s, latency_s = (
            np.median(column[:n].reshape(-1, block), axis=1)
            for column in (history.arrival_s, history.latency_s)
        )
        (line,) = left.plot(at_s, 1e3 * latency_s, label=f"{load:g}")
        if load > 1:
            rising_s = (load - 1) * at_s
            left.plot(at_s, 1e3 * rising_s, "--", color=line.get_color(), linewidth=1)
    left.axhline(1e3 * slo_s, color=INK, linewidth=0.8)
    left.set_yscale("log")
    left.set_xlim(0, min(history.arrival_s[-1] for history in runs.values()))
    left.set_ylim(0.1, None)  # room for the legend
    left.set_xlabel("arrival (s)")
    left.set_ylabel("latency (ms)")
    left.legend(title="load", fontsize=7, title_fontsize=7, loc="lower right", ncols=4)
    loads = np.array(list(on_time))
    share = 100 * np.array(list(on_time.values()))
    right.plot(loads, share, ".-", color=COLOURS["fifo"], label="first in, first out")
    most = 100 / np.maximum(loads, 1)
    right.plot(loads, most, "--", color=COLOURS["bound"], label="all capacity, on time")
    right.axvline(1.0, color=GREY, linewidth=0.8)
    right.set_ylim(0, 105)
    right.set_xlabel("load, of FIFO's saturation")
    right.set_ylabel("on time (% of arrivals)")
    right.legend(fontsize=7, loc="center left")
    return figure


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
    "hybrid-no-ghosts": "Hybrid without ghosts",
    "queue-cap": "capped queue",
    "codel": "CoDel",
    "late-edf": "earliest deadline, late-bound",
    "ours": "ours",
    "ours-oracle": "ours, exact estimates",
    "search": "best schedule found",
    "bound": "lower bound",
}
_MARKERS = {"fifo": "o", "drop": "v", "reorder": "s", "hybrid": "D", "ours": "P"}


def _style(policy: str) -> dict:
    """Colour by policy; a mended or better informed one keeps it and is dashed."""
    base = policy
    for suffix in ("-fixed", "-batched", "-oracle"):
        base = base.removesuffix(suffix)
    dashed = "-" if policy == base else "--"
    return {
        "color": COLOURS.get(base, INK),
        "marker": _MARKERS.get(base),
        "markersize": 4,
        "linestyle": ":" if policy == "bound" else dashed,
        "label": _LABELS.get(policy, policy),
    }


DISTANCE = {
    "bound": "nobody avoids",
    "open": "open: bound to best schedule",
    "unforeseen": "future arrivals, and the rule",
    "misjudged": "errors of the estimates",
}
_FATES = {"on time": "#009e73", "late": "#d55e00", "dropped": "#8a8a8a"}


def _fate(history: History, i: int) -> str:
    if history.dropped[i]:
        return "dropped"
    return "late" if history.late[i] else "on time"


def schedules(histories: Mapping[str, History], writes: Sequence[str]) -> Figure:
    """Schedules of one small batch, one beside the other, transactions in log order.

    A thin line leads from the arrival to the start, a bar is the execution and names
    the rows that are written, a tick is the deadline. What is dropped stands below,
    with a cross. From the second panel on, a word marks each transaction that violates
    its objective in one panel only, this or the first.
    """
    figure, drawn = plt.subplots(
        1, len(histories), figsize=(WIDTH_IN, 2.5), sharex=True, layout="constrained",
        squeeze=False,
    )  # fmt: skip
    plt.close(figure)
    first = next(iter(histories.values()))
    for panel, (name, history) in zip(drawn[0], histories.items(), strict=True):
        rows = [*history.log.tolist(), *np.flatnonzero(history.dropped).tolist()]
        for y, i in enumerate(rows):
            fate = _fate(history, i)
            deadline_ms = 1e3 * history.deadline_s[i]
            panel.vlines(deadline_ms, y - 0.42, y + 0.42, color=INK, linewidth=1)
            start_ms = 1e3 * history.decided_s[i]
            if fate == "dropped":
                panel.plot(start_ms, y, marker="x", color=_FATES[fate], zorder=3)
            else:
                start_ms = 1e3 * history.start_s[i]
                works_ms = 1e3 * history.finish_s[i] - start_ms
                panel.barh(y, works_ms, left=start_ms, height=0.7, color=_FATES[fate])
                panel.text(
                    start_ms + works_ms / 2, y, writes[i], ha="center", va="center",
                    fontsize=7, color="white", weight="bold",
                )  # fmt: skip
            arrival_ms = 1e3 * history.arrival_s[i]
            panel.hlines(y, arrival_ms, start_ms, color=GREY, linewidth=0.8)
            if history.violated[i] != first.violated[i]:
                word = "lost" if history.violated[i] else "saved"
                ends_ms = np.fmax(deadline_ms, 1e3 * history.finish_s[i])
                panel.annotate(
                    word, (ends_ms, y), (18, 0), textcoords="offset points",
                    va="center", ha="center", fontsize=7.5, style="italic",
                )  # fmt: skip
        panel.set_title(_LABELS.get(name, name), fontsize=9)
        panel.set_yticks(range(len(rows)), [str(i) for i in rows])
        panel.set_ylim(len(rows) - 0.4, -0.6)
        panel.set_xlabel("time (ms)")
        panel.grid(axis="y", visible=False)
    drawn[0, 0].set_ylabel("transaction, in log order")
    figure.legend(
        handles=[Patch(color=colour, label=fate) for fate, colour in _FATES.items()],
        loc="outside lower center",
        ncols=3,
    )
    return figure


def _band(
    panel: Axes, runs: pd.DataFrame, policy: str, column: str, x: str,
    dashes: str | tuple | None = None,
) -> None:  # fmt: skip
    """The mean over seeds against `x`, with its 95 % bootstrap interval shaded.

    The policy's own style of line, or the one that `dashes` says.
    """
    groups = runs[runs["policy"] == policy].groupby(x)[column]
    made = {at: mean_interval(values.to_numpy()) for at, values in groups}
    at = np.array(list(made), float)
    style = _style(policy)
    if dashes is not None:
        style["linestyle"] = dashes
    panel.plot(at, [m.value for m in made.values()], **style)
    panel.fill_between(
        at,
        [m.low for m in made.values()],
        [m.high for m in made.values()],
        color=style["color"], alpha=0.2, linewidth=0,
    )  # fmt: skip


def _whiskers(value: ArrayLike, low: ArrayLike, high: ArrayLike) -> F64:
    """(2, n) lengths of error bars; none where rounding puts an end past the value."""
    return np.clip([np.subtract(value, low), np.subtract(high, value)], 0, None)


def _legend_below(figure: Figure, panel: Axes) -> None:
    """One legend for all panels, where it can hide no curve."""
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=4, fontsize="small"
    )


def violations_against_load(runs: pd.DataFrame, policies: Sequence[str]) -> Figure:
    """Violations in percent against load: linear beside logarithmic."""
    percent = runs.assign(violations=100 * runs["violations"])
    figure, linear, log = axes(2, height_in=3.9)
    for panel in (linear, log):
        for policy in policies:
            _band(panel, percent, policy, "violations", "load")
        panel.axvline(1.0, color=GREY, linewidth=0.8)
        panel.set_xlabel("load, of FIFO's saturation")
    linear.set_ylabel("violations (% of arrivals)")
    log.set_yscale("symlog", linthresh=0.1)
    log.set_ylim(0, 150)
    _legend_below(figure, linear)
    return figure


def distance_to_optimum(runs: pd.DataFrame, parts: pd.DataFrame) -> Figure:
    """Violations against load from FIFO to the bound, and what those of ours are.

    `runs` and `parts` as `optimum.distances` and `optimum.distance` make them; both in
    percent of the arrivals.
    """
    percent = runs.assign(violations=100 * runs["violations"])
    figure, curves, shares = axes(2, height_in=3.9)
    for policy in ("fifo", "ours", "ours-oracle", "search", "bound"):
        _band(curves, percent, policy, "violations", "load")
    curves.axvline(1.0, color=GREY, linewidth=0.8)
    curves.set_yscale("symlog", linthresh=0.1)
    curves.set_ylim(0, 150)
    curves.set_xlabel("load, of FIFO's saturation")
    curves.set_ylabel("violations (% of arrivals)")
    base, place = np.zeros(len(parts)), np.arange(len(parts))
    for (column, label), color in zip(
        DISTANCE.items(), (INK, "#e69f00", "#56b4e9", "#d55e00"), strict=True
    ):
        height = parts[column].to_numpy().clip(min=0)
        shares.bar(place, height, bottom=base, color=color, label=label, width=0.7)
        base += height
    shares.set_xticks(place, [f"{load:g}" for load in parts.index])
    shares.set_xlabel("load")
    shares.set_ylabel("violations of ours (%)")
    shares.legend(fontsize=7, loc="upper left")
    _legend_below(figure, curves)
    return figure


def rates_by_scenario(
    runs: Mapping[str, pd.DataFrame],
    saturation_per_s: Mapping[str, float],
    policies: Sequence[str],
) -> Figure:
    """All commits above, those on time below, against load: a column a scenario.

    In percent of the saturation of FIFO, which the vertical line marks. The dashed
    diagonal commits everything as it comes.
    """
    figure, drawn = plt.subplots(
        2, len(runs), figsize=(WIDTH_IN, 4.6), sharex=True, sharey=True,
        layout="constrained", squeeze=False,
    )  # fmt: skip
    plt.close(figure)
    for column, (scenario, rows) in enumerate(runs.items()):
        loads = np.array(sorted(rows["load"].unique()))
        for panel, name in zip(drawn[:, column], report.RATES, strict=True):
            percent = rows.assign(
                **{name: 100 * rows[name] / saturation_per_s[scenario]}
            )
            panel.plot(loads, 100 * loads, color=INK, linewidth=0.8, linestyle=":")
            for policy in policies:
                _band(panel, percent, policy, name, "load")
            panel.axvline(1.0, color=GREY, linewidth=0.8)
        drawn[0, column].set_title(scenario, fontsize=9)
        drawn[1, column].set_xlabel("load")
    most = max(
        100 * rows["throughput_per_s"].max() / saturation_per_s[scenario]
        for scenario, rows in runs.items()
    )
    drawn[0, 0].set_ylim(0, max(150, 1.05 * most))
    for panel, title in zip(drawn[:, 0], report.RATES.values(), strict=True):
        panel.set_ylabel(f"commits, {title} (%)")
    _legend_below(figure, drawn[0, 0])
    return figure


def against_sequencing(
    runs: pd.DataFrame,
    saturation_per_s: float,
    policies: Sequence[str],
    measured_us: Mapping[str, float],
) -> Figure:
    """Commits against the work of the sequencer on each transaction: all, and on time.

    In percent of the saturation of FIFO. The dotted curve is what a sequencer lets
    through that does one transaction after the other; vertical lines are costs that
    were `measured_us`, by what they are.
    """
    figure, *panels = axes(2, height_in=3.5, sharey=True)
    for panel, (name, title) in zip(panels, report.RATES.items(), strict=True):
        percent = runs.assign(
            sequencer_us=1e6 * runs["sequencer_s"],
            **{name: 100 * runs[name] / saturation_per_s},
        )
        for policy in policies:
            _band(panel, percent, policy, name, "sequencer_us")
        works_s = runs["sequencer_s"].to_numpy(np.float64)
        at_us = 1e6 * np.geomspace(works_s.min(), works_s.max(), 200)
        through = 1e8 / at_us / saturation_per_s
        panel.plot(at_us, through, ":", color=INK, linewidth=1, label="1 / cost")
        for (label, cost_us), dashes in zip(
            measured_us.items(), ("--", "-."), strict=False
        ):
            panel.axvline(
                cost_us, color=INK, linewidth=0.9, linestyle=dashes, label=label
            )
        panel.set_xscale("log")
        committed = runs["throughput_per_s"].max() / saturation_per_s
        panel.set_ylim(0, max(125, 105 * committed))
        panel.set_xlabel("sequencer, each transaction (µs)")
        panel.set_title(f"commits, {title}", fontsize="medium")
    panels[0].set_ylabel("of FIFO's saturation (%)")
    _legend_below(figure, panels[0])
    return figure


_DASHES = (
    "-", "--", "-.", ":", (0, (8, 2)), (0, (1, 4)), (0, (6, 2, 1, 2, 1, 2)),
    (0, (2, 1)),
)  # fmt: skip


def weak_scaling(
    capacity: pd.DataFrame, loaded: pd.DataFrame, policies: Sequence[str]
) -> Figure:
    """Capacity of FIFO, and violations at one load, against the number of partitions.

    `capacity` is from `scale.capacities`, with what the cores allow as thin lines;
    `loaded` from `scale.weak_scaling`. A style of line for each share that crosses;
    bands are 95 % bootstrap intervals over seeds.
    """
    figure, left, right = axes(2, height_in=3.5)
    shares = sorted(loaded["crossing"].unique())
    require(
        len(shares) <= len(_DASHES),
        f"{len(shares)} shares that cross: expected at most {len(_DASHES)}, each with "
        "its style of line",
    )
    styles = dict(zip(shares, _DASHES, strict=False))
    for crossing, dashes in styles.items():
        label = f"{100 * crossing:g} % cross"
        left.plot(
            capacity.index, capacity[crossing, "fifo"], color=COLOURS["fifo"],
            linestyle=dashes, marker=_MARKERS["fifo"], markersize=3, label=label,
        )  # fmt: skip
        left.plot(
            capacity.index, capacity[crossing, "cores"], color=INK, linestyle=dashes,
            linewidth=0.8,
        )  # fmt: skip
        percent = loaded[loaded["crossing"] == crossing]
        percent = percent.assign(violations=100 * percent["violations"])
        for policy in policies:
            _band(right, percent, policy, "violations", "partitions", dashes)
    for panel in (left, right):
        panel.set_xscale("log", base=2)
        panel.set_xticks(capacity.index, [f"{count}" for count in capacity.index])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xlabel("partitions")
    left.set_ylim(0, max(110, 1.05 * capacity.to_numpy().max()))
    left.set_ylabel("capacity of FIFO (% of one, each)")
    left.legend(fontsize="small", loc="lower left")
    right.set_yscale("symlog", linthresh=1)
    right.set_ylim(0, 150)
    right.set_yticks([0, 1, 10, 100], ["0", "1", "10", "100"])
    right.set_ylabel("violations (% of arrivals)")
    right.legend(
        handles=[
            Line2D([], [], color=COLOURS[policy], label=_LABELS[policy])
            for policy in policies
        ],
        fontsize="small",
        loc="lower left",
    )
    return figure


def one_sequencer(busy: pd.DataFrame, policies: Sequence[str], load: float) -> Figure:
    """Cost of a decision against arrivals a second, if one sequencer decides for all.

    `busy` is from `scale.one_sequencer`. The dotted line is the time between two
    arrivals: above it one sequencer cannot keep up.
    """
    figure, panel = axes(height_in=3.2)
    for policy in policies:
        rows = busy.xs((policy, load)).sort_index()
        panel.plot(rows["rate_per_s"], rows["decide_us"], **_style(policy))
        for cores, row in rows.iterrows():
            if policy == "ours":
                panel.annotate(
                    f"{cores}", (row["rate_per_s"], row["decide_us"]), (0, 6),
                    textcoords="offset points", ha="center", fontsize=7,
                )  # fmt: skip
    rates = np.sort(busy["rate_per_s"].to_numpy(np.float64))
    panel.plot(rates, 1e6 / rates, ":", color=INK, label="time between two arrivals")
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("arrivals a second (cores that they need)")
    panel.set_ylabel("decision, each transaction (µs)")
    panel.legend(fontsize="small")
    return figure


def reductions(
    runs: Mapping[str, pd.DataFrame], policies: Sequence[str], published: float
) -> Figure:
    """Reduction of violations against FIFO by load, in percent: a panel a scenario.

    The dashed line is the `published` reduction. The axis ends at -100 %: what lies
    below is off the picture.
    """
    figure, *panels = axes(len(runs), 2.9, sharey=True)
    for panel, (scenario, rows) in zip(panels, runs.items(), strict=True):
        loads = sorted(rows["load"].unique())
        for policy in policies:
            ends = [report.reduction(rows, policy, load) for load in loads]
            style = _style(policy)
            panel.plot(loads, [100 * e.value for e in ends], **style)
            panel.fill_between(
                loads, [100 * e.low for e in ends], [100 * e.high for e in ends],
                color=style["color"], alpha=0.2, linewidth=0,
            )  # fmt: skip
        panel.axhline(0, color=INK, linewidth=0.8)
        panel.axhline(published, color=INK, linewidth=0.8, linestyle="--")
        panel.set_title(scenario, fontsize=9)
        panel.set_xlabel("load")
    panels[0].set_ylim(-100, 100)
    panels[0].set_ylabel("fewer violations than FIFO (%)")
    _legend_below(figure, panels[0])
    return figure


DEFECTS = {
    "ghosts": "ghost predecessors",
    "no_feedback": "no feedback",
    "stale": "stale estimates",
    "no_cpu": "no CPU term",
    "no_timer": "no flush timer",
    "band": "band, not slack",
    "allowance": "drops late",
    "cut_tail": "tail labels cut",
}


def ablation(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """What each defect of a policy changes, from `report.ablation`: a panel a table.

    In points of the strict count, with 95 % intervals: each defect mended alone in the
    policy as described, and put back alone into the policy without any.
    """
    figure, *panels = axes(len(tables), 3.3, sharey=True)
    ends = {"described": ("mended alone", "#009e73"), "fixed": ("put back", "#d55e00")}
    for panel, (title, rows) in zip(panels, tables.items(), strict=True):
        for shift, (start, (label, colour)) in zip(
            (-0.15, 0.15), ends.items(), strict=True
        ):
            part = rows[(rows["from"] == start) & (rows["defect"] != "")]
            change = part["strict_change"]
            panel.errorbar(
                change, np.arange(len(part)) + shift,
                xerr=_whiskers(change, part["strict_low"], part["strict_high"]),
                fmt="o", color=colour, markersize=4, linewidth=1.2, label=label,
            )  # fmt: skip
        panel.axvline(0, color=INK, linewidth=0.8)
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("violations (points)")
    names = [d for d in tables[next(iter(tables))]["defect"].unique() if d]
    panels[0].set_yticks(range(len(names)), [DEFECTS[name] for name in names])
    panels[0].invert_yaxis()
    _legend_below(figure, panels[0])
    return figure


def goals(table: pd.DataFrame) -> Figure:
    """What is left of FIFO's violations beside the goal, from `goals.against_goals`.

    A panel a row of the goals; a bar through each goal says what was to be reached.
    """
    rows = list(dict.fromkeys(table.index.get_level_values("row")))
    figure, *panels = axes(len(rows), 2.9, sharey=True)
    for panel, row in zip(panels, rows, strict=True):
        at = table.loc[row]
        places = np.arange(len(at))
        left, goal = 100 - at["reduction"], 100 - at["goal"]
        panel.errorbar(
            places, left, yerr=_whiskers(left, 100 - at["high"], 100 - at["low"]),
            fmt=_MARKERS["ours"], color=COLOURS["ours"], markersize=6, label="ours",
        )  # fmt: skip
        panel.hlines(
            goal, places - 0.35, places + 0.35, color=COLOURS["drop"], label="goal"
        )
        panel.set_yscale("symlog", linthresh=0.1)
        panel.set_xticks(places, [f"{load:g}" for load in at.index])
        panel.set_xlabel("load")
        panel.set_title(f"scenario {row}", fontsize=9)
    panels[0].set_ylabel("violations left of FIFO's (%)")
    _legend_below(figure, panels[0])
    return figure


def ingredients(table: pd.DataFrame) -> Figure:
    """Violations without an ingredient, from `goals.ingredients`: a panel a column."""
    figure, *panels = axes(table.shape[1], 3.6, sharey=True)
    places = np.arange(len(table))
    for panel, column in zip(panels, list(table.columns), strict=True):
        shares, (place, load) = table[column].to_numpy(np.float64), column
        whole = shares[list(table.index).index("ours")]
        colours = [
            COLOURS["ours"]
            if name == "ours"
            else COLOURS["drop"]
            if name.startswith(("without", "one", "never"))
            else GREY
            for name in table.index
        ]
        panel.barh(places, shares, color=colours)
        panel.axvline(whole, color=INK, linewidth=0.8)
        panel.bar_label(panel.containers[0], fmt="%.1f", fontsize=6, padding=2)
        panel.set_xscale("symlog", linthresh=1.0)
        panel.set_xlim(0, 8 * max(shares.max(), 1.0))
        panel.set_title(f"{place}, load {load:g}", fontsize=8)
        panel.set_xlabel("violations (%)", fontsize=8)
        panel.tick_params(labelsize=7)
    panels[0].set_yticks(places, list(table.index), fontsize=7)
    panels[0].invert_yaxis()
    return figure


def price_of_fairness(table: pd.DataFrame, kinds: Sequence[str]) -> Figure:
    """What a bound on the gap costs, from `goals.price_of_fairness`.

    Left: violations of each of `kinds` and of all; right: goodput with its interval.
    """
    figure, left, right = axes(2, 3.0)
    places = np.arange(len(table))
    for kind in kinds:
        left.plot(places, table[kind], "o-", markersize=4, label=kind.replace("_", " "))
    left.plot(places, table["violations"], "P-", color=INK, label="all")
    left.set_ylabel("violations (%)")
    left.legend(fontsize=7)
    right.plot(places, table["goodput"], "P-", color=COLOURS["ours"])
    right.fill_between(
        places, table["low"], table["high"], color=COLOURS["ours"], alpha=0.25
    )
    right.set_ylabel("on time, % of FIFO's saturation")
    labels = ["none" if np.isinf(gap) else f"{gap:g}" for gap in table["gap"]]
    for panel in (left, right):
        panel.set_xticks(places, labels)
        panel.set_xlabel("gap allowed between types (points)")
    return figure


def beyond_fifo(table: pd.DataFrame) -> Figure:
    """Violations in percent under each misestimation, a panel a load; FIFO is a bar.

    `table` is from `robustness.beyond_fifo`.
    """
    loads = list(dict.fromkeys(table["load"]))
    names = list(dict.fromkeys(table["misestimation"]))
    height_in = 1.2 + 0.27 * len(names)
    figure, *panels = axes(len(loads), height_in=height_in, sharey=True)
    for panel, load in zip(panels, loads, strict=True):
        at = table[table["load"] == load]
        fifo = at.groupby("misestimation", sort=False)["fifo"].first()
        panel.scatter(
            fifo, range(len(names)), marker="|", s=130, color=GREY,
            label=_style("fifo")["label"],
        )  # fmt: skip
        for policy in dict.fromkeys(at["policy"]):
            style = _style(policy)
            panel.scatter(
                at[at["policy"] == policy]["percent"], range(len(names)), s=22,
                color=style["color"], label=style["label"],
            )  # fmt: skip
        panel.set_xscale("symlog", linthresh=0.1)
        panel.set_xlim(-0.02, 150)
        panel.set_xticks([0, 0.1, 1, 10, 100], ["0", "", "1", "", "100"])
        panel.set_xlabel("violations (%)")
        panel.set_title(f"load {load:g}")
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    _legend_below(figure, panels[0])
    return figure


def through_a_crowd(shares: pd.DataFrame, last_s: float) -> Figure:
    """Violations over time, and again around the end of a crowd of `last_s`.

    `shares` is from `robustness.through_a_crowd`; the crowd is shaded.
    """
    figure, whole, end = axes(2, height_in=3.6)
    at_ms, percent = 1e3 * shares.index.to_numpy(), 100 * shares
    for panel in (whole, end):
        for policy in shares:
            panel.step(
                at_ms, percent[policy], where="post",
                **_style(str(policy)) | {"marker": None, "linewidth": 1.2},
            )  # fmt: skip
        panel.axvspan(-1e3 * last_s, 0, color=GREY, alpha=0.15, linewidth=0)
        panel.set_xlabel("arrival, from the end of the crowd (ms)")
    end.set_xlim(-20, min(100, at_ms[-1]))
    end.set_yscale("symlog", linthresh=1)
    end.set_ylim(0, 150)
    whole.set_ylabel("violations (% of the arrivals of a window)")
    _legend_below(figure, whole)
    return figure


def beside_measured(table: pd.DataFrame, model: str = "simulated") -> Figure:
    """Violations of every live run's place, modelled against measured, by engine.

    `table` is `report.beside_measured`'s, whose intervals of the error are the bars.
    Mended policies have open markers; shaded is what counts as near, and paler are the
    runs with more than one worker.
    """
    engines = table.index.unique("engine")
    figure, *panels = axes(len(engines), height_in=3.9, sharey=True)
    truth = np.linspace(0, 100, 201)
    width = 100 * np.maximum(report.POINT, report.RELATIVE * truth / 100)
    for panel, engine in zip(panels, engines, strict=True):
        panel.fill_between(truth, truth - width, truth + width, color="#e9e9e9")
        panel.plot(truth, truth, color=GREY, linewidth=0.8)
        places = table.loc[engine].groupby(["policy", "workers"], sort=False)
        for (policy, workers), rows in places:
            style = _style(policy)
            around = _whiskers(rows["error"], rows["low"], rows["high"])
            panel.errorbar(
                rows["measured"],
                rows[model],
                yerr=around,
                linestyle="none",
                elinewidth=0.6,
                marker=style["marker"],
                color=style["color"],
                markerfacecolor="none" if "-fixed" in policy else style["color"],
                markersize=5,
                alpha=1 if workers == 1 else 0.4,
                label=style["label"] if workers == 1 else None,
            )
        panel.set(title={"sqlite": "SQLite", "postgresql": "PostgreSQL"}[engine])
        panel.set(xlim=(-3, 103), ylim=(-3, 103), aspect="equal")
        panel.set_xlabel("measured (% of arrivals)")
    panels[0].set_ylabel("simulated (% of arrivals)")
    _legend_below(figure, panels[0])
    return figure


# --- Part II: memory and time ------------------------------------------------


def memory_parts(
    parts_bytes: Mapping[str, int], model_bytes: int, limit_bytes: int
) -> Figure:
    """A plan's parts beside the whole model, and the limit that they must not cross.

    Where the limit is a small share of the model, the plan has an axis of its own,
    and the shaded cone says which part of the upper one it shows.
    """
    unit, name = (GiB, "GiB") if limit_bytes >= GiB else (MiB, "MiB")
    zooms = model_bytes > 4 * limit_bytes
    figure, drawn = plt.subplots(
        1 + zooms,
        1,
        figsize=(WIDTH_IN, 3.0 if zooms else 2.2),
        layout="constrained",
    )
    plt.close(figure)
    whole, plan = drawn if zooms else (drawn, drawn)
    whole.barh("resident model", model_bytes / unit, color=GREY)
    left = 0.0
    for part, n_bytes in parts_bytes.items():
        plan.barh("streamed plan", n_bytes / unit, left=left, label=part)
        left += n_bytes / unit
    plan.axvline(
        limit_bytes / unit, color=INK, linestyle="--",
        label=f"budget, {limit_bytes / unit:g} {name}",
    )  # fmt: skip
    plan.grid(axis="y", visible=False)
    if zooms:
        whole.axvline(limit_bytes / unit, color=INK, linestyle="--")
        whole.grid(axis="y", visible=False)
        plan.set_xlim(0, 1.12 * limit_bytes / unit)
        for end in plan.get_xlim():
            cone = ConnectionPatch(
                (end, 0), (end, 1), whole.get_xaxis_transform(),
                plan.get_xaxis_transform(), axesA=whole, axesB=plan, color=GREY,
                linewidth=0.8,
            )  # fmt: skip
            figure.add_artist(cone)
    else:
        plan.invert_yaxis()
    plan.set_xlabel(f"device memory ({name})")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


# A state or a tool keeps its colour on every page.
RING_COLOURS = ("#0072b2", "#d55e00", "#009e73")  # of the passes, in turn
SPAN_COLOURS = {
    "read": "#0072b2",
    "copy": "#e69f00",
    "compute": "#009e73",
    "wait": "#d55e00",
}
PEER_COLOURS = {
    "ours": COLOURS["ours"],
    "accelerate": "#d55e00",
    "AirLLM": "#cc79a7",
    "mmap": "#0072b2",
}
PEER_MARKERS = {"ours": "o", "accelerate": "s", "AirLLM": "^", "mmap": "D"}


def ring_picture(visits: Sequence[Any], until_s: float | None = None) -> Figure:
    """Which layer each buffer of the ring receives, holds and computes, over time.

    `visits` are those of `memory.schedule`: `step`, `layer`, `buffer` (negative for a
    resident layer), `receives_s`, `ready_s`, `starts_s` and `ends_s`. A row is a
    buffer, a colour a pass; numbers are layers, counted from one.
    """
    buffers = 1 + max(visit.buffer for visit in visits)
    resident = any(visit.buffer < 0 for visit in visits)
    rows = buffers + resident
    figure, drawn = axes(height_in=1.4 + 0.42 * rows)
    end_s = max(visit.ends_s for visit in visits) if until_s is None else until_s
    for visit in visits:
        row = visit.buffer if visit.buffer >= 0 else buffers
        colour = RING_COLOURS[visit.step % len(RING_COLOURS)]
        for start, stop, height, style in (
            (visit.receives_s, visit.ready_s, 0.72, {"alpha": 0.3}),
            (visit.ready_s, visit.starts_s, 0.14, {"alpha": 0.6}),
            (visit.starts_s, visit.ends_s, 0.72, {}),
        ):
            moves = visit.buffer >= 0 or not style  # a resident layer only computes
            if moves and start < min(stop, end_s):
                drawn.barh(
                    row, stop - start, height, start, color=colour, linewidth=0, **style
                )
        # the number stands where a layer arrives, or where one that stays computes
        moves = visit.buffer >= 0
        ends = (
            (visit.receives_s, visit.ready_s)
            if moves
            else (visit.starts_s, visit.ends_s)
        )
        if sum(ends) / 2 < end_s:
            drawn.text(
                sum(ends) / 2, row, str(visit.layer + 1), ha="center", va="center",
                fontsize=7, color=INK if moves else "white",
            )  # fmt: skip
    for step in sorted({visit.step for visit in visits}):
        done_s = max(visit.ends_s for visit in visits if visit.step == step)
        if done_s < end_s:
            drawn.axvline(done_s, color=INK, linestyle=":", linewidth=1)
    names = [f"buffer {number}" for number in range(buffers)]
    drawn.set_yticks(range(rows), names + ["resident"] * resident)
    drawn.set_ylim(rows - 0.5, -0.5)
    drawn.set_xlim(0, end_s)
    drawn.set_xlabel("time (s)")
    drawn.grid(axis="y", visible=False)
    figure.legend(
        handles=[
            Patch(color=INK, alpha=0.3, label="receives"),
            Line2D([], [], color=INK, alpha=0.6, linewidth=3, label="holds"),
            Patch(color=INK, label="computes"),
            *(
                Patch(color=RING_COLOURS[step], label=f"pass {step + 1}")
                for step in range(min(visits[-1].step + 1, len(RING_COLOURS)))
            ),
        ],
        loc="outside lower center",
        ncols=6,
        fontsize=8,
    )
    return figure


def token_timeline(spans: Sequence[Any]) -> Figure:
    """What happened when during one step, a row for each kind of span.

    `spans` have `kind` (read, copy, compute or wait), `layer`, `start_s` and `end_s`;
    time is counted from the first of them. Reads that overlap lie above each other.
    """
    kinds = [kind for kind in SPAN_COLOURS if any(s.kind == kind for s in spans)]
    figure, drawn = axes(height_in=0.9 + 0.5 * len(kinds))
    zero_s = min(span.start_s for span in spans)
    for row, kind in enumerate(kinds):
        mine = sorted((s for s in spans if s.kind == kind), key=lambda s: s.start_s)
        lanes: list[float] = []  # the end of the last span in each
        placed = []
        for span in mine:
            lane = next(
                (i for i, end in enumerate(lanes) if end <= span.start_s), len(lanes)
            )
            lanes[lane : lane + 1] = [span.end_s]
            placed.append((lane, span))
        height = 0.8 / max(1, len(lanes))
        for lane, span in placed:
            drawn.barh(
                row - 0.4 + (lane + 0.5) * height,
                1e3 * (span.end_s - span.start_s),
                0.9 * height,
                1e3 * (span.start_s - zero_s),
                color=SPAN_COLOURS[kind],
                alpha=0.55 + 0.4 * (span.layer % 2),  # neighbours are told apart
                linewidth=0,
            )
    drawn.set_yticks(range(len(kinds)), kinds)
    drawn.set_ylim(len(kinds) - 0.5, -0.5)
    drawn.set_xlim(0, 1e3 * (max(span.end_s for span in spans) - zero_s))
    drawn.set_xlabel("time (ms)")
    drawn.grid(axis="y", visible=False)
    return figure


def _not_measured() -> Figure:
    """The place of a figure whose record nobody has made yet."""
    figure, drawn = axes(height_in=1.0)
    drawn.set_axis_off()
    drawn.text(0.5, 0.5, "not measured yet", ha="center", va="center", color=GREY)
    return figure


def memory_against_time(runs: pd.DataFrame, limit_bytes: float) -> Figure:
    """Peak memory against seconds a token, a point for each system; both are logs.

    `runs` has a row for each system with `peak_bytes`, `s_per_token`, `low_s` and
    `high_s`; what lies right of the dashed line did not keep the budget. A system
    without a time, which was killed at its limit, is left out.
    """
    runs = runs.dropna(subset=["s_per_token"])
    if runs.empty:
        return _not_measured()
    figure, drawn = axes(height_in=3.2)
    for name, row in runs.iterrows():
        tool = next((tool for tool in PEER_COLOURS if tool in str(name)), None)
        colour = PEER_COLOURS.get(tool or "", GREY)
        drawn.errorbar(
            row.peak_bytes / GiB,
            row.s_per_token,
            yerr=[[row.s_per_token - row.low_s], [row.high_s - row.s_per_token]],
            fmt=PEER_MARKERS.get(tool or "", "v"),
            color=colour,
            capsize=3,
        )
        drawn.annotate(
            str(name), (row.peak_bytes / GiB, row.s_per_token), (0, 0),
            textcoords="offset points", ha="center", va="center", color=colour,
            fontsize=8, bbox={"fc": "white", "ec": "none", "pad": 0.5, "alpha": 0.8},
        )  # fmt: skip
    drawn.set(xscale="log", yscale="log")
    low = runs["peak_bytes"].min() / GiB
    high = max(limit_bytes, runs["peak_bytes"].max()) / GiB
    drawn.set_xlim(low / 1.7, 1.25 * high)
    drawn.set_ylim(runs["low_s"].min() / 1.5, runs["high_s"].max() * 1.5)
    drawn.axvline(
        limit_bytes / GiB, color=INK, linestyle="--",
        label=f"budget, {limit_bytes / GiB:g} GiB",
    )  # fmt: skip
    _round_ticks(drawn)
    drawn.set_xlabel("peak memory (GiB)")
    drawn.set_ylabel("time per token (s)")
    drawn.legend(loc="upper left")
    figure.draw_without_rendering()  # where a label has room shows in the final layout
    _move_apart(drawn)
    return figure


def _round_ticks(drawn: Axes) -> None:
    """On logarithmic axes: ticks at one, two and five, as plain numbers."""
    for axis in (drawn.xaxis, drawn.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())


def predicted_times(plans: pd.DataFrame) -> Figure:
    """Predicted seconds of a step against measured ones, a point for each plan.

    `plans` has `predicted_s`, `measured_s` and `limit`; the band is 12 % to each side.
    """
    if plans.empty:
        return _not_measured()
    figure, drawn = axes(height_in=3.2)
    low = 0.8 * plans[["predicted_s", "measured_s"]].min().min()
    high = 1.25 * plans[["predicted_s", "measured_s"]].max().max()
    ends = np.array([low, high])
    drawn.fill_between(ends, 0.88 * ends, 1.12 * ends, color=GREY, alpha=0.2)
    drawn.plot(ends, ends, color=INK, linewidth=0.8)
    for (limit, rows), marker, colour in zip(
        plans.groupby("limit"), "os", ("C0", "C1"), strict=False
    ):
        drawn.plot(
            rows.measured_s, rows.predicted_s, marker, color=colour, markersize=5,
            label=f"bound by {limit}", alpha=0.8,
        )  # fmt: skip
    drawn.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    _round_ticks(drawn)
    drawn.set_xlabel("measured time of a step (s)")
    drawn.set_ylabel("predicted (s)")
    drawn.legend(loc="upper left")
    return figure


def expected_tokens(
    depths: Sequence[int], curves: Mapping[str, Sequence[float]]
) -> Figure:
    """Expected tokens of a pass against its proposals, a named curve an acceptance."""
    figure, drawn = axes(height_in=2.8)
    for name, tokens in curves.items():
        drawn.plot(depths, tokens, marker="o", markersize=3, label=name)
    drawn.set_xlabel("proposals of a pass")
    drawn.set_ylabel("expected tokens of a pass")
    drawn.legend(loc="upper left")
    return figure


def speculation(table: pd.DataFrame) -> Figure:
    """Tokens a pass and speed over plain decoding, a row for each way to propose.

    `table` is that of `memory.records.speculation`; bars are its intervals, and the
    dashed line is plain decoding.
    """
    if table.empty:
        return _not_measured()
    figure, left, right = axes(columns=2, height_in=0.9 + 0.4 * len(table))
    rows = np.arange(len(table))[::-1]
    for drawn, value, low, high, label in (
        (left, "tokens_per_pass", "low", "high", "tokens a pass"),
        (right, "times_faster", "times_low", "times_high", "times plain decoding"),
    ):
        middle = table[value]
        drawn.errorbar(
            middle, rows, xerr=[middle - table[low], table[high] - middle],
            fmt="o", color="C0", capsize=3,
        )  # fmt: skip
        drawn.axvline(1, color=INK, linestyle="--", linewidth=0.8)
        drawn.set_xlabel(label)
        drawn.set_ylim(-0.6, len(table) - 0.4)
        drawn.set_yticks(rows, list(table.index) if drawn is left else [""] * len(rows))
    return figure


def memory_over_time(runs: Mapping[str, F64], limit_bytes: float) -> Figure:
    """What the kernel counts of each system's process from its start, and its limit.

    `runs` are samples (n, 3) by system: seconds, bytes held with the page cache, and
    bytes held without it, which are dotted.
    """
    if not runs:
        return _not_measured()
    figure, *panels = axes(len(runs), height_in=2.6, sharey=True)
    panels = panels if len(runs) > 1 else [panels[0]]
    for panel, (name, samples) in zip(panels, runs.items(), strict=True):
        tool = next((tool for tool in PEER_COLOURS if tool in name), None)
        colour = PEER_COLOURS.get(tool or "", GREY)
        seconds, held, private = samples.T
        panel.plot(seconds, held / GiB, color=colour, linewidth=1.2)
        panel.plot(seconds, private / GiB, ":", color=colour, linewidth=1.2)
        panel.axhline(limit_bytes / GiB, color=INK, linestyle="--", linewidth=1)
        panel.set_title(name, fontsize=8)
        panel.set_xlabel("time (s)", fontsize=8)
        panel.tick_params(labelsize=7)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("memory (GiB)", fontsize=8)
    figure.legend(
        handles=[
            Line2D([], [], color=INK, label="all that is counted"),
            Line2D([], [], color=INK, linestyle=":", label="without page cache"),
            Line2D([], [], color=INK, linestyle="--", label="limit"),
        ],
        loc="outside lower center",
        ncols=3,
        fontsize=8,
    )
    return figure


def roofline_stream(
    tokens: Sequence[float],
    measured_s: Mapping[str, Sequence[float]],
    io_s: float,
    weights_s: float,
    token_s: float,
    predicted: tuple[float, float, float],
    found: float | None,
) -> Figure:
    """Time of a pass against its tokens: the floor of reading and the line of compute.

    `io_s` is the drain, `weights_s` one pass over weights in memory and `token_s` the
    products of one token more; `predicted` is where they cross, with the ends of its
    interval, and `found` where the measured ones do, None if nowhere. Both axes are
    logarithmic; the measured points (n,), by what they are, belong to `tokens` (n,).
    """
    figure, drawn = axes()
    at, low, high = predicted
    crossing = at if at > 0 else tokens[0]
    span = np.geomspace(min(*tokens, crossing) / 1.5, max(*tokens, crossing) * 1.5, 200)
    compute_s = weights_s + token_s * span
    reads, computes = SPAN_COLOURS["read"], SPAN_COLOURS["compute"]
    drawn.axhline(io_s, color=reads, linestyle="--", linewidth=1)
    drawn.plot(span, compute_s, color=computes, linestyle="--", linewidth=1)
    drawn.plot(span, np.maximum(io_s, compute_s), color=INK, label="predicted")
    for (name, seconds), marker, face in zip(
        measured_s.items(), "os", (COLOURS["ours"], "white"), strict=False
    ):
        drawn.plot(
            tokens, seconds, marker, color=COLOURS["ours"], markerfacecolor=face,
            label=name,
        )  # fmt: skip
    if at > 0:
        drawn.axvspan(low, high, color=GREY, alpha=0.25, linewidth=0)
        drawn.axvline(at, color=GREY, linewidth=1, label="crossover, predicted")
    if found is not None:
        drawn.axvline(found, color=INK, linestyle=":", label="crossover, measured")
    for name, end, offset, side, colour in (
        ("reading", (span[-1], io_s), (-4, -10), "right", reads),
        ("computing", (span[0], compute_s[0]), (4, 3), "left", computes),
    ):
        drawn.annotate(
            name, end, offset, textcoords="offset points", ha=side, fontsize=8,
            color=colour,
        )  # fmt: skip
    drawn.set(xscale="log", yscale="log", xlim=(span[0], span[-1]))
    drawn.set_xticks(tokens, [f"{count:g}" for count in tokens])
    drawn.xaxis.set_minor_locator(NullLocator())
    drawn.yaxis.set_major_formatter("{x:g}")
    drawn.yaxis.set_minor_formatter("{x:g}")
    drawn.tick_params(axis="y", which="both", labelsize=7)
    drawn.set_xlabel("new tokens in a pass, all sequences together")
    drawn.set_ylabel("time of a pass (s)")
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    return figure


COPY_LOOKS = {  # how host memory crosses the link: colour and marker
    "pinned": (COLOURS["ours"], "o"),
    "unknown": (GREY, "D"),
    "pageable": (COLOURS["drop"], "s"),
}


def published_times(table: pd.DataFrame, tolerance: float) -> Figure:
    """Predicted against published time, a point a row, with the band of the goal.

    `table` has columns published_s, predicted_s and copy, one of COPY_LOOKS. Below the
    diagonal a system took longer than its link would have.
    """
    figure, drawn = axes(height_in=3.8)
    times = table[["published_s", "predicted_s"]].to_numpy()
    line = np.array([0.6 * times.min(), 1.7 * times.max()])
    drawn.fill_between(
        line, line * (1 - tolerance), line * (1 + tolerance), color=GREY, alpha=0.25,
        linewidth=0, label=f"within {100 * tolerance:.0f} %",
    )  # fmt: skip
    drawn.plot(line, line, color=INK, linewidth=0.8)
    for copy, (colour, marker) in COPY_LOOKS.items():
        rows = table[table["copy"] == copy]
        drawn.plot(
            rows["published_s"], rows["predicted_s"], marker, color=colour, alpha=0.8,
            label=f"copy {copy}",
        )  # fmt: skip
    drawn.set(xscale="log", yscale="log", xlim=line, ylim=line)
    for axis in (drawn.xaxis, drawn.yaxis):
        axis.set_major_formatter("{x:g}")
    drawn.set_xlabel("published: seconds of a step, or of a whole run")
    drawn.set_ylabel("predicted (s)")
    drawn.legend(loc="upper left")
    return figure


def time_against_memory(
    device_bytes: Sequence[float],
    step_s: Mapping[str, Sequence[float]],
    least_bytes: float,
    model_bytes: float,
) -> Figure:
    """Predicted seconds a token as the device grows, one line for each label."""
    figure, drawn = axes()
    for name, seconds in step_s.items():
        gibibytes = [n_bytes / GiB for n_bytes in device_bytes]
        drawn.plot(gibibytes, seconds, drawstyle="steps-post", label=name)
    drawn.axvspan(0, least_bytes / GiB, color=GREY, alpha=0.25, label="refused")
    drawn.axvline(model_bytes / GiB, color=INK, linestyle=":", label="weights")
    drawn.set_xlim(0, max(device_bytes) / GiB)
    drawn.set_ylim(bottom=0)
    drawn.set_xlabel("device memory (GiB)")
    drawn.set_ylabel("predicted time per token (s)")
    drawn.legend()
    return figure


def step_times(seconds: Mapping[str, Sequence[float]]) -> Figure:
    """Every sample of each kind of step as a dot, the median as a bar."""
    figure, drawn = axes(height_in=2.4)
    for row, (name, samples) in enumerate(seconds.items()):
        milliseconds = 1e3 * np.asarray(samples)
        drawn.plot(
            milliseconds, np.full(len(milliseconds), row), "o", alpha=0.5, label=name
        )
        drawn.plot([np.median(milliseconds)], [row], "|", color=INK, markersize=22)
    drawn.set_yticks(range(len(seconds)), list(seconds))
    drawn.set_ylim(len(seconds) - 0.5, -0.5)
    drawn.set_xlim(left=0)
    drawn.set_xlabel("time of one decoding step (ms)")
    drawn.grid(axis="y", visible=False)
    return figure


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
    if np.size(ratios) == 0:
        return _not_measured()
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
    if table.empty:
        return _not_measured()
    texts = list(dict.fromkeys(table.text))
    figure, grid = plt.subplots(
        1, len(texts), figsize=(WIDTH_IN, 3.6), layout="constrained", squeeze=False,
        sharey=True,
    )  # fmt: skip
    plt.close(figure)
    for drawn, text in zip(grid[0], texts, strict=True):
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
    first = grid[0, 0]
    least, most = np.log(table.low.min()) / 1.2, 1.2 * np.log(table.high.max())
    first.set_ylim(least, most)
    ticks = [times for times in TIMES if least < np.log(times) < most]
    first.set_yticks(np.log(ticks), [f"{times:,}" for times in ticks])
    first.yaxis.set_minor_locator(NullLocator())
    first.set_ylabel("times the perplexity of the dense model", fontsize=8)
    handles, names = first.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=7)
    return figure


def quantisation_levels(blocks: ArrayLike, books: Mapping[str, ArrayLike]) -> Figure:
    """A histogram of weights over their block's largest, above rows of levels."""
    figure, (top, bottom) = plt.subplots(
        2,
        1,
        figsize=(WIDTH_IN, 3.4),
        sharex=True,
        height_ratios=[2, 1],
        layout="constrained",
    )
    plt.close(figure)
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
    if table.empty:
        return _not_measured()
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
    if table.empty:
        return _not_measured()
    texts = list(dict.fromkeys(table.text))
    places = [(text, "bytes", 1e6, "front") for text in texts]
    if table.token_s.notna().any():
        places.append((texts[0], "token_s", 1e-3, "time_front"))
    figure, grid = plt.subplots(
        len(places), 1, figsize=(WIDTH_IN, 0.6 + 2.7 * len(places)),
        layout="constrained", squeeze=False,
    )  # fmt: skip
    plt.close(figure)
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


def _short(name: str) -> str:
    """The name of a way without what the colour says of it."""
    for word in ("GPTQ ", "low rank ", "nearest "):
        name = name.removeprefix(word)
    return name.replace(" + rank ", "+")


def decode_times(samples_s: Mapping[str, ArrayLike]) -> Figure:
    """Milliseconds of one decoding step per method: every sample, and the median."""
    figure, axis = axes(height_in=0.9 + 0.4 * len(samples_s))
    for row, (name, seconds) in enumerate(samples_s.items()):
        times_ms = 1000 * np.asarray(seconds, float)
        axis.plot(times_ms, np.full(len(times_ms), -row), "|", color=GREY)
        axis.plot(np.median(times_ms), -row, "o", label=name)
    axis.set_yticks([-row for row in range(len(samples_s))], list(samples_s))
    axis.set(xlabel="milliseconds per token", ylim=(-len(samples_s) + 0.4, 0.6))
    axis.set_xlim(left=0)
    axis.grid(axis="y", visible=False)
    return figure


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

    `bars` are those of `sensitivity.tornado`, `base` the cost with every input at its
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


# --- Runs beside each other --------------------------------------------------


def against_reference(times: pd.DataFrame) -> Figure:
    """Each time over that of the reference, in the band where it was to be expected.

    Columns: says, ratio, low, high (NaN without an interval), expected_low and
    expected_high (NaN where no band is known), good. A claim's name stands above its
    line, so that the figure stays readable on a small screen.
    """
    figure, ax = axes(height_in=0.7 + 0.5 * len(times))
    figure.set_figwidth(5.2)
    colours = {True: COLOURS["ours"], False: COLOURS["drop"]}
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
