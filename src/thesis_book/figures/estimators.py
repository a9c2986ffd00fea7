"""Figures of collected traces, of the estimators, and of agreements on latency."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import seaborn as sns

from thesis_book.figures import style
from thesis_book.figures.export import Drawing, stacked
from thesis_lib.sequencer.core.trace import F64, Trace
from thesis_lib.sequencer.experiments import metrics

ESTIMATOR_COLORS = {
    "constant": style.GRAY,
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


def _melted(table: pd.DataFrame, column: str, value: str) -> pd.DataFrame:
    """A table by type as rows of a type, a `column` and a `value`."""
    rows = table.rename(index=lambda kind: kind.replace("\n", " ")).rename_axis("type")
    return rows.reset_index().melt("type", var_name=column, value_name=value)


def collected_trace(trace: Trace) -> Drawing:
    """Plot the time of a measured transaction by part, and its spread by type."""
    figure, left, right = style.axes(2, height_in=3.2)
    units_s = dict(zip(trace.unit_names, trace.units_s.T, strict=True))
    mean_us = _mean_us(trace, units_s)
    mean_us.plot.bar(stacked=True, ax=left, width=0.8, rot=0)
    left.tick_params(axis="x", labelsize=7)
    left.set_ylabel("mean time in each unit (µs)")
    left.legend(title="operating unit", fontsize=7, title_fontsize=7)
    for k, (kind, rows) in enumerate(by_type(trace).items()):
        cpu_s = trace.measured["cpu_s"][rows]
        right.ecdf(1e6 * trace.service_s[rows], color=f"C{k}", label=kind)
        right.ecdf(1e6 * cpu_s, linestyle=":", linewidth=1.1, color=f"C{k}")
    right.set(
        xscale="log",
        xlabel="service time (µs); dotted: processor time",
        ylabel=AT_OR_BELOW,
    )
    style.log_ticks(right.xaxis, (1,))
    right.legend(fontsize=7)
    columns_s = {"service_us": trace.service_s, "cpu_us": trace.measured["cpu_s"]}
    times = {
        kind: pd.concat(
            style.distribution(name, 1e6 * time_s[rows])
            for name, time_s in columns_s.items()
        )
        for kind, rows in by_type(trace).items()
    }
    frames = {"a": _melted(mean_us, "unit", "mean_us"), "b": stacked(times, "type")}
    return Drawing(figure, stacked(frames))


def q_error_curves(errors: dict[str, dict[str, F64]]) -> Drawing:
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
            color = ESTIMATOR_COLORS[name]
            panel.ecdf(error, linestyle=dashes, color=color, label=name)
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
    drawn[-1][0].legend(loc="lower right")
    frames = {
        predicted: stacked(
            {
                name: style.distribution("q_error", error)
                for name, error in each.items()
            },
            "estimator",
        )
        for predicted, each in errors.items()
    }
    return Drawing(figure, stacked(frames, "predicted"))


def operating_units(
    trace: Trace, predicted_s: Mapping[str, F64], totals_s: Mapping[str, F64]
) -> Drawing:
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
    colors = [*style.PALETTE, style.GRAY]
    measured_us, estimated_us = (
        _mean_us(trace, columns_s) for columns_s in (measured_s, estimated_s)
    )
    measured_us.plot.bar(**bars, color=colors, position=1.05)
    parts = left.containers[:]
    estimated_us.plot.bar(
        **bars,
        color=colors,
        position=-0.05,
        hatch="////",
        edgecolor="white",
        legend=False,
    )
    left.set_ylabel("mean time (µs)")
    left.legend(handles=parts, title="operating unit", fontsize=7, title_fontsize=7)
    true_us = _mean_us(trace, {"true": trace.service_s})["true"]
    relative = _mean_us(trace, totals_s).div(true_us, axis=0)
    relative.plot.bar(ax=right, width=0.8, rot=0, color=[style.VERMILION, style.GRAY])
    right.axhline(1, color=style.INK, linewidth=0.8)
    right.set_ylabel("estimated over true time")
    right.set_ylim(top=1.15 * right.get_ylim()[1])  # room for the legend
    right.legend(fontsize=7, loc="upper left", ncols=2)
    for panel in (left, right):
        panel.set_xlim(-0.5, len(true_us) - 0.5)
        panel.tick_params(axis="x", labelsize=7)
        panel.grid(axis="x", visible=False)
    units = _melted(measured_us, "unit", "measured_us")
    estimated = _melted(estimated_us, "unit", "estimated_us")["estimated_us"]
    frames = {
        "a": units.assign(estimated_us=estimated),
        "b": _melted(relative, "learned", "estimated_over_true"),
    }
    return Drawing(figure, stacked(frames))


def coverage(
    trace: Trace, bounds_s: Mapping[str, Mapping[float, F64]], window: int
) -> Drawing:
    """Plot the share of times within their bound: over the run, and by type.

    `bounds_s` (n,) by how they were made (the last one in full colour) and level. The
    left panel counts the last `window` transactions, the right one all of a type.
    """
    figure, left, right = style.axes(2, height_in=3.2)
    *_, last = bounds_s
    types, held_out = by_type(trace), np.arange(1, len(trace) + 1)
    every, over_time, per_type = max(1, len(trace) // 1_000), {}, {}
    for name, by_level in bounds_s.items():
        dotted = {} if name == last else {"linestyle": ":", "alpha": 0.8}
        for (level, bound_s), color in zip(
            by_level.items(), style.PALETTE, strict=False
        ):
            within = pd.Series(100.0 * (trace.service_s <= bound_s), held_out)
            moving = pd.Series(within.rolling(window).mean()).iloc[::every]
            label = f"{level:.0%}, {name}"
            shown = moving.dropna().rename_axis("transactions")
            over_time[label] = shown.rename("within_percent").reset_index()
            left.plot(moving, color=color, label=label, **{"linewidth": 1.4} | dotted)
            left.axhline(100 * level, color=color, linewidth=0.6)
            if name == last:
                miss = [within[rows].mean() - 100 * level for rows in types.values()]
                right.plot(miss, range(len(types)), "o", color=color, alpha=0.8)
                columns = {"type": list(types), "covered_less_promised_points": miss}
                per_type[label] = pd.DataFrame(columns)
    left.set_xlabel("held-out transactions so far")
    left.set_ylabel(f"within the bound, of the last {window:,} (%)")
    style.legend_below(figure, ncols=3, fontsize=7)
    right.axvspan(-2, 2, color=style.GRAY, alpha=0.15, linewidth=0)
    right.axvline(0, color=style.INK, linewidth=0.8)
    right.set(xlim=(-4, 4), xlabel="covered less promised (points)")
    style.name_rows(right, list(types), fontsize=8)
    frames = {"a": stacked(over_time, "bound"), "b": stacked(per_type, "bound")}
    return Drawing(figure, stacked(frames))


def hidden_patterns(
    importance: pd.DataFrame, dependence_s: Mapping[str, pd.Series]
) -> Drawing:
    """Plot the cost of shuffling a feature, by type; and estimates against one.

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
    estimates = {}
    for (shows, mean_s), marker in zip(
        dependence_s.items(), style.MARKERS, strict=False
    ):
        relative = 100 * (mean_s / mean_s.iloc[0] - 1)
        right.plot(relative, marker=marker, markersize=3, label=shows)
        estimates[shows] = relative.rename_axis("value").rename("percent").reset_index()
    right.axhline(0, color=style.INK, linewidth=0.6)
    right.set(
        xlabel="value of the feature", ylabel="mean estimate against the smallest (%)"
    )
    right.legend(fontsize=7)
    lost = shown.rename_axis("feature").reset_index()
    lost = lost.melt("feature", var_name="type", value_name="percent")
    frames = {"q-error lost": lost, "estimate": stacked(estimates, "feature")}
    return Drawing(figure, stacked(frames))


def agreements(
    trace: Trace,
    latency_s: F64,
    slo_s: float,
    type_slo_s: F64,
    worthless_s: float,
) -> Drawing:
    """Plot the cost of an answer against its latency, for four kinds of agreement.

    `latency_s` (n,) are answers whose tails the panel of classes shows; `type_slo_s`
    (k,) belong to the types of the trace.
    """
    figure, *panels = style.axes(4, height_in=2.5, letters=False)
    constant, by_kind, by_class, linear = panels
    at_s = np.linspace(0, 1.15 * max(worthless_s, type_slo_s.max()), 800)
    titles = ("constant, firm", "per type, firm", "p99 per class", "piecewise linear")
    costs = {
        titles[0]: metrics.step_cost(at_s, slo_s),
        titles[3]: metrics.linear_cost(at_s, slo_s, worthless_s),
    }
    frames = [
        pd.DataFrame({"agreement": title, "latency_ms": 1e3 * at_s, "cost": cost})
        for title, cost in costs.items()
    ]
    for panel, cost in zip((constant, linear), costs.values(), strict=True):
        panel.plot(1e3 * at_s, cost, color=style.INK)
    for k, kind in enumerate(trace.kinds):
        cost, name = metrics.step_cost(at_s, type_slo_s[k]), kind.replace("_", " ")
        by_kind.plot(1e3 * at_s, cost, label=name)
        columns = {"latency_ms": 1e3 * at_s, "cost": cost}
        frames.append(pd.DataFrame({"agreement": titles[1], "type": name, **columns}))
        own_s = latency_s[trace.kind == k]
        if len(own_s):
            style.slower(by_class, own_s, color=f"C{k}")
            shares = style.distribution("latency_ms", 1e3 * own_s)
            columns = {"type": name, "slo_ms": 1e3 * type_slo_s[k]}
            frames.append(shares.assign(agreement=titles[2], **columns))
        by_class.plot(1e3 * type_slo_s[k], 0.01, "v", color=f"C{k}")
    by_class.set_ylim(0.001, 1)
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title, fontsize=8)
        panel.set_xlabel("latency (ms)", fontsize=8)
        panel.yaxis.label.set_size(8)
        panel.tick_params(labelsize=7)
    for panel in (constant, by_kind, linear):
        panel.set_ylim(-0.05, 1.1)
    constant.set_ylabel("cost of an answer")
    style.legend_below(figure)
    return Drawing(figure, pd.concat(frames, ignore_index=True))
