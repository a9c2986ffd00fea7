"""Figures of collected traces, of the estimators, and of agreements on latency."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from thesis_book.figures import style
from thesis_lib.sequencer.core.trace import F64, Trace
from thesis_lib.sequencer.experiments import metrics

ESTIMATOR_COLOURS = {
    "constant": style.GREY,
    "sum-max": style.VERMILION,
    "linear": style.ORANGE,
    "boosted": style.GREEN,
    "quantiles": style.BLUE,
}
AT_OR_BELOW = "share of transactions at or below"


def by_type(trace: Trace) -> dict[str, np.ndarray]:
    """Which transactions (n,) are of each type that occurs, by its name in words."""
    return {
        name.replace("_", " "): trace.kind == kind
        for kind, name in enumerate(trace.kinds)
        if (trace.kind == kind).any()
    }


def _mean_us(trace: Trace, columns_s: Mapping[str, F64]) -> pd.DataFrame:
    """Mean microseconds of columns (n,): a row a type, a word of its name a line."""
    return pd.DataFrame(
        {
            name.replace(" ", "\n"): {
                column: 1e6 * seconds[rows].mean()
                for column, seconds in columns_s.items()
            }
            for name, rows in by_type(trace).items()
        }
    ).T


def collected_trace(trace: Trace) -> Figure:
    """Where a measured transaction spends its time, and how that scatters by type."""
    figure, left, right = style.axes(2, height_in=3.2)
    units_s = dict(zip(trace.unit_names, trace.units_s.T, strict=True))
    _mean_us(trace, units_s).plot.bar(stacked=True, ax=left, width=0.8, rot=0)
    left.tick_params(axis="x", labelsize=7)
    left.set_ylabel("mean time in each unit (µs)")
    left.legend(title="operating unit", fontsize=7, title_fontsize=7)
    for k, (kind, rows) in enumerate(by_type(trace).items()):
        cpu_s = trace.measured["cpu_s"][rows]
        right.ecdf(1e6 * trace.service_s[rows], color=f"C{k}", label=kind)
        look = {"color": f"C{k}", "gid": f"{kind}, processor time"}
        right.ecdf(1e6 * cpu_s, linestyle=":", linewidth=1.1, **look)
    right.set(
        xscale="log",
        xlabel="service time (µs); dotted: processor time",
        ylabel=AT_OR_BELOW,
    )
    style.log_ticks(right.xaxis, (1,))
    right.legend(fontsize=7)
    return figure


def q_error_curves(errors: dict[str, dict[str, F64]]) -> Figure:
    """Share of held-out transactions within a q-error: a panel each, a line each.

    `errors` maps what is predicted to the q-errors (n,) of each estimator.
    """
    axis = {"xscale": "log", "xlim": (1, 10), "xlabel": "q-error"}
    figure, drawn = style.panels(errors, 3.0, ylabel=AT_OR_BELOW, **axis)
    ticks = [1, 1.5, 2, 3, 5, 10]
    for panel, by_estimator in drawn:
        for name, error in by_estimator.items():
            # two estimators of the same quality must both be seen
            dashes = "--" if name == "boosted" else "-"
            colour = ESTIMATOR_COLOURS[name]
            panel.ecdf(error, linestyle=dashes, color=colour, label=name)
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
    drawn[-1][0].legend(loc="lower right")
    return figure


def operating_units(
    trace: Trace, predicted_s: Mapping[str, F64], totals_s: Mapping[str, F64]
) -> Figure:
    """Mean time in each unit, measured and estimated; and totals over the truth.

    `predicted_s` (n,) by unit, of which `rest` is what no unit claims; `totals_s` are
    estimates (n,) of the service time, by how they were learned.
    """
    figure, left, right = style.axes(2, height_in=3.4)
    measured_s = dict(zip(trace.unit_names, trace.units_s.T, strict=True))
    measured_s["rest"] = trace.service_s - trace.units_s.sum(axis=1)
    nothing_s = np.zeros(len(trace))
    estimated_s = {unit: predicted_s.get(unit, nothing_s) for unit in measured_s}
    bars = {"stacked": True, "ax": left, "width": 0.36, "rot": 0, "linewidth": 0}
    colours = [*style.PALETTE, style.GREY]
    _mean_us(trace, measured_s).plot.bar(**bars, color=colours, position=1.05)
    parts = left.containers[:]
    _mean_us(trace, estimated_s).plot.bar(
        **bars,
        color=colours,
        position=-0.05,
        hatch="////",
        edgecolor="white",
        legend=False,
    )
    left.set_ylabel("mean time (µs)")
    left.legend(handles=parts, title="operating unit", fontsize=7, title_fontsize=7)
    true_us = _mean_us(trace, {"true": trace.service_s})["true"]
    _mean_us(trace, totals_s).div(true_us, axis=0).plot.bar(
        ax=right, width=0.8, rot=0, color=[style.VERMILION, style.GREY]
    )
    right.axhline(1, color=style.INK, linewidth=0.8)
    right.set_ylabel("estimated over true time")
    right.set_ylim(top=1.15 * right.get_ylim()[1])  # room for the legend
    right.legend(fontsize=7, loc="upper left", ncols=2)
    for panel in (left, right):
        panel.set_xlim(-0.5, len(true_us) - 0.5)
        panel.tick_params(axis="x", labelsize=7)
        panel.grid(axis="x", visible=False)
    return figure


def coverage(
    trace: Trace, bounds_s: Mapping[str, Mapping[float, F64]], window: int
) -> Figure:
    """How many times stay within their bound: over the run, and by type.

    `bounds_s` (n,) by how they were made (the last one in full colour) and level. The
    left panel counts the last `window` transactions, the right one all of a type.
    """
    figure, left, right = style.axes(2, height_in=3.2)
    *_, last = bounds_s
    types, held_out = by_type(trace), np.arange(1, len(trace) + 1)
    for name, by_level in bounds_s.items():
        dotted = {} if name == last else {"linestyle": ":", "alpha": 0.8}
        for (level, bound_s), colour in zip(
            by_level.items(), style.PALETTE, strict=False
        ):
            within = pd.Series(100.0 * (trace.service_s <= bound_s), held_out)
            moving = within.rolling(window).mean()
            made = f"{level:.0%}, {name}"
            left.plot(moving, color=colour, label=made, **{"linewidth": 1.4} | dotted)
            left.axhline(100 * level, color=colour, linewidth=0.6)
            if name == last:
                miss = [within[rows].mean() - 100 * level for rows in types.values()]
                look = {"color": colour, "alpha": 0.8, "gid": made}
                right.plot(miss, range(len(types)), "o", **look)
    left.set_xlabel("held-out transactions so far")
    left.set_ylabel(f"within the bound, of the last {window:,} (%)")
    style.legend_below(figure, ncols=3, fontsize=7)
    right.axvspan(-2, 2, color=style.GREY, alpha=0.15, linewidth=0)
    right.axvline(0, color=style.INK, linewidth=0.8)
    right.set(xlim=(-4, 4), xlabel="covered less promised (points)")
    style.name_rows(right, list(types), fontsize=8)
    return figure


def hidden_patterns(
    importance: pd.DataFrame, dependence_s: Mapping[str, pd.Series]
) -> Figure:
    """What shuffling a feature costs, by type; and estimates against one feature.

    `importance` has a row a type and a column a feature, in percent; the nine features
    that matter most anywhere are shown. `dependence_s` are mean estimates in seconds by
    the value of a feature, by what they show.
    """
    figure, left, right = style.axes(2, height_in=3.4)
    most = importance.max().sort_values(ascending=False).index[:9]
    shown = importance[list(most)].T.clip(lower=0)
    sns.heatmap(
        shown, ax=left, cmap="crest", annot=True, fmt=".1f", annot_kws={"size": 7},
        cbar=False, linewidths=0.5,
    )  # fmt: skip
    for number in left.texts:  # white on a dark cell, in the dark theme as well
        if number.get_color() == "w":
            number.set_color("#fefefe")
    left.set_xticklabels([t.replace(" ", "\n") for t in shown.columns], rotation=0)
    left.set_yticklabels([name.replace("_", " ") for name in shown.index], rotation=0)
    left.tick_params(labelsize=7, length=0)
    left.set(xlabel="", ylabel="")
    left.set_title("q-error lost by shuffling (%)", fontsize=8)
    for (shows, mean_s), marker in zip(
        dependence_s.items(), style.MARKERS, strict=False
    ):
        relative = 100 * (mean_s / mean_s.iloc[0] - 1)
        right.plot(relative, marker=marker, markersize=3, label=shows)
    right.axhline(0, color=style.INK, linewidth=0.6)
    right.set(
        xlabel="value of the feature", ylabel="mean estimate against the smallest (%)"
    )
    right.legend(fontsize=7)
    return figure


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
    figure, *panels = style.axes(4, height_in=2.5, letters=False)
    constant, by_kind, by_class, linear = panels
    at_s = np.linspace(0, 1.15 * max(worthless_s, type_slo_s.max()), 800)
    constant.plot(1e3 * at_s, metrics.step_cost(at_s, slo_s), color=style.INK)
    linear.plot(
        1e3 * at_s, metrics.linear_cost(at_s, slo_s, worthless_s), color=style.INK
    )
    for k, kind in enumerate(trace.kinds):
        cost, name = metrics.step_cost(at_s, type_slo_s[k]), kind.replace("_", " ")
        by_kind.plot(1e3 * at_s, cost, label=name)
        if (trace.kind == k).any():
            look = {"color": f"C{k}", "gid": name}
            style.slower(by_class, latency_s[trace.kind == k], **look)
        by_class.plot(1e3 * type_slo_s[k], 0.01, "v", color=f"C{k}", gid=name)
    by_class.set_ylim(0.001, 1)
    titles = ("constant, firm", "per type, firm", "p99 per class", "piecewise linear")
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title, fontsize=8)
        panel.set_xlabel("latency (ms)", fontsize=8)
        panel.yaxis.label.set_size(8)
        panel.tick_params(labelsize=7)
    for panel in (constant, by_kind, linear):
        panel.set_ylim(-0.05, 1.1)
    constant.set_ylabel("cost of an answer")
    style.legend_below(figure)
    return figure
