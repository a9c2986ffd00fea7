"""Figures of the sequencer: schedules, policies, robustness, scale."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from thesis_lib.book.figures.style import (
    _LABELS,
    _MARKERS,
    COLOURS,
    GREY,
    INK,
    _band,
    _curve,
    _legend_below,
    _style,
    _whiskers,
    axes,
    subplots,
)
from thesis_lib.common.errors import require
from thesis_lib.sequencer.core.trace import F64, History, Trace
from thesis_lib.sequencer.experiments import live, metrics


def worker_timelines(traces: dict[str, Trace], window_s: float) -> Figure:
    """Which worker ran what, and when, within `window_s` from the middle of the run."""
    figure, *panels = axes(len(traces), height_in=2.4, sharex=True)
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


DISTANCE = {
    "bound": "nobody avoids",
    "open": "open: bound to best schedule",
    "unforeseen": "future arrivals, and the rule",
    "misjudged": "errors of the estimates",
}
_FATES = {"on time": "#009e73", "late": "#d55e00", "dropped": "#8a8a8a"}


def schedules(histories: Mapping[str, History], writes: Sequence[str]) -> Figure:
    """Schedules of one small batch, one beside the other, transactions in log order.

    A thin line leads from the arrival to the start, a bar is the execution and names
    the rows that are written, a tick is the deadline. What is dropped stands below,
    with a cross. From the second panel on, a word marks each transaction that violates
    its objective in one panel only, this or the first.
    """
    figure, *panels = axes(len(histories), 2.5, sharex=True)
    first = next(iter(histories.values()))
    for panel, (name, history) in zip(panels, histories.items(), strict=True):
        rows = [*history.log.tolist(), *np.flatnonzero(history.dropped).tolist()]
        for y, i in enumerate(rows):
            kept = "late" if history.late[i] else "on time"
            fate = "dropped" if history.dropped[i] else kept
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
    panels[0].set_ylabel("transaction, in log order")
    figure.legend(
        handles=[Patch(color=colour, label=fate) for fate, colour in _FATES.items()],
        loc="outside lower center",
        ncols=3,
    )
    return figure


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
    """Violations against load from FIFO to the bound, and what those of bid-price are.

    `runs` and `parts` as `optimum.distances` and `optimum.distance` make them; both in
    percent of the arrivals.
    """
    percent = runs.assign(violations=100 * runs["violations"])
    figure, curves, shares = axes(2, height_in=3.9)
    for policy in ("fifo", "bid-price", "bid-price-oracle", "search", "bound"):
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
    shares.set_ylabel("violations of bid-price (%)")
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
    figure, drawn = subplots(2, len(runs), 4.6, sharex=True, sharey=True)
    for column, (scenario, rows) in enumerate(runs.items()):
        loads = np.array(sorted(rows["load"].unique()))
        for panel, name in zip(drawn[:, column], metrics.RATES, strict=True):
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
    for panel, title in zip(drawn[:, 0], metrics.RATES.values(), strict=True):
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
    for panel, (name, title) in zip(panels, metrics.RATES.items(), strict=True):
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
            if policy == "bid-price":
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
            ends = [metrics.reduction(rows, policy, load) for load in loads]
            _curve(panel, loads, ends, _style(policy), times=100)
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
    """What each defect of a policy changes, from `grid.ablation`: a panel a table.

    In points of the strict count, with 95 % intervals: each defect corrected alone in
    the policy as described, and put back alone into the policy without any.
    """
    figure, *panels = axes(len(tables), 3.3, sharey=True)
    ends = {
        "described": ("corrected alone", "#009e73"),
        "corrected": ("put back", "#d55e00"),
    }
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
            fmt=_MARKERS["bid-price"], color=COLOURS["bid-price"], markersize=6,
            label="bid-price",
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
        whole = shares[list(table.index).index("bid-price")]
        colours = [
            COLOURS["bid-price"]
            if name == "bid-price"
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
    right.plot(places, table["goodput"], "P-", color=COLOURS["bid-price"])
    right.fill_between(
        places, table["low"], table["high"], color=COLOURS["bid-price"], alpha=0.25
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

    `table` is `live.beside_measured`'s, whose intervals of the error are the bars.
    Corrected policies have open markers; shaded is what counts as near, and paler are
    the runs with more than one worker.
    """
    engines = table.index.unique("engine")
    figure, *panels = axes(len(engines), height_in=3.9, sharey=True)
    truth = np.linspace(0, 100, 201)
    width = 100 * np.maximum(
        live.ABSOLUTE_TOLERANCE, live.RELATIVE_TOLERANCE * truth / 100
    )
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
                markerfacecolor="none" if "-corrected" in policy else style["color"],
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
