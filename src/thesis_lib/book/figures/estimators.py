"""Figures of collected traces and of the estimators."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from thesis_lib.book.figures.style import GREY, INK, _legend_below, axes
from thesis_lib.sequencer.core.trace import F64, Trace
from thesis_lib.sequencer.experiments import metrics

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
    _legend_below(figure, left, ncols=3, fontsize=7)
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
    constant.plot(1e3 * at_s, metrics.step_cost(at_s, slo_s), color=INK)
    linear.plot(1e3 * at_s, metrics.linear_cost(at_s, slo_s, worthless_s), color=INK)
    for k, kind in enumerate(trace.kinds):
        label = kind.replace("_", " ")
        by_type.plot(1e3 * at_s, metrics.step_cost(at_s, type_slo_s[k]), label=label)
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
    _legend_below(figure, by_type)
    return figure
