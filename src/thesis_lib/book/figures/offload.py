"""Figures of memory and time: plans, rings, streaming, speculation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import ConnectionPatch, Patch
from matplotlib.ticker import NullLocator
from numpy.typing import ArrayLike

from thesis_lib.book.figures.style import (
    COLOURS,
    GREY,
    INK,
    _move_apart,
    _round_ticks,
    axes,
    subplots,
)
from thesis_lib.common.units import GiB, MiB
from thesis_lib.sequencer.core.trace import F64


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
    figure, drawn = subplots(1 + zooms, 1, 3.0 if zooms else 2.2)
    whole, plan = drawn[0, 0], drawn[-1, 0]
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
    "streamed": COLOURS["streamed"],
    "accelerate": "#d55e00",
    "AirLLM": "#cc79a7",
    "mmap": "#0072b2",
}
PEER_MARKERS = {"streamed": "o", "accelerate": "s", "AirLLM": "^", "mmap": "D"}


def _peer(name: str) -> tuple[str, str]:
    """Colour and marker of the tool that a system's name holds."""
    tool = next((tool for tool in PEER_COLOURS if tool in name), "")
    return PEER_COLOURS.get(tool, GREY), PEER_MARKERS.get(tool, "v")


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
        moves = visit.buffer >= 0  # a resident layer only computes
        row = visit.buffer if moves else buffers
        colour = RING_COLOURS[visit.step % len(RING_COLOURS)]
        spans = [(visit.starts_s, visit.ends_s, 0.72, 1.0)]
        if moves:
            arrives = (visit.receives_s, visit.ready_s, 0.72, 0.3)
            spans = [arrives, (visit.ready_s, visit.starts_s, 0.14, 0.6), *spans]
        for start, stop, height, alpha in spans:
            if start < min(stop, end_s):
                drawn.barh(
                    row, stop - start, height, start, color=colour, linewidth=0,
                    alpha=alpha,
                )  # fmt: skip
        # the number stands where a layer arrives, or where one that stays computes
        middle_s = sum(spans[0][:2]) / 2
        if middle_s < end_s:
            drawn.text(
                middle_s, row, str(visit.layer + 1), ha="center", va="center",
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


def memory_against_time(runs: pd.DataFrame, limit_bytes: float) -> Figure:
    """Peak memory against seconds a token, a point for each system; both are logs.

    `runs` has a row for each system with `peak_bytes`, `s_per_token`, `low_s` and
    `high_s`; what lies right of the dashed line did not keep the limit. A system
    without a time, which was killed at its limit, is left out.
    """
    runs = runs.dropna(subset=["s_per_token"])
    figure, drawn = axes(height_in=3.2)
    for name, row in runs.iterrows():
        colour, marker = _peer(str(name))
        drawn.errorbar(
            row.peak_bytes / GiB,
            row.s_per_token,
            yerr=[[row.s_per_token - row.low_s], [row.high_s - row.s_per_token]],
            fmt=marker,
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
    drawn.set_xlim(low / 1.7, 1.6 * high)
    drawn.set_ylim(runs["low_s"].min() / 1.5, runs["high_s"].max() * 1.5)
    drawn.axvline(
        limit_bytes / GiB, color=INK, linestyle="--",
        label=f"limit, {limit_bytes / GiB:g} GiB",
    )  # fmt: skip
    _round_ticks(drawn)
    drawn.set_xlabel("peak memory (GiB)")
    drawn.set_ylabel("time per token (s)")
    drawn.legend(loc="upper left")
    figure.draw_without_rendering()  # where a label has room shows in the final layout
    _move_apart(drawn)
    return figure


def predicted_times(plans: pd.DataFrame) -> Figure:
    """Predicted seconds of a step against measured ones, a point for each plan.

    `plans` has `predicted_s`, `measured_s` and `limit`; the band is 12 % to each side.
    """
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
    figure, *panels = axes(len(runs), height_in=2.6, sharey=True)
    for panel, (name, samples) in zip(panels, runs.items(), strict=True):
        colour, _ = _peer(name)
        seconds, held, private = samples.T
        panel.plot(seconds, held / GiB, color=colour, linewidth=1.2)
        panel.plot(seconds, private / GiB, ":", color=colour, linewidth=1.2)
        panel.axhline(limit_bytes / GiB, color=INK, linestyle="--", linewidth=1)
        panel.set_title(name.replace(", ", ",\n"), fontsize=8)
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
        measured_s.items(), "os", (COLOURS["streamed"], "white"), strict=False
    ):
        drawn.plot(
            tokens, seconds, marker, color=COLOURS["streamed"], markerfacecolor=face,
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
    "pinned": (COLOURS["streamed"], "o"),
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
