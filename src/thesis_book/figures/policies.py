"""Figures of the sequencer: policies, robustness, scale."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from thesis_book.figures import style
from thesis_book.figures.export import Drawing, stacked
from thesis_book.figures.runs import LOAD, UNIT
from thesis_lib.sequencer.experiments import live, metrics

# --- Violations and commits against load ---------------------------------------
FEW_LOADS, ASIDE_PT = 4, 3.5  # so many have their policies beside each other
VIOLATIONS = "violations (% of arrivals)"
FEW = {"yscale": style.symlog(0.1), "ylim": (0, 150)}  # a percent, or none, can be read
_DASHES = (
    "-", "--", "-.", ":", (0, (8, 2)), (0, (1, 4)), (0, (6, 2, 1, 2, 1, 2)),
    (0, (2, 1)),
)  # fmt: skip


def _violations(
    panel: Axes, runs: pd.DataFrame, policies: Sequence[str]
) -> pd.DataFrame:
    """Draw violations against load; few loads get the policies next to each other."""
    beside, bands = len(set(runs["load"])) <= FEW_LOADS, []
    for place, policy in enumerate(policies):
        aside_pt = ASIDE_PT * (place - (len(policies) - 1) / 2) if beside else None
        at = runs, policy, "violations"
        bands.append(style.band(panel, *at, aside_pt=aside_pt))
    panel.axvline(1.0, color=style.GRAY, linewidth=0.8)
    panel.margins(x=0.1 if beside else None)
    panel.set(xlabel=LOAD, ylabel=VIOLATIONS)
    return pd.concat(bands, ignore_index=True)


def violations_against_load(
    runs: pd.DataFrame, policies: Sequence[str], few: bool = True, unit: str = UNIT
) -> Drawing:
    """Violations in percent against load, beside it logarithmic where `few` count.

    `unit` is the rate of arrivals at a load of one.
    """
    figure, *panels = style.axes(1 + few, height_in=3.9)
    frame = pd.DataFrame()
    for panel in panels:
        frame = _violations(panel, runs, policies)
        panel.set_xlabel(f"load, of {unit}")
    for log in panels[1:]:
        log.set(ylabel="", **FEW)
    lines = [Line2D([], [], **style.policy(policy)) for policy in policies]
    style.legend_below(figure, lines)
    return Drawing(figure, frame)


DISTANCE = {
    "bound": "unavoidable",
    "open": "unknown: from bound to best schedule",
    "unforeseen": "future arrivals, and the rule",
    "misjudged": "errors of the estimates",
}


def distance_to_optimum(runs: pd.DataFrame, parts: pd.DataFrame) -> Drawing:
    """Violations against load from FIFO to the bound, and what those of bid-price are.

    `runs` and `parts` as `optimum.distances` and `optimum.distance` make them; both in
    percent of the arrivals.
    """
    figure, curves, shares = style.axes(2, height_in=3.9)
    policies = ("fifo", "bid-price", "bid-price-oracle", "search", "bound")
    violations = _violations(curves, runs, policies)
    curves.set(**FEW)
    unmet = pd.DataFrame(
        {label: parts[column].clip(lower=0) for column, label in DISTANCE.items()}
    ).set_axis([f"{load:g}" for load in parts.index])
    colors = [style.INK, style.ORANGE, style.SKY, style.VERMILION]
    unmet.plot.bar(stacked=True, ax=shares, width=0.7, rot=0, color=colors)
    shares.set(xlabel="load", ylabel="violations of bid-price (%)")
    shares.legend(fontsize=7, loc="upper left")
    style.legend_below(figure)
    rows = unmet.rename_axis("load").reset_index()
    rows = rows.melt("load", var_name="part", value_name="percent")
    return Drawing(figure, stacked({"a": violations, "b": rows}))


def rates_by_scenario(
    runs: Mapping[str, pd.DataFrame],
    saturation_per_s: Mapping[str, float],
    policies: Sequence[str],
) -> Drawing:
    """Plot throughput and goodput against load: a column a scenario.

    In percent of the saturation of FIFO, which the vertical line marks. The dotted
    diagonal commits everything as it comes.
    """
    figure, *panels = style.axes(len(runs), 4.6, rows=2, sharex=True, sharey=True)
    places = product(metrics.RATES.items(), runs.items())
    most, bands = 150.0, []
    for panel, ((rate, title), (scenario, rows)) in zip(panels, places, strict=True):
        loads, whole = np.unique(rows["load"]), saturation_per_s[scenario]
        panel.plot(loads, 100 * loads, linestyle=":", **style.RULE)
        for policy in policies:
            band = style.band(panel, rows, policy, rate, whole=whole)
            bands.append(band.assign(scenario=scenario, commits=title))
        panel.axvline(1.0, color=style.GRAY, linewidth=0.8)
        panel.set(xlabel="load", ylabel=f"commits, {title} (%)")
        if panel.get_subplotspec().is_first_row():
            panel.set_title(scenario, fontsize=9)
        panel.label_outer()
        most = max(most, 105 * rows["throughput_per_s"].max() / whole)
    panels[0].set_ylim(0, most)
    style.legend_below(figure)
    return Drawing(figure, pd.concat(bands, ignore_index=True))


def against_sequencing(
    runs: pd.DataFrame,
    saturation_per_s: float,
    policies: Sequence[str],
    measured_us: Mapping[str, float],
) -> Drawing:
    """Commits against the work of the sequencer on each transaction: all, and on time.

    In percent of the saturation of FIFO. The dotted curve is what a sequencer lets
    through that does one transaction after the other; vertical lines are costs that
    were `measured_us`, by what they are.
    """
    runs = runs.assign(sequencer_us=1e6 * runs["sequencer_s"])
    most = 105 * runs["throughput_per_s"].max() / saturation_per_s
    figure, drawn = style.panels(
        {f"commits, {title}": rate for rate, title in metrics.RATES.items()},
        3.5,
        xscale="log",
        ylim=(0, max(125, most)),
        xlabel="sequencer, each transaction (µs)",
        ylabel="of FIFO's saturation (%)",
    )
    at_us = np.geomspace(runs["sequencer_us"].min(), runs["sequencer_us"].max(), 200)
    through = 1e8 / at_us / saturation_per_s
    bands = []
    for panel, rate in drawn:
        style.log_ticks(panel.xaxis, (1,))
        for policy in policies:
            whole = "sequencer_us", saturation_per_s
            band = style.band(panel, runs, policy, rate, *whole)
            bands.append(band.assign(commits=metrics.RATES[rate]))
        panel.plot(at_us, through, ":", color=style.INK, linewidth=1, label="1 / cost")
        for (name, cost_us), dashes in zip(
            measured_us.items(), _DASHES[1:], strict=False
        ):
            panel.axvline(cost_us, linestyle=dashes, label=name, **style.RULE)
    style.legend_below(figure)
    costs = {"cost": list(measured_us), "sequencer_us": list(measured_us.values())}
    frames = {
        "policies": pd.concat(bands),
        "1 / cost": pd.DataFrame({"sequencer_us": at_us, "percent": through}),
        "measured": pd.DataFrame(costs),
    }
    return Drawing(figure, stacked(frames, "shown"))


def reductions(
    runs: Mapping[str, pd.DataFrame], policies: Sequence[str], published: float
) -> Drawing:
    """Reduction of violations against FIFO by load, in percent: a panel a scenario.

    The dashed line is the `published` reduction. The axis ends at -100 %: what lies
    below is off the picture.
    """
    axis = {"ylabel": "fewer violations than FIFO (%)", "ylim": (-100, 100)}
    figure, drawn = style.panels(runs, 2.9, xlabel="load", **axis)
    frames = []
    for scenario, (panel, rows) in zip(runs, drawn, strict=True):
        loads = np.unique(rows["load"])
        for policy in policies:
            ends = [metrics.reduction(rows, policy, load) for load in loads]
            curve = style.curve(panel, loads, ends, style.policy(policy))
            curve = curve.assign(scenario=scenario, policy=policy, load=loads)
            frames.append(curve.assign(published_percent=published))
        panel.axhline(0, **style.RULE)
        look = style.RULE | {"label": "published"}
        panel.axhline(published, linestyle="--", **look)
    style.legend_below(figure)
    return Drawing(figure, pd.concat(frames, ignore_index=True))


# --- Scale -----------------------------------------------------------------------
def weak_scaling(
    capacity: pd.DataFrame, loaded: pd.DataFrame, policies: Sequence[str]
) -> Drawing:
    """Capacity of FIFO, and violations at one load, against the number of partitions.

    `capacity` is from `scale.capacities`, with what the cores allow as thin lines;
    `loaded` from `scale.weak_scaling`. A style of line for each share that crosses;
    bands are intervals over seeds.
    """
    figure, left, right = style.axes(2, height_in=3.5)
    capacities, violations = {}, {}
    crossings: Any = zip(loaded.groupby("crossing"), _DASHES, strict=False)
    for (crossing, rows), dashes in crossings:
        each = capacity[crossing]
        look = {"linestyle": dashes, "label": f"{100 * crossing:g} % cross"}
        left.plot(each["fifo"], **style.policy("fifo") | look | {"markersize": 3})
        left.plot(each["cores"], color=style.INK, linestyle=dashes, linewidth=0.8)
        percent = pd.DataFrame(each).add_suffix("_percent")
        capacities[crossing] = percent.rename_axis("partitions").reset_index()
        at = "violations", "partitions"
        violations[crossing] = pd.concat(
            style.band(right, rows, policy, *at, linestyle=dashes)
            for policy in policies
        )
    for panel in (left, right):
        panel.set_xscale("log", base=2)
        panel.set_xticks(capacity.index, [f"{count}" for count in capacity.index])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xlabel("partitions")
    most = max(110, 1.05 * capacity.to_numpy().max())
    left.set(ylim=(0, most), ylabel="capacity of FIFO (% of one, each)")
    left.legend(fontsize="small", loc="lower left")
    right.set(yscale=style.symlog(1), ylim=(0, 150), ylabel=VIOLATIONS)
    looks = [style.policy(policy) for policy in policies]
    lines = [Line2D([], [], color=look["color"], label=look["label"]) for look in looks]
    right.legend(handles=lines, fontsize="small", loc="lower left")
    shown = {"a": capacities, "b": violations}
    frames = {panel: stacked(each, "crossing") for panel, each in shown.items()}
    return Drawing(figure, stacked(frames))


def one_sequencer(busy: pd.DataFrame, policies: Sequence[str], load: float) -> Drawing:
    """Cost of a decision against arrivals a second, if one sequencer decides for all.

    `busy` is from `scale.one_sequencer`. The dotted line is the time between two
    arrivals: above it one sequencer cannot keep up.
    """
    figure, panel = style.axes(height_in=3.2)
    frames = {}
    for policy in policies:
        rows = busy.xs((policy, load)).sort_index()
        panel.plot(rows["rate_per_s"], rows["decide_us"], **style.policy(policy))
        shown = rows[["rate_per_s", "decide_us"]].rename_axis("cores").reset_index()
        frames[policy] = shown.assign(between_us=1e6 / shown["rate_per_s"])
        if policy == "bid-price":
            for cores, row in rows.iterrows():
                at = row["rate_per_s"], row["decide_us"]
                style.note(panel, f"{cores}", at, (0, 6), ha="center", fontsize=7)
    rates = np.sort(busy["rate_per_s"].to_numpy(np.float64))
    look = {"color": style.INK, "label": "time between two arrivals"}
    panel.plot(rates, 1e6 / rates, ":", **look)
    panel.set(xscale="log", xlabel="arrivals a second (cores that they need)")
    panel.set(yscale="log", ylabel="decision, each transaction (µs)")
    style.log_ticks(panel.xaxis, (1,))
    style.log_ticks(panel.yaxis, (1,))
    style.legend_below(figure)
    return Drawing(figure, stacked(frames, "policy"))


# --- What a policy owes to what --------------------------------------------------
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


def ablation(tables: Mapping[str, pd.DataFrame]) -> Drawing:
    """Plot the effect of each defect, from `grid.ablation`: a panel a table.

    In points of the strict count, with 95 % intervals: each defect corrected alone in
    the policy as described, and put back alone into the policy without any.
    """
    ways = (
        ("described", "corrected alone", style.GREEN, -0.15),
        ("corrected", "put back", style.VERMILION, 0.15),
    )
    figure, drawn = style.panels(tables, 3.3, xlabel="violations (points)")
    frames = []
    for table, (panel, rows) in zip(tables, drawn, strict=True):
        for start, done, color, shift in ways:
            part = rows[(rows["from"] == start) & (rows["defect"] != "")]
            change = part["strict_change"]
            columns = ["defect", "strict_change", "strict_low", "strict_high"]
            points = rows.loc[part.index, columns]
            frames.append(points.assign(panel=table, change=done))
            panel.errorbar(
                change, np.arange(len(part)) + shift,
                xerr=style.whiskers(change, part["strict_low"], part["strict_high"]),
                fmt="o", color=color, markersize=4, linewidth=1.2, label=done,
            )  # fmt: skip
        panel.axvline(0, **style.RULE)
    names = next(iter(tables.values()))["defect"].unique()
    style.name_rows(figure.axes[0], [DEFECTS[name] for name in names if name])
    style.legend_below(figure)
    return Drawing(figure, pd.concat(frames, ignore_index=True))


def goals(table: pd.DataFrame) -> Drawing:
    """Plot the remaining share of FIFO's violations and the goal.

    A panel a row of the goals; a bar through each goal says what was to be reached.
    """
    rows = {
        f"scenario {row}": at.droplevel("row")
        for row, at in table.groupby("row", sort=False)
    }
    axis = {"yscale": style.symlog(0.1), "ylabel": "violations left of FIFO's (%)"}
    figure, drawn = style.panels(rows, 2.9, xlabel="load", **axis)
    frames = {}
    for scenario, (panel, at) in zip(rows, drawn, strict=True):
        left = 100 - at[["reduction", "low", "high", "goal"]]
        places = np.arange(len(at))
        # Fewer violations are left at the high end of a reduction.
        ends = {"reduction": "left", "high": "low", "low": "high"}
        frames[scenario] = pd.DataFrame(left).rename(columns=ends).reset_index()
        panel.errorbar(
            places, left["reduction"],
            yerr=style.whiskers(left["reduction"], left["high"], left["low"]),
            **style.policy("bid-price") | {"linestyle": "", "markersize": 6},
        )  # fmt: skip
        ends = places - 0.35, places + 0.35
        panel.hlines(left["goal"], *ends, color=style.VERMILION, label="goal")
        panel.set_xticks(places, [f"{load:g}" for load in at.index])
    style.legend_below(figure)
    return Drawing(figure, stacked(frames, "scenario"))


def ingredients(table: pd.DataFrame) -> Drawing:
    """Violations without an ingredient, from `goals.ingredients`: a panel a column."""
    without = table.index.str.startswith(("without", "one", "never"))
    colors = pd.Series(np.where(without, style.VERMILION, style.GRAY), table.index)
    colors["bid-price"] = style.GREEN
    rows = -(-len(table.columns) // 3)
    figure, *drawn = style.axes(
        min(3, len(table.columns)), 0.6 + rows * (0.7 + 0.17 * len(table)), rows,
        sharey=True,
    )  # fmt: skip
    for panel in drawn[len(table.columns) :]:
        panel.remove()
    for panel, (place, load) in zip(drawn, table, strict=False):
        shares = table[place, load]
        bars = panel.barh(range(len(shares)), shares, color=colors)
        panel.axvline(shares["bid-price"], **style.RULE)
        panel.bar_label(bars, fmt="%.1f", fontsize=7.5, padding=2, bbox=style.UNDER)
        panel.set(xscale=style.symlog(1.0), xlim=(0, 8 * max(shares.max(), 1.0)))
        panel.set_title(f"{place}, load {load:g}", fontsize=9)
        panel.set_xlabel("violations (%)", fontsize=8)
        panel.tick_params(labelsize=8)
    names = [style.policy(name)["label"] for name in table.index]
    style.name_rows(figure.axes[0], names)
    frame = table.set_axis(pd.Index(names, name="policy")).rename_axis(
        columns=["scenario", "load"]
    )
    frame = frame.melt(ignore_index=False, value_name="percent").reset_index()
    return Drawing(figure, frame)


def price_of_fairness(table: pd.DataFrame, kinds: Sequence[str]) -> Drawing:
    """Plot the cost of a bound on the gap, from `goals.price_of_fairness`.

    Left: violations of each of `kinds` and of all; right: goodput with its interval.
    """
    figure, left, right = style.axes(2, 3.0)
    places = np.arange(len(table))
    for kind in kinds:
        left.plot(places, table[kind], "o-", markersize=4, label=kind.replace("_", " "))
    left.plot(places, table["violations"], "P-", color=style.INK, label="all")
    left.set_ylabel("violations (%)")
    left.legend(fontsize=7)
    right.plot(places, table["goodput"], "P-", color=style.GREEN)
    ends = table["low"], table["high"]
    right.fill_between(places, *ends, color=style.GREEN, alpha=0.25)
    right.set_ylabel("on time, % of FIFO's saturation")
    gaps = ["none" if np.isinf(gap) else f"{gap:g}" for gap in table["gap"]]
    for panel in (left, right):
        panel.set_xticks(places, gaps)
        panel.set_xlabel("gap allowed between types (points)")
    shares = table[["gap", *kinds]].assign(all=table["violations"])
    frames = {
        "a": shares.melt("gap", var_name="type", value_name="percent"),
        "b": table[["gap", "goodput", "low", "high"]],
    }
    return Drawing(figure, stacked(frames))


# --- Robustness, and the live engine ---------------------------------------------
def beyond_fifo(table: pd.DataFrame) -> Drawing:
    """Violations in percent under each misestimation, a panel a load; FIFO is a bar.

    `table` is from `robustness.beyond_fifo`.
    """
    names = table["misestimation"].unique()
    loads = {f"load {load:g}": at for load, at in table.groupby("load", sort=False)}
    axis = {"xscale": style.symlog(0.1), "xlim": (-0.02, 150)}
    figure, drawn = style.panels(loads, 1.2 + 0.27 * len(names), **axis)
    for panel, at in drawn:
        fifo = at.drop_duplicates("misestimation")["fifo"]
        shown = {"fifo": (fifo, {"marker": "|", "s": 130})}
        for policy, rows in at.groupby("policy", sort=False):
            shown[str(policy)] = rows["percent"], {"s": 22}
        for policy, (percent, mark) in shown.items():
            look = {key: style.policy(policy)[key] for key in ("color", "label")}
            panel.scatter(percent, range(len(names)), **mark, **look)
        panel.set_xticks([0, 0.1, 1, 10, 100], ["0", "", "1", "", "100"])
        panel.set_xlabel("violations (%)")
    style.name_rows(figure.axes[0], list(names))
    style.legend_below(figure)
    columns = ["load", "misestimation", "policy", "percent", "fifo"]
    frame = table.filter(columns).rename(columns={"fifo": "fifo_percent"})
    return Drawing(figure, frame)


def through_a_crowd(shares: pd.DataFrame, last_s: float) -> Drawing:
    """Violations over time, and again around the end of a crowd of `last_s`.

    `shares` is from `robustness.through_a_crowd`; the crowd is shaded.
    """
    figure, whole, end = style.axes(2, height_in=3.6)
    at_ms, percent = 1e3 * shares.index.to_numpy(), 100 * shares
    for panel in (whole, end):
        for policy in shares:
            look = style.policy(str(policy)) | {"marker": None, "linewidth": 1.2}
            panel.step(at_ms, percent[policy], where="post", **look)
        panel.axvspan(-1e3 * last_s, 0, color=style.GRAY, alpha=0.15, linewidth=0)
        panel.set_xlabel("arrival, from the end of the crowd (ms)")
    end.set_xlim(-20, min(100, at_ms[-1]))
    end.set(yscale=style.symlog(1), ylim=(0, 150))
    whole.set_ylabel("violations (% of the arrivals of a window)")
    style.legend_below(figure)
    frame = percent.set_axis(at_ms).rename_axis("arrival_ms").reset_index()
    frame = frame.melt("arrival_ms", var_name="policy", value_name="percent")
    return Drawing(figure, frame)


def beside_measured(table: pd.DataFrame) -> Drawing:
    """Violations of every live run's place, simulated against measured, by engine.

    `table` is `live.beside_measured`'s, whose intervals of the error are the bars.
    Corrected policies have open markers; shaded is what counts as near, and paler are
    the runs with more than one worker.
    """
    names = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
    ends = {"xlim": (-3, 103), "ylim": (-3, 103), "aspect": "equal"}
    figure, drawn = style.panels(
        {names[engine]: table.loc[engine] for engine in table.index.unique("engine")},
        3.9,
        xlabel="measured (% of arrivals)",
        ylabel="simulated (% of arrivals)",
        **ends,
    )
    truth = np.linspace(0, 100, 201)
    near = np.maximum(100 * live.ABSOLUTE_TOLERANCE, live.RELATIVE_TOLERANCE * truth)
    for panel, runs in drawn:
        look = {"color": style.GRAY, "alpha": 0.2, "linewidth": 0}
        panel.fill_between(truth, truth - near, truth + near, **look)
        panel.plot(truth, truth, color=style.GRAY, linewidth=0.8)
        for (policy, workers), rows in runs.groupby(["policy", "workers"], sort=False):
            look = style.policy(policy) | {"linestyle": "", "markersize": 5}
            if "-corrected" in policy:
                look["markerfacecolor"] = "none"
            look |= {} if workers == 1 else {"alpha": 0.4, "label": None}
            around = style.whiskers(rows["error"], rows["low"], rows["high"])
            panel.errorbar(
                rows["measured"], rows["simulated"], yerr=around, elinewidth=0.6, **look
            )
    style.legend_below(figure)
    columns = ["policy", "workers", "measured", "simulated", "error", "low", "high"]
    frame = table.reset_index().filter(["engine", *columns])
    units = {name: f"{name}_percent" for name in columns[2:]}
    return Drawing(figure, frame.rename(columns=units))
