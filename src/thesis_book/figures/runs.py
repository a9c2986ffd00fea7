"""Figures of runs, transaction by transaction: schedules, queues, latencies."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from thesis_book.figures import style
from thesis_book.figures.estimators import by_type
from thesis_book.figures.export import Drawing, stacked
from thesis_lib.sequencer.core.trace import F64, History, Trace

UNIT = "FIFO's saturation"  # a load of one
LOAD = f"load, of {UNIT}"


def worker_timelines(traces: dict[str, Trace], window_s: float) -> Drawing:
    """Which worker ran what, and when, within `window_s` from the middle of the run."""
    ends = {"xlim": (0, 1e3 * window_s), "xlabel": "time (ms)", "ylabel": "worker"}
    figure, drawn = style.panels(traces, 2.4, share="x", **ends)
    colors: dict[str, str] = {}
    frames = []
    for run, (panel, trace) in zip(traces, drawn, strict=True):
        stages = ("sequence_s", "lock_wait_s", "queue_s")
        start_s = trace.arrival_s + sum(trace.measured[stage] for stage in stages)
        start_s = start_s - np.median(start_s)
        seen = (start_s + trace.service_s > 0) & (start_s < window_s)
        for kind, rows in by_type(trace).items():
            mine = rows & seen
            bars = pd.DataFrame(
                {
                    "worker": trace.measured["worker"][mine],
                    "service_ms": 1e3 * trace.service_s[mine],
                    "start_ms": 1e3 * start_s[mine],
                }
            )
            frames.append(bars.assign(run=run, type=kind))
            panel.barh(
                bars["worker"], bars["service_ms"], left=bars["start_ms"], linewidth=0,
                color=colors.setdefault(kind, f"C{len(colors)}"),
            )  # fmt: skip
        panel.set_yticks(range(round(trace.measured["worker"].max()) + 1))
        panel.grid(axis="y", visible=False)
    patches = [Patch(color=color, label=kind) for kind, color in colors.items()]
    style.legend_below(figure, patches, ncols=5, fontsize=7)
    return Drawing(figure, pd.concat(frames, ignore_index=True))


def coordinated_omission(
    arrival_s: F64, clocks_s: Mapping[str, F64], window_s: tuple[float, float]
) -> Drawing:
    """The same answers by several clocks: about a stall, and what share is slower.

    Each clock has the latencies (n,) of all; the left panel shows those due within
    `window_s`.
    """
    figure, left, right = style.axes(2, height_in=3.0)
    rows = (arrival_s >= window_s[0]) & (arrival_s < window_s[1])
    at_s, colors = arrival_s[rows] - window_s[0], (style.VERMILION, style.BLUE)
    for (name, latency_s), color in zip(clocks_s.items(), colors, strict=True):
        look: dict[str, Any] = {"markersize": 3, "label": name, "color": color}
        look["rasterized"] = len(at_s) > 1_000
        left.plot(at_s, 1e3 * latency_s[rows], ".", **look)
        style.slower(right, latency_s, color=color)
    left.legend(fontsize=8, loc="upper right", markerscale=3)
    left.set(xlabel="due at (s)", ylabel="latency (ms)")
    right.set(xscale="log", xlabel="latency (ms)")
    style.log_ticks(right.xaxis, (1,))
    answers = {
        name: pd.DataFrame({"due_at_s": at_s, "latency_ms": 1e3 * latency_s[rows]})
        for name, latency_s in clocks_s.items()
    }
    shares = {
        name: style.distribution("latency_ms", 1e3 * latency_s)
        for name, latency_s in clocks_s.items()
    }
    frames = {"a": stacked(answers, "clock"), "b": stacked(shares, "clock")}
    return Drawing(figure, stacked(frames))


def collapse(
    runs: Mapping[float, History], slo_s: float, on_time: Mapping[float, float]
) -> Drawing:
    """Latency over time at each load, and the share of answers on time against load.

    `runs` are first come first served, by load; `on_time` are their shares, for more
    loads. Dashed lines are what arithmetic says: a queue that grows by (load - 1), and
    1 / load, what cores that are never idle answer of transactions that are alike.
    """
    figure, left, right = style.axes(2, height_in=3.2)
    latencies = {}
    for load, history in runs.items():
        block = max(len(history.arrival_s) // 150, 1)
        n = len(history.arrival_s) // block * block
        at_s, latency_s = (
            np.median(column[:n].reshape(-1, block), axis=1)
            for column in (history.arrival_s, history.latency_s)
        )
        at_load = pd.DataFrame({"arrival_s": at_s, "latency_ms": 1e3 * latency_s})
        (line,) = left.plot(at_s, at_load["latency_ms"], label=f"{load:g}")
        if load > 1:
            at_load["arithmetic_ms"] = 1e3 * (load - 1) * at_s
            look = {"color": line.get_color(), "linewidth": 1}
            left.plot(at_s, at_load["arithmetic_ms"], "--", **look)
        latencies[load] = at_load
    left.axhline(1e3 * slo_s, **style.RULE)
    left.set(yscale="log", xlabel="arrival (s)", ylabel="latency (ms)")
    left.set_xlim(0, min(history.arrival_s[-1] for history in runs.values()))
    left.set_ylim(0.1, None)  # room for the legend
    style.log_ticks(left.yaxis, (1,))
    left.legend(title="load", fontsize=7, title_fontsize=7, loc="lower right", ncols=4)
    percent = 100 * pd.Series(on_time)
    right.plot(percent, ".-", color=style.GRAY, label="first in, first out")
    left_over = 100 / np.maximum(percent.index, 1)
    look = {"color": style.INK, "label": "never idle, all alike"}
    right.plot(percent.index, left_over, "--", **look)
    right.axvline(1.0, color=style.GRAY, linewidth=0.8)
    right.set_ylim(0, 105)
    right.set(xlabel=LOAD, ylabel="on time (% of arrivals)")
    right.legend(fontsize=7, loc="center right")
    shares = {"on_time_percent": percent, "never_idle_percent": left_over}
    frames = {
        "a": stacked(latencies, "load").assign(slo_ms=1e3 * slo_s),
        "b": pd.DataFrame(shares).rename_axis("load").reset_index(),
    }
    return Drawing(figure, stacked(frames))


_BLUE = {"edgecolor": style.BLUE}
_LOOKS = {  # of a transaction and of its number, by its state
    **dict.fromkeys(("holds", "runs"), (_BLUE | {"facecolor": style.BLUE}, "white")),
    "waits": (_BLUE, style.BLUE),
    "rejected": ({"edgecolor": style.GRAY, "linestyle": ":"}, style.GRAY),
}
_ADDED = {"edgecolor": style.VERMILION, "linewidth": 1.2}


def deterministic_database(history: History, bookings: pd.DataFrame) -> Drawing:
    """The way of one batch through a deterministic database, from clients to storage.

    `history` says its log and what was rejected; `bookings` are the locks of the log
    (`tables.worked_example.bookings`): who holds all of its locks runs. What the thesis
    adds has a colour of its own.
    """
    n, log = len(history.dropped), history.log.tolist()
    refused = np.flatnonzero(history.dropped).tolist()
    queues = {str(row): at for row, at in bookings.groupby("row")}
    waits = {*bookings["transaction"][~bookings["holds"]]}
    queues_y = 5.15 + 0.58 * np.arange(len(queues))
    work, end = queues_y[-1] + 1.2, queues_y[-1] + 2.3
    names = {
        "clients": 0, "estimator": 0.87, "sequencer": 2.1, "log": 3.45,
        "scheduler": float(queues_y.mean()), "workers": work, "storage": end,
    }  # fmt: skip
    figure, panel = style.canvas(4.4, names, (-0.1, n + 0.1), (end + 0.3, -0.3))
    box, flow, say = (
        partial(draw, panel) for draw in (style.box, style.arrow, style.say)
    )
    _sequencing(panel, log, refused)
    for i, rows in bookings.groupby("transaction")["row"].agg(" ".join).items():
        say(log.index(i) + 0.5, 3.93, rows, style="italic")
    flow((2.5, 4.15), (2.5, 4.5))
    for column, word in enumerate(["lock", "holds", "waits"]):
        say(column + 0.5, 4.7, word, color=style.GRAY)
    for y, (row, queue) in zip(queues_y, queues.items(), strict=True):
        say(0.5, y, row, style="italic")
        for column, (i, holds) in enumerate(queue[["transaction", "holds"]].values, 1):
            _cell(panel, column, y, i, "holds" if holds else "waits")
    flow((2.5, work - 0.85), (2.5, work - 0.35))
    say(2.7, work - 0.6, "holds all locks", ha="left")
    for column, i in enumerate((i for i in log if i not in waits), 1):
        _cell(panel, column, work, i, "runs")
    flow((2.5, work + 0.3), (2.5, end - 0.3))
    say(2.7, work + 0.55, "commits", ha="left")
    box((2.3, end), (4.6, 0.5), f"state of {', '.join(queues)}", "state")
    say(4.9, end, "=")
    same = {"log": queues_y[0], "queues": queues_y[-1], "timing": work, "state": end}
    _replica(panel, n, same)
    states = ["in the log"] * len(log) + ["rejected"] * len(refused)
    frames = {
        "log": pd.DataFrame({"transaction": [*log, *refused], "state": states}),
        "lock queues": bookings[["transaction", "row", "holds"]],
    }
    return Drawing(figure, stacked(frames, "shown"))


def _cell(panel: Axes, column: int, y: float, i: int, state: str) -> None:
    """A transaction of the drawing, in the look of its state."""
    look, color = _LOOKS.get(state, ({}, style.INK))
    size = 1.0 if state == "in the log" else 0.84, 0.5
    style.box(panel, (column + 0.5, y), size, f"{i}", f"{i} {state}", color, **look)


def _sequencing(panel: Axes, log: list[int], refused: list[int]) -> None:
    """The way from the clients to the log, through what the thesis adds."""
    n = len(log) + len(refused)
    for column, i in enumerate([*log, *refused]):
        color = style.GRAY if i in refused else style.INK
        way = (i, 0.25), (i, 1.93), (column, 2.7), (column, 3.2)
        style.arrow(panel, *((x + 0.5, y) for x, y in way), color=color)
        _cell(panel, i, 0, i, "asks")
        _cell(panel, column, 3.45, i, "rejected" if i in refused else "in the log")
    if refused:
        style.say(panel, n - len(refused) / 2, 3.93, "rejected", color=style.GRAY)
    asks = {0.87: "how long will each take?", 1.6: "who goes first, who is rejected?"}
    for y, question in asks.items():
        words = f"the thesis: {question}"
        style.box(panel, (n / 2, y), (n, 0.5), words, facecolor="white", **_ADDED)
    style.box(panel, (n / 2, 2.1), (n, 1.5), label="sequencer", **_ADDED)


def _replica(panel: Axes, right: float, same: Mapping[str, float]) -> None:
    """A replica beside the scheduler; `same` says at which y its parts are compared."""
    left, top, bottom = 5.2, 4.5, same["state"] + 0.25
    middle, grey = (left + right) / 2, {"linestyle": "--", "edgecolor": style.GRAY}
    size = right - left, bottom - top
    style.box(panel, (middle, (top + bottom) / 2), size, label="replica", **grey)
    way = (2.5, 4.3), (middle, 4.3), (middle, top)
    style.arrow(panel, *way, color=style.GRAY, linestyle="--")
    style.say(panel, middle, 4.7, "replica", weight="bold")
    for part, y in same.items():
        words = f"{'any' if part == 'timing' else 'same'} {part}"
        style.say(panel, middle, y, words)


_FATES = {"on time": style.GREEN, "late": style.VERMILION}
_CROSS: dict[str, Any] = {"marker": "x", "color": style.GRAY, "label": "dropped"}


def schedules(histories: Mapping[str, History], writes: Sequence[str]) -> Drawing:
    """Schedules of one small batch, one beside the other, transactions in log order.

    A thin line leads from the arrival to the start, a bar is the execution and names
    the rows that are written, a tick is the deadline. What is dropped stands below,
    with a cross. From the second panel on, a word marks each transaction that violates
    its objective in one panel only, this or the first.
    """
    labeled = {style.policy(name)["label"]: each for name, each in histories.items()}
    axis = {"xlabel": "time (ms)", "ylabel": "transaction, in log order"}
    figure, drawn = style.panels(labeled, 2.5, share="x", **axis)
    (_, first), *_ = drawn
    moments = ("arrival", "deadline", "decided", "start", "finish")
    frames = {}
    for label, (panel, history) in zip(labeled, drawn, strict=True):
        rows = [*history.log.tolist(), *np.flatnonzero(history.dropped).tolist()]
        style.name_rows(panel, [str(i) for i in rows])
        at_ms = {f"{at}_ms": 1e3 * getattr(history, f"{at}_s")[rows] for at in moments}
        fate = {"late": history.late[rows], "dropped": history.dropped[rows]}
        frames[label] = pd.DataFrame({"transaction": rows, **at_ms, **fate})
        for y, i in enumerate(rows):
            _execution(panel, y, history, i, str(writes[i]))
            if history.violated[i] != first.violated[i]:
                word = "lost" if history.violated[i] else "saved"
                end_ms = 1e3 * np.fmax(history.deadline_s[i], history.finish_s[i])
                look = {"va": "center", "ha": "center", "style": "italic"}
                style.note(panel, word, (end_ms, y), (18, 0), fontsize=7.5, **look)
    fates = [Patch(color=color, label=fate) for fate, color in _FATES.items()]
    cross = Line2D([], [], linestyle="", **_CROSS)
    style.legend_below(figure, [*fates, cross], ncols=3, fontsize="medium")
    figure.draw_without_rendering()
    for panel, _ in drawn:
        labels = [text for text in panel.texts if text.get_weight() == "bold"]
        for bar, label in zip(panel.patches, labels, strict=True):
            if label.get_window_extent().width > 0.9 * bar.get_window_extent().width:
                halo = withStroke(linewidth=1.5, foreground="white")
                label.set(color=style.INK, path_effects=[halo])
    return Drawing(figure, stacked(frames, "policy"))


def _execution(panel: Axes, y: int, history: History, i: int, rows: str) -> None:
    """A row of a schedule: arrival, deadline, and execution or where it was dropped."""
    arrival_ms, deadline_ms, decided_ms, start_ms, finish_ms = (
        1e3 * getattr(history, column)[i]
        for column in ("arrival_s", "deadline_s", "decided_s", "start_s", "finish_s")
    )
    look: dict[str, Any] = {"color": style.INK, "linewidth": 1}
    panel.vlines(deadline_ms, y - 0.42, y + 0.42, **look)
    if history.dropped[i]:
        start_ms = decided_ms
        panel.plot(start_ms, y, zorder=3, **_CROSS)
    else:
        fate = "late" if history.late[i] else "on time"
        width_ms = finish_ms - start_ms
        bars = panel.barh(y, width_ms, 0.7, start_ms, color=_FATES[fate])
        panel.bar_label(
            bars, [rows], label_type="center", fontsize=7, color="white",
            weight="bold",
        )  # fmt: skip
    look = {"color": style.GRAY, "linewidth": 0.8}
    panel.hlines(y, arrival_ms, start_ms, **look)
