"""Figures of memory and time: plans, rings, streaming, speculation."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import ConnectionPatch, Patch
from numpy.typing import ArrayLike

from thesis_book.figures import style
from thesis_book.figures.export import Drawing, stacked
from thesis_lib.common.units import GiB, MiB
from thesis_lib.sequencer.core.trace import F64

# A state, a tool or a way to copy keeps its colour, and its marker, on every page.
PASS_COLORS = (style.BLUE, style.VERMILION, style.GREEN)  # in turn
SPAN_COLORS = {
    "read": style.BLUE,
    "copy": style.ORANGE,
    "compute": style.GREEN,
    "wait": style.VERMILION,
}
PEER_LOOKS = {
    "streamed": (style.GREEN, "o"),
    "accelerate": (style.VERMILION, "s"),
    "AirLLM": (style.PURPLE, "^"),
    "mmap": (style.BLUE, "D"),
}
LIMIT_LOOKS = {"compute": (style.BLUE, "o"), "disk": (style.VERMILION, "s")}
COPY_LOOKS = {  # how host memory crosses the link
    "pinned": (style.GREEN, "o"),
    "unknown": (style.GRAY, "D"),
    "pageable": (style.VERMILION, "s"),
}
LIMIT: dict[str, Any] = {"color": style.INK, "linestyle": "--"}


def _peer(name: str) -> tuple[str, str]:
    """Colour and marker of the tool that a system's name holds."""
    looks = (look for tool, look in PEER_LOOKS.items() if tool in name)
    return next(looks, (style.GRAY, "v"))


# --- Memory ----------------------------------------------------------------------
def memory_parts(
    parts_bytes: Mapping[str, int], model_bytes: int, limit_bytes: int
) -> Drawing:
    """A plan's parts beside the whole model, and the limit that they must not cross.

    Where the limit is a small share of the model, the plan has an axis of its own,
    and the shaded cone says which part of the upper one it shows.
    """
    unit, name = (GiB, "GiB") if limit_bytes >= GiB else (MiB, "MiB")
    limit, zooms = limit_bytes / unit, model_bytes > 4 * limit_bytes
    figure, *drawn = style.axes(rows=1 + zooms, height_in=3.0 if zooms else 2.2)
    whole, plan = drawn[0], drawn[-1]
    whole.barh("resident model", model_bytes / unit, color=style.GRAY)
    left = 0.0
    for part, n_bytes in parts_bytes.items():
        plan.barh("streamed plan", n_bytes / unit, left=left, label=part)
        left += n_bytes / unit
    for panel in {whole, plan}:
        budget = f"budget, {limit:g} {name}" if panel is plan else None
        panel.axvline(limit, label=budget, **LIMIT)
        panel.grid(axis="y", visible=False)
    if zooms:
        plan.set_xlim(0, 1.12 * limit)
        whole.xaxis.tick_top()
        whole.set_xlabel(f"whole model ({name})")
        whole.xaxis.set_label_position("top")
        for end in plan.get_xlim():
            cone = ConnectionPatch(
                (end, 0), (end, 1), whole.get_xaxis_transform(),
                plan.get_xaxis_transform(), axesA=whole, axesB=plan, color=style.GRAY,
                linewidth=0.8,
            )  # fmt: skip
            figure.add_artist(cone)
    else:
        plan.invert_yaxis()
    plan.set_xlabel(f"device memory ({name})")
    style.legend_below(figure, ncols=3, fontsize="medium")
    rows = [["resident model", "model", model_bytes]]
    rows += [["streamed plan", *part] for part in parts_bytes.items()]
    frame = pd.DataFrame(rows, columns=["bar", "part", name])
    frame[name] /= unit
    return Drawing(figure, frame.assign(**{f"budget {name}": limit}))


def memory_against_time(runs: pd.DataFrame, limit_bytes: float) -> Drawing:
    """Peak memory against seconds a token, a point for each system; both are logs.

    `runs` has a row for each system with `peak_bytes`, `s_per_token`, `low_s` and
    `high_s`; what lies right of the dashed line did not keep the limit. A system
    without a time, which was killed at its limit, is left out.
    """
    runs = runs.dropna(subset=["s_per_token"])
    figure, panel = style.axes(height_in=3.2)
    for name, row in runs.iterrows():
        color, marker = _peer(str(name))
        at = row.peak_bytes / GiB, row.s_per_token
        ends = style.whiskers([row.s_per_token], [row.low_s], [row.high_s])
        panel.errorbar(*at, yerr=ends, fmt=marker, color=color, capsize=3)
        style.note(
            panel, style.printed(str(name)), at, ha="center", va="center",
            color=color, fontsize=8, bbox=style.UNDER,
        )  # fmt: skip
    most_bytes = max(limit_bytes, runs["peak_bytes"].max())
    panel.set(
        xscale="log",
        yscale="log",
        xlim=(runs["peak_bytes"].min() / GiB / 2, 1.6 * most_bytes / GiB),
        ylim=(runs["low_s"].min() / 1.5, runs["high_s"].max() * 1.5),
        xlabel="peak memory (GiB)",
        ylabel="time per token (s)",
    )
    panel.axvline(limit_bytes / GiB, label=f"limit, {limit_bytes / GiB:g} GiB", **LIMIT)
    style.log_ticks(panel.xaxis)
    style.log_ticks(panel.yaxis)
    panel.legend(loc="upper left")
    style.move_apart(panel, beside=True)
    frame = pd.DataFrame(
        {
            "system": [style.printed(str(name)) for name in runs.index],
            "peak_gib": runs["peak_bytes"] / GiB,
            **runs[["s_per_token", "low_s", "high_s"]],
            "limit_gib": limit_bytes / GiB,
        }
    )
    return Drawing(figure, frame)


def memory_over_time(runs: Mapping[str, F64], limit_bytes: float) -> Drawing:
    """Plot the kernel's count of each system's memory from its start, and its limit.

    `runs` are samples (n, 3) by system: seconds, bytes held with the page cache, and
    bytes held without it, which are dotted.
    """
    named = {
        style.printed(name).replace(", ", ",\n"): (name, run)
        for name, run in runs.items()
    }
    labels = {"xlabel": "time (s)", "ylabel": "memory (GiB)"}
    figure, drawn = style.panels(named, 2.6, **labels)
    frames = {}
    for panel, (name, samples) in drawn:
        color, _ = _peer(name)
        seconds, held, private = samples.T
        look = {"color": color, "linewidth": 1.2}
        panel.plot(seconds, held / GiB, **look)
        panel.plot(seconds, private / GiB, ":", **look)
        gib = {"all_gib": held / GiB, "without_page_cache_gib": private / GiB}
        frames[style.printed(name)] = pd.DataFrame({"time_s": seconds, **gib})
        panel.axhline(limit_bytes / GiB, linewidth=1, **LIMIT)
        panel.set_ylim(bottom=0)
        panel.tick_params(labelsize=7)
    shown = {"all that is counted": "-", "without page cache": ":", "limit": "--"}
    lines = [
        Line2D([], [], color=style.INK, ls=ls, label=name) for name, ls in shown.items()
    ]
    style.legend_below(figure, lines, ncols=3, fontsize=8)
    frame = stacked(frames, "system").assign(limit_gib=limit_bytes / GiB)
    return Drawing(figure, frame)


def time_against_memory(
    device_bytes: Sequence[float],
    step_s: Mapping[str, Sequence[float]],
    least_bytes: float,
    model_bytes: float,
) -> Drawing:
    """Predicted seconds a token as the device grows, one line for each label."""
    figure, panel = style.axes()
    for name, seconds in step_s.items():
        gibibytes = np.divide(device_bytes, GiB)
        panel.plot(gibibytes, seconds, drawstyle="steps-post", label=name)
    panel.axvspan(0, least_bytes / GiB, color=style.GRAY, alpha=0.25, label="rejected")
    panel.axvline(model_bytes / GiB, color=style.INK, linestyle=":", label="weights")
    panel.set(xlabel="device memory (GiB)", ylabel="predicted time per token (s)")
    panel.set_xlim(0, max(device_bytes) / GiB)
    panel.set_ylim(bottom=0)
    style.legend_below(figure)
    frame = pd.DataFrame({"device_gib": np.divide(device_bytes, GiB), **step_s})
    frame = frame.melt("device_gib", var_name="run", value_name="s_per_token")
    ends = {"least_gib": least_bytes / GiB, "weights_gib": model_bytes / GiB}
    return Drawing(figure, frame.assign(**ends))


# --- What happens when -------------------------------------------------------------
def ring_picture(visits: Sequence[Any], until_s: float) -> Drawing:
    """Which layer each buffer of the ring receives, holds and computes, over time.

    `visits` are those of `tables.ring_schedule`, drawn up to a time. A row is a buffer,
    a colour a pass; numbers are layers, counted from one.
    """
    buffers = 1 + max(visit.buffer for visit in visits)
    names = [f"buffer {number}" for number in range(buffers)]
    names += ["resident"] * any(visit.buffer < 0 for visit in visits)
    figure, panel = style.axes(height_in=1.4 + 0.42 * len(names))
    rows: list[list[Any]] = []
    for visit in visits:
        moves = visit.buffer >= 0  # a resident layer only computes
        row = visit.buffer if moves else buffers
        spans = [(visit.starts_s, visit.ends_s, 0.72, 1.0)]
        if moves:
            arrives = (visit.receives_s, visit.ready_s, 0.72, 0.3)
            spans = [arrives, (visit.ready_s, visit.starts_s, 0.14, 0.6), *spans]
        states = ("receives", "holds", "computes")[-len(spans) :]
        for (start, stop, height, alpha), state in zip(spans, states, strict=True):
            if start < min(stop, until_s):
                color = PASS_COLORS[visit.step % len(PASS_COLORS)]
                look = {"color": color, "alpha": alpha, "linewidth": 0}
                panel.barh(row, stop - start, height, start, **look)
                rows.append([names[row], visit.step + 1, visit.layer + 1, state])
                rows[-1] += [start, stop]
        # the number stands where a layer arrives, or where one that stays computes
        middle_s, shade = sum(spans[0][:2]) / 2, style.INK if moves else "white"
        if middle_s < until_s:
            text = {"ha": "center", "va": "center", "fontsize": 7, "color": shade}
            panel.text(middle_s, row, str(visit.layer + 1), **text)
    passes = pd.Series({visit.step: visit.ends_s for visit in visits})
    for done_s in passes[passes < until_s]:
        panel.axvline(done_s, color=style.INK, linestyle=":", linewidth=1)
    style.name_rows(panel, names)
    panel.set(xlim=(0, until_s), xlabel="time (s)")
    states = [
        Patch(color=style.INK, alpha=0.3, label="receives"),
        Line2D([], [], color=style.INK, alpha=0.6, linewidth=3, label="holds"),
        Patch(color=style.INK, label="computes"),
    ]
    turns = zip(passes.index, PASS_COLORS, strict=False)
    states += [Patch(color=color, label=f"pass {step + 1}") for step, color in turns]
    style.legend_below(figure, states, ncols=6, fontsize=8)
    columns = ["buffer", "pass", "layer", "state", "start_s", "end_s"]
    return Drawing(figure, pd.DataFrame(rows, columns=columns))


def _in_lanes(spans: Iterable[Any]) -> list[tuple[int, Any]]:
    """Spans by their start, each with the first lane in which no other one is left."""
    ends_s: list[float] = []  # of the last span in each lane
    placed = []
    for span in sorted(spans, key=lambda span: span.start_s):
        free = (lane for lane, end in enumerate(ends_s) if end <= span.start_s)
        lane = next(free, len(ends_s))
        ends_s[lane : lane + 1] = [span.end_s]
        placed.append((lane, span))
    return placed


def token_timeline(spans: Sequence[Any]) -> Drawing:
    """Plot the timeline of one step, a row for each kind of span.

    `spans` have `kind` (read, copy, compute or wait), `layer`, `start_s` and `end_s`;
    time is counted from the first of them. Reads that overlap lie above each other.
    """
    kinds = [kind for kind in SPAN_COLORS if any(s.kind == kind for s in spans)]
    figure, panel = style.axes(height_in=0.9 + 0.5 * len(kinds))
    zero_s = min(span.start_s for span in spans)
    for row, kind in enumerate(kinds):
        placed = _in_lanes(span for span in spans if span.kind == kind)
        height = 0.8 / (1 + max(lane for lane, _ in placed))
        for lane, span in placed:
            panel.barh(
                row - 0.4 + (lane + 0.5) * height,
                1e3 * (span.end_s - span.start_s),
                0.9 * height,
                1e3 * (span.start_s - zero_s),
                color=SPAN_COLORS[kind],
                alpha=0.55 + 0.4 * (span.layer % 2),  # neighbours are told apart
                linewidth=0,
            )
    style.name_rows(panel, kinds)
    end_s = max(span.end_s for span in spans)
    panel.set(xlim=(0, 1e3 * (end_s - zero_s)), xlabel="time (ms)")
    rows = [
        [kind, span.layer, 1e3 * (span.start_s - zero_s), 1e3 * (span.end_s - zero_s)]
        for kind in kinds
        for span in spans
        if span.kind == kind
    ]
    columns = ["kind", "layer", "start_ms", "end_ms"]
    return Drawing(figure, pd.DataFrame(rows, columns=columns))


# --- Time of a step ----------------------------------------------------------------
def step_times(seconds: Mapping[str, ArrayLike]) -> Drawing:
    """Milliseconds of a decoding step, a row a name: every sample, and the median."""
    figure, panel = style.axes(height_in=0.9 + 0.4 * len(seconds))
    for row, samples in enumerate(seconds.values()):
        times_ms = 1e3 * np.asarray(samples, float)
        panel.plot(times_ms, np.full(len(times_ms), row), "o", alpha=0.5)
        panel.plot(np.median(times_ms), row, "|", color=style.INK, markersize=18)
    style.name_rows(panel, [*map(style.printed, seconds)])
    panel.set_xlim(left=0)
    panel.set_xlabel("time of one decoding step (ms)")
    times = {
        style.printed(name): pd.DataFrame({"step_ms": 1e3 * np.asarray(samples, float)})
        for name, samples in seconds.items()
    }
    return Drawing(figure, stacked(times, "run"))


def predicted_times(plans: pd.DataFrame) -> Drawing:
    """Predicted seconds of a step against measured ones, a point for each plan.

    `plans` has `predicted_s`, `measured_s` and `limit`, one of LIMIT_LOOKS; the band is
    12 % to each side.
    """
    return _predictions(
        plans.assign(known_s=plans["measured_s"], kind="bound by " + plans["limit"]),
        {f"bound by {limit}": look for limit, look in LIMIT_LOOKS.items()},
        tolerance=0.12,
        xlabel="measured time of a step (s)",
    )


def published_times(table: pd.DataFrame, tolerance: float) -> Drawing:
    """Predicted against published time, a point a row, with the band of the goal.

    `table` has columns published_s, predicted_s and copy, one of COPY_LOOKS. Below the
    diagonal a system took longer than its link would have.
    """
    return _predictions(
        table.assign(known_s=table["published_s"], kind="copy " + table["copy"]),
        {f"copy {copy}": look for copy, look in COPY_LOOKS.items()},
        tolerance,
        xlabel="published (s), of a step or a whole run",
    )


def _predictions(
    table: pd.DataFrame,
    looks: Mapping[str, tuple[str, str]],
    tolerance: float,
    xlabel: str,
) -> Drawing:
    """Predicted against known seconds, both as logarithms, a look for each kind."""
    figure, panel = style.axes(height_in=3.5)
    times = table[["known_s", "predicted_s"]].to_numpy()
    ends = np.array([0.7 * times.min(), 1.4 * times.max()])
    near = ends * (1 - tolerance), ends * (1 + tolerance)
    look = {"color": style.GRAY, "alpha": 0.25, "linewidth": 0}
    panel.fill_between(ends, *near, label=f"within {100 * tolerance:.0f} %", **look)
    panel.plot(ends, ends, **style.RULE)
    for kind, (color, marker) in looks.items():
        rows = table[table["kind"] == kind]
        look = {"marker": marker, "color": color, "alpha": 0.8, "markersize": 5}
        panel.plot(rows.known_s, rows.predicted_s, linestyle="", label=kind, **look)
    panel.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    subs = (1, 2, 5) if ends[1] < 1_000 * ends[0] else (1,)
    style.log_ticks(panel.xaxis, subs)
    style.log_ticks(panel.yaxis, subs)
    panel.set(xlabel=xlabel, ylabel="predicted (s)")
    panel.legend(loc="upper left")
    return Drawing(figure, table.filter(["kind", "known_s", "predicted_s"]))


_LINE_COLORS = {
    "reading": SPAN_COLORS["read"],
    "computing": SPAN_COLORS["compute"],
}


def _name_line(
    panel: Axes, name: str, count: float, lines: Mapping[str, float]
) -> None:
    """Name a line at so many tokens, by where the `lines` are there in seconds."""
    above = lines[name] == max(lines.values())
    offset, side = ((0, 4), "right") if above else ((0, -11), "center")
    look = {"fontsize": 8, "color": _LINE_COLORS[name], "ha": side}
    style.note(panel, name, (count, lines[name]), offset, **look)


def roofline_stream(
    tokens: Sequence[float],
    measured_s: Mapping[str, Sequence[float]],
    io_s: float,
    weights_s: float,
    token_s: float,
    predicted: tuple[float, float, float],
    measured_at: float,
) -> Drawing:
    """Time of a pass against its tokens: the floor of reading and the line of compute.

    `io_s` is the drain, `weights_s` one pass over weights in memory and `token_s` the
    products of one token more; `predicted` is where they cross, with the ends of its
    interval, and `measured_at` where the measured ones do, drawn if it is between
    the first and the last of them. Both axes are logarithmic; the measured points (n,)
    belong to `tokens` (n,).
    """
    figure, panel = style.axes()
    at, low, high = predicted
    ends = [*tokens, at] if at > 0 else tokens
    span = np.geomspace(min(ends) / 1.5, max(ends) * 1.5, 200)
    compute_s = weights_s + token_s * span
    dashed = {"linestyle": "--", "linewidth": 1}
    panel.axhline(io_s, color=_LINE_COLORS["reading"], **dashed)
    panel.plot(span, compute_s, color=_LINE_COLORS["computing"], **dashed)
    panel.plot(span, np.maximum(io_s, compute_s), color=style.INK, label="predicted")
    for (name, seconds), marker, face in zip(
        measured_s.items(), style.MARKERS, (style.GREEN, "white"), strict=False
    ):
        panel.plot(tokens, seconds, marker, color=style.GREEN, mfc=face, label=name)
    if at > 0:
        panel.axvspan(low, high, color=style.GRAY, alpha=0.25, linewidth=0)
        panel.axvline(at, color=style.GRAY, linewidth=1, label="crossover, predicted")
    if tokens[0] <= measured_at <= tokens[-1]:
        panel.axvline(measured_at, color=style.INK, ls=":", label="crossover, measured")
    # Each name where its line is the lower one, and away from the points and the other.
    left, right = min(at, tokens[1]) if at > tokens[0] else tokens[1], tokens[-2]
    few = float(np.sqrt(tokens[0] * left))
    many = float(np.sqrt(right * tokens[-1])) if at < right else few
    for name, count in ("computing", few), ("reading", many):
        lines = {"computing": weights_s + token_s * count, "reading": io_s}
        _name_line(panel, name, count, lines)
    panel.set(xscale="log", yscale="log", xlim=(span[0], span[-1]), ymargin=0.12)
    style.log_ticks(panel.yaxis)
    pairs = zip(tokens, [*tokens[1:], np.inf], strict=True)
    panel.set_xticks(tokens, [f"{n:g}" if more > 1.4 * n else "" for n, more in pairs])
    panel.minorticks_off()
    panel.set_xlabel("new tokens in a pass, all sequences together")
    panel.set_ylabel("time of a pass (s)")
    style.legend_below(figure, ncols=3, fontsize=8)
    passes = pd.DataFrame({"tokens": tokens, **measured_s})
    crossings = {"predicted": at, "interval low": low, "interval high": high}
    crossings["measured"] = measured_at
    frames = {
        "measured": passes.melt("tokens", var_name="what", value_name="pass_s"),
        "reading": pd.DataFrame({"tokens": span, "pass_s": io_s}),
        "computing": pd.DataFrame({"tokens": span, "pass_s": compute_s}),
        "crossover": pd.DataFrame(crossings.items(), columns=["what", "tokens"]),
    }
    return Drawing(figure, stacked(frames, "shown"))


# --- Speculation -------------------------------------------------------------------
def expected_tokens(
    depths: Sequence[int], curves: Mapping[str, Sequence[float]]
) -> Drawing:
    """Expected tokens of a pass against its proposals, a named curve an acceptance."""
    figure, panel = style.axes(height_in=2.8)
    pd.DataFrame(curves, index=list(depths)).plot(ax=panel, marker="o", markersize=3)
    panel.set(xlabel="proposals of a pass", ylabel="expected tokens of a pass")
    panel.legend(loc="upper left")
    frame = pd.DataFrame({"proposals": list(depths), **curves})
    frame = frame.melt("proposals", var_name="curve", value_name="tokens_per_pass")
    return Drawing(figure, frame)


def speculation(table: pd.DataFrame) -> Drawing:
    """Tokens a pass and speed over plain decoding, a row for each way to propose.

    `table` is that of `tables.measurements.speculation`; bars are its intervals, and
    the dashed line is plain decoding.
    """
    columns = {
        "tokens a pass": ["tokens_per_pass", "low", "high"],
        "times plain decoding": ["times_faster", "times_low", "times_high"],
    }
    figure, *drawn = style.axes(2, height_in=0.9 + 0.4 * len(table), sharey=True)
    for panel, (name, ends) in zip(drawn, columns.items(), strict=True):
        value, low, high = table[ends].to_numpy().T
        panel.errorbar(
            value, range(len(table)), xerr=style.whiskers(value, low, high), fmt="o",
            color=style.BLUE, capsize=3,
        )  # fmt: skip
        panel.axvline(1, linestyle="--", **style.RULE)
        panel.set_xlabel(name)
    style.name_rows(drawn[0], list(table.index))
    shown = table[[name for ends in columns.values() for name in ends]]
    return Drawing(figure, shown.rename_axis("method").reset_index())
