"""Figures of the first and of the last chapter: two problems, what became of them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.patches import Patch

from thesis_book.figures import style
from thesis_book.figures.export import Drawing, stacked
from thesis_lib.common.units import MILLISECONDS
from thesis_lib.sequencer.core.trace import History

KINDS: dict[str, dict[str, Any]] = {  # the bar of a number, by how it was found
    "published": {"facecolor": "white", "edgecolor": style.GRAY},
    "simulated": {"facecolor": style.BLUE, "edgecolor": style.BLUE},
    "measured": {"facecolor": style.GREEN, "edgecolor": style.GREEN},
}


def two_limits(
    before: History, after: History, sizes_bytes: Mapping[str, float],
    device_bytes: float,
) -> Drawing:  # fmt: skip
    """Latencies of a batch beside its deadline, and bytes beside a device's memory.

    `before` and `after` are one batch, all of one objective, under two policies; what
    `after` rejects has no latency there. Sizes stand on a logarithmic scale.
    """
    figure, left, right = style.axes(2, height_in=2.9)
    rows = np.arange(len(before.latency_s))
    latencies = {}
    for history, name, shift in ((before, "fifo", -0.17), (after, "bid-price", 0.17)):
        look = style.policy(name) | {"linestyle": "", "markersize": 6}
        ran = ~history.dropped
        latency_ms = np.where(ran, history.latency_s, np.nan) / MILLISECONDS
        columns = {"transaction": rows, "latency_ms": latency_ms}
        latencies[name] = pd.DataFrame(columns)
        left.plot(history.latency_s[ran] / MILLISECONDS, rows[ran] + shift, **look)
        for row in rows[history.dropped]:
            text = {"va": "center", "color": look["color"], "fontsize": 9}
            left.text(0, row + shift, " rejected", **text)
    objective_s = float(before.deadline_s[0] - before.arrival_s[0])
    style.name_rows(left, [f"{row}" for row in rows])
    dashed = style.RULE | {"linestyle": "--", "label": "limit"}
    left.axvline(objective_s / MILLISECONDS, **dashed)
    left.set(xlabel="latency (ms)", ylabel="transaction")
    left.set_xlim(left=0)
    sizes = np.array([*sizes_bytes.values()]) / 1e9
    fits = sizes <= device_bytes / 1e9
    for chosen, color in ((fits, style.GREEN), (~fits, style.GRAY)):
        right.plot(sizes[chosen], np.flatnonzero(chosen), "s", color=color)
    style.name_rows(right, [*sizes_bytes])
    right.axvline(device_bytes / 1e9, **dashed)
    right.set(xscale="log", xlabel="memory (GB), logarithmic")
    right.set_xlim(sizes.min() / 2, 2 * sizes.max())
    style.log_ticks(right.xaxis, (1,))
    style.legend_below(figure)
    slo_ms, device_gb = objective_s / MILLISECONDS, device_bytes / 1e9
    models = pd.DataFrame({"model": list(sizes_bytes), "gigabytes": sizes})
    frames = {
        "a": stacked(latencies, "policy").assign(slo_ms=slo_ms),
        "b": models.assign(device_gigabytes=device_gb),
    }
    return Drawing(figure, stacked(frames))


def headlines(results: pd.DataFrame) -> Drawing:
    """Results beside what was published and what nothing can pass: a panel an axis.

    `results` has a row a bar: axis, says, value, low and high, limit (each NaN where
    there is none), and kind, one of KINDS. What a bar says stands above it with its
    value, which so is not taken for the limit behind it.
    """
    style.theme()
    panels = dict([*results.groupby("axis", sort=False)])
    figure, *drawn = style.axes(
        rows=len(panels), height_in=0.3 + 0.5 * len(panels) + 0.34 * len(results),
        height_ratios=[0.4 + len(rows) for rows in panels.values()],
    )  # fmt: skip
    figure.set_figwidth(5.2)
    for panel, (axis, rows) in zip(drawn, panels.items(), strict=True):
        rows = rows.assign(row=range(len(rows)))
        sure = rows.dropna(subset=["low", "high"])
        ends = style.whiskers(sure["value"], sure["low"], sure["high"])
        panel.errorbar(
            sure["value"], sure["row"], xerr=ends, fmt="|", color=style.INK, ms=4,
            elinewidth=1,
        )  # fmt: skip
        for bar in rows.to_dict("records"):
            label = f"{bar['value']:z.1f}".replace("-", "\N{MINUS SIGN}")
            row = bar["row"]
            panel.barh(row, bar["value"], 0.42, **KINDS[bar["kind"]])
            style.note(
                panel, f"{bar['says']}: {label}", (0, row - 0.42), (3, 0), va="center",
                fontsize=8, xycoords=("axes fraction", "data"), bbox=style.UNDER,
            )  # fmt: skip
        bound = rows.dropna(subset=["limit"])
        ends = bound["row"] - 0.3, bound["row"] + 0.3
        look = {"linestyle": ":", "linewidth": 1.6, "label": "limit"}
        panel.vlines(bound["limit"], *ends, **style.RULE | look)
        panel.axvline(0, **style.RULE)
        panel.set(xlabel=axis, ylim=(len(rows) - 0.6, -0.75), yticks=[])
        panel.set_xlim(right=1.2 * rows[["value", "high", "limit"]].max().max())
    shown = [Patch(label=kind, **look) for kind, look in KINDS.items()]
    style.legend_below(figure, [*shown, drawn[0].collections[-1]])
    columns = ["axis", "says", "kind", "value", "low", "high", "limit"]
    return Drawing(figure, results.filter(columns))
